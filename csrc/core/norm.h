// The one definition of a norm: what is kept while elements are summed (Partial), how two of
// those are combined, and how the result is finished. Used by every device and at every level
// (chunk, tensor, layer, whole model), so that none can drift from another.
//
// Error bound, for the L2 norm of n elements (u = 2^-53 is float64's rounding unit). csrc/cuda adds up units of 8 KiB
// instead of chunks, and those exactly (core/exact_sum.h, which loses less than u of the sum): a unit carries 2^-45 at most,
// 2^-30 where squares are added in float32, 39 u of float64 gradients (cuda/accumulate.h); a norm half of that.
//   - float32, bfloat16 and float16 squares are exact in float64. A chunk of at most 2^15
//     elements is summed in 32 lanes: at most 2^10 additions of non-negative terms a lane, so a
//     relative error of at most 2^10 u = 2^-43. Lanes, chunks and tensors are then added with
//     TwoSum, whose error stays below 2u as long as fewer than 2^50 terms are added. The root
//     halves relative errors: the norm carries at most 2^-43 before its one rounding to float32
//     (2^-25 relative to the next power of two, half an ulp). Together less than 0.50001 ulp,
//     against the contract's 1 (tensor) and 2 (layer, total).
//   - float64 squares are rounded once (u). Runs of 16 additions per lane go through TwoSum, so
//     a sum carries at most 18 u and a norm at most 10 u + the root's own u: 1.3e-15, against
//     the contract's 1e-14.
// Order 1 sums exact magnitudes the same way, without a root: at most 2^-43. Order inf is exact. Any
// other p multiplies the error of its sum (2^-43, of float64 gradients 20 u, with pow's own) by 1/|p|. One
// rounding to float32 hides that down to |p| = 2^-8; float64 norms may leave 1e-14 below |p| = 1/4.
// Range: float32 squares lie within [2^-298, 2^256] and cannot leave float64. float64 squares
// can: see ScaledSum.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "core/portable.h"

namespace gradkern {

enum class NormKind : uint8_t { kTwo, kOne, kInf, kNegInf, kZero, kPower };

/// The order p of a norm, classified once. `p` is meaningful for kPower only.
struct NormOrder {
  NormKind kind = NormKind::kTwo;
  double p = 2.0;
};

constexpr uint64_t kInfBits = 0x7ff0000000000000ull;

GRADKERN_HD double quiet_nan() { return bit_cast<double>(uint64_t(0x7ff8000000000000ull)); }
GRADKERN_HD double infinity() { return bit_cast<double>(uint64_t(kInfBits)); }
GRADKERN_HD uint64_t abs_bits(double x) { return bit_cast<uint64_t>(x) & ~(1ull << 63); }
GRADKERN_HD bool is_finite(double x) { return abs_bits(x) < kInfBits; }

GRADKERN_HD NormOrder norm_order(double p) {
  NormKind kind = NormKind::kPower;
  if (p == 2.0) kind = NormKind::kTwo;
  else if (p == 1.0) kind = NormKind::kOne;
  else if (p == 0.0) kind = NormKind::kZero;
  else if (p == infinity()) kind = NormKind::kInf;
  else if (p == -infinity()) kind = NormKind::kNegInf;
  return {kind, p};
}

/// |z|; unlike C's hypot, NaN in one part wins over inf in the other.
GRADKERN_HD double magnitude(Complex<float> z) {
  const double re = z.re, im = z.im;  // squares exact, their sum rounded once
  return sqrt(re * re + im * im);
}
GRADKERN_HD double magnitude(Complex<double> z) {
  if (z.re != z.re || z.im != z.im) return quiet_nan();
  return hypot(z.re, z.im);
}

/// Knuth's TwoSum: hi + lo gains x, hi rounded, the rounding error kept in lo.
GRADKERN_HD void add_compensated(double& hi, double& lo, double x) {
  const double sum = hi + x;
  const double x_rounded = sum - hi;
  lo += (hi - (sum - x_rounded)) + (x - x_rounded);
  hi = sum;
}

// hi - hi is NaN for an infinite hi, and that NaN sits in lo: only hi counts then.
GRADKERN_HD double compensated_value(double hi, double lo) { return is_finite(hi) ? hi + lo : hi; }

/// A sum of squares that neither overflows nor underflows: (hi + lo) * 2^(1200 * bin).
///
/// The elements of a chunk are scaled by 2^(-600 * bin), chosen from the chunk's largest
/// magnitude: bin 0 if it lies in [2^-400, 2^480], which every float32 does (or is zero), else -1
/// or +1. What underflows in a chunk is below 2^-250 of its largest square. (Blue 1978 and
/// LAPACK's dnrm2 keep the same three bins per element.)
struct ScaledSum {
  double hi = 0, lo = 0;
  int32_t bin = 0;
};

constexpr double kBinUp = 0x1p+600, kBinDown = 0x1p-600;

GRADKERN_HD int32_t bin_of(double max_abs) {
  if (max_abs == 0 || (max_abs >= 0x1p-400 && max_abs <= 0x1p+480)) return 0;
  return max_abs < 0x1p-400 ? -1 : 1;  // NaN and inf: +1, they stay what they are
}

GRADKERN_HD double bin_scale(int32_t bin) { return bin == 0 ? 1.0 : (bin < 0 ? kBinUp : kBinDown); }

GRADKERN_HD ScaledSum combine(ScaledSum a, ScaledSum b) {
  if (b.hi == 0) return a;
  if (a.hi == 0) return b;
  while (a.bin < b.bin) { a.hi = a.hi * kBinDown * kBinDown; a.lo = a.lo * kBinDown * kBinDown; ++a.bin; }
  while (b.bin < a.bin) { b.hi = b.hi * kBinDown * kBinDown; b.lo = b.lo * kBinDown * kBinDown; ++b.bin; }
  add_compensated(a.hi, a.lo, b.hi);
  a.lo += b.lo;
  return a;
}

GRADKERN_HD double finish(const ScaledSum& s) {
  const double root = sqrt(compensated_value(s.hi, s.lo));
  return s.bin == 0 ? root : root * (s.bin < 0 ? kBinDown : kBinUp);
}

/// What the orders other than 2 and inf need: kOne the sum, kZero the count of non-zeros,
/// kNegInf the minimum in ref, kPower the sum of (|x| / ref)^p, where ref is the dominant
/// magnitude: the largest for p > 0, the smallest for p < 0. Every term is then at most 1 and
/// the dominant one exactly 1, so that no p overflows or underflows.
struct PowerSum {
  double ref = 0, hi = 0, lo = 0;
};

GRADKERN_HD double power_term(double magnitude, double ref, double p) {
  // Equal covers 0/0 and inf/inf as well: a chunk of zeros has ref 0 and norm 0 * n^(1/p) = 0.
  return magnitude == ref ? 1.0 : pow(magnitude / ref, p);
}

GRADKERN_HD PowerSum combine(const NormOrder& order, PowerSum a, PowerSum b) {
  switch (order.kind) {
    case NormKind::kTwo:
    case NormKind::kInf: return a;
    case NormKind::kNegInf:
      if (!(a.ref <= b.ref)) a.ref = (a.ref != a.ref) ? a.ref : b.ref;  // NaN from either stays
      return a;
    case NormKind::kPower: {
      if (b.hi == 0) return a;
      if (a.hi == 0) return b;
      if (a.hi != a.hi) return a;
      if (b.hi != b.hi) return b;
      const bool b_dominates = order.p > 0 ? b.ref > a.ref : b.ref < a.ref;
      if (b_dominates) { const PowerSum swap = a; a = b; b = swap; }
      const double factor = power_term(b.ref, a.ref, order.p);
      b.hi *= factor;
      b.lo *= factor;
      break;
    }
    case NormKind::kOne:
    case NormKind::kZero: break;
  }
  add_compensated(a.hi, a.lo, b.hi);
  a.lo += b.lo;
  return a;
}

/// Everything one read gathers about a chunk, a tensor, a layer or the whole list.
struct Partial {
  ScaledSum sq;            ///< sum of squares, always
  PowerSum power;          ///< see PowerSum
  uint64_t max_bits = 0;   ///< bits of the largest |x| as float64; NaN compares above inf
  int64_t nonfinite = 0;   ///< elements that are inf or NaN
  int64_t zeros = 0;       ///< elements that are +0 or -0, if asked for
  int64_t numel = 0;
};

/// A Partial of one chunk in less memory: its counts are small, and its length is the plan's to know.
struct ChunkPartial {
  double sq_hi, sq_lo;
  PowerSum power;
  uint64_t max_bits;
  int32_t sq_bin;
  uint16_t nonfinite, zeros;
};

GRADKERN_HD ChunkPartial packed(const Partial& p) {
  return {p.sq.hi, p.sq.lo, p.power, p.max_bits, p.sq.bin, uint16_t(p.nonfinite), uint16_t(p.zeros)};
}

GRADKERN_HD Partial unpacked(const ChunkPartial& p, int64_t length) {
  return {{p.sq_hi, p.sq_lo, p.sq_bin}, p.power, p.max_bits, p.nonfinite, p.zeros, length};
}

/// The neutral element of combine: an empty list.
GRADKERN_HD Partial empty_partial(const NormOrder& order) {
  Partial none;
  if (order.kind == NormKind::kNegInf) none.power.ref = infinity();
  return none;
}

GRADKERN_HD Partial combine(const NormOrder& order, const Partial& a, const Partial& b) {
  Partial sum;
  sum.sq = combine(a.sq, b.sq);
  sum.power = combine(order, a.power, b.power);
  sum.max_bits = a.max_bits > b.max_bits ? a.max_bits : b.max_bits;
  sum.nonfinite = a.nonfinite + b.nonfinite;
  sum.zeros = a.zeros + b.zeros;
  sum.numel = a.numel + b.numel;
  return sum;
}

/// Something that is not empty, of which the norm alone is known: for the norm of several together.
GRADKERN_HD Partial partial_of_norm(const NormOrder& order, double norm) {
  Partial p;
  p.numel = 1;
  switch (order.kind) {
    case NormKind::kTwo: {
      p.sq.bin = bin_of(norm);
      const double scaled = norm * bin_scale(p.sq.bin);
      p.sq.hi = scaled * scaled;
      break;
    }
    case NormKind::kInf: p.max_bits = abs_bits(norm); break;
    case NormKind::kOne:
    case NormKind::kZero: p.power.hi = norm; break;
    case NormKind::kNegInf: p.power.ref = norm; break;
    case NormKind::kPower: p.power = {norm, 1.0, 0.0}; break;
  }
  return p;
}

GRADKERN_HD double max_abs(const Partial& s) {
  return s.max_bits > kInfBits ? quiet_nan() : bit_cast<double>(s.max_bits);
}

/// The norm of the order in float64; of nothing it is 0, whatever the order.
GRADKERN_HD double finish(const NormOrder& order, const Partial& s) {
  if (s.numel == 0) return 0.0;
  switch (order.kind) {
    case NormKind::kTwo: return finish(s.sq);
    case NormKind::kInf: return max_abs(s);
    case NormKind::kNegInf: return s.power.ref;
    case NormKind::kOne:
    case NormKind::kZero: return compensated_value(s.power.hi, s.power.lo);
    case NormKind::kPower: break;
  }
  return s.power.ref * pow(compensated_value(s.power.hi, s.power.lo), 1.0 / order.p);
}

}  // namespace gradkern
