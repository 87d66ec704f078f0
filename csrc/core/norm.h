// The definition of a norm: the running sums (Partial), how two of them are combined, and how the
// result is computed from them. All devices and all levels (chunk, tensor, layer, model) use it.
//
// Error bound of the L2 norm of n elements. u = 2^-53 is the unit roundoff of float64.
//   - float32, bfloat16 and float16: squares are exact in float64. A chunk of at most 2^15 elements is
//     summed in 32 lanes. A lane adds at most 2^10 non-negative terms, with a relative error of at most
//     2^10 u = 2^-43. Lanes, chunks and tensors are added with TwoSum, whose error stays below 2u for
//     fewer than 2^50 terms. The root halves the relative error, so that the norm has an error of at
//     most 2^-43 before its only rounding to float32 (half an ulp). The result is within 0.50001 ulp;
//     the contract allows 1 for a tensor and 2 for a layer or the total.
//   - float64: squares are rounded once (u). TwoSum adds runs of 16 additions per lane. A sum has an
//     error of at most 18 u, and a norm of at most 10 u plus the root's own u: 1.3e-15. The contract
//     allows 1e-14.
//   - CUDA sums units of 8 KiB instead of chunks, and adds the units exactly (core/exact_sum.h, which
//     loses less than u of the sum). The error of a unit's sum is at most 2^-45, 2^-30 if squares are
//     added in float32, and 39 u for float64 gradients (cuda/accumulate.h). The norm has half of that.
//
// Other orders: 1 sums exact magnitudes in the same way, without a root (2^-43). inf is exact. Any other
// p multiplies the error of its sum, which includes that of pow (2^-43; 20 u for float64 gradients), by
// 1/|p|. Down to |p| = 2^-8 this is small beside the rounding to float32. Norms in float64 may exceed
// 1e-14 below |p| = 1/4.
//
// Range: float32 squares lie in [2^-298, 2^256], within float64. float64 squares may lie outside: see
// ScaledSum.
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

// For an infinite hi, lo is NaN (hi - hi) and is ignored.
GRADKERN_HD double compensated_value(double hi, double lo) { return is_finite(hi) ? hi + lo : hi; }

/// A sum of squares that neither overflows nor underflows: (hi + lo) * 2^(1200 * bin).
///
/// The elements of a chunk are scaled by 2^(-600 * bin). The chunk's largest magnitude gives the bin: 0
/// if it lies in [2^-400, 2^480] or is zero, which holds for every float32, else -1 or +1. Squares that
/// underflow are below 2^-250 of the chunk's largest. Blue (1978) and LAPACK's dnrm2 use the same three
/// bins per element.
struct ScaledSum {
  double hi = 0, lo = 0;
  int32_t bin = 0;
};

constexpr double kBinUp = 0x1p+600, kBinDown = 0x1p-600;

GRADKERN_HD int32_t bin_of(double max_abs) {
  if (max_abs == 0 || (max_abs >= 0x1p-400 && max_abs <= 0x1p+480)) return 0;
  return max_abs < 0x1p-400 ? -1 : 1;  // NaN and inf: +1, which keeps them
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

/// The sum for the orders other than 2 and inf. kOne: the sum of magnitudes. kZero: the number of
/// non-zeros. kNegInf: the minimum, in ref. kPower: the sum of (|x| / ref)^p, where ref is the largest
/// magnitude for p > 0 and the smallest for p < 0. All terms are at most 1 and the largest is 1, so that
/// the sum neither overflows nor underflows for any p.
struct PowerSum {
  double ref = 0, hi = 0, lo = 0;
};

GRADKERN_HD_LONG double power_term(double magnitude, double ref, double p) {
  return magnitude == ref ? 1.0 : pow(magnitude / ref, p);  // equality covers 0/0 and inf/inf
}

/// ref * sum^(1/p). Near p = 0 the power alone may be beyond the range of float64 while the product is not.
GRADKERN_HD double power_norm(double ref, double sum, double p) {
  if (ref == 0) return 0.0;
  double norm = ref;
  for (int parts = 1; parts <= 3; parts += 2) {  // a loop, because each call of pow is long code
    const double root = power_term(sum, 1.0, 1.0 / (parts * p));
    norm = parts == 1 ? ref * root : ref * root * root * root;
    if (is_finite(root) && root >= 0x1p-1022) break;
  }
  return norm;
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

/// The statistics of a chunk, a tensor, a layer or the whole list, gathered in one read.
struct Partial {
  ScaledSum sq;            ///< sum of squares, always
  PowerSum power;          ///< see PowerSum
  uint64_t max_bits = 0;   ///< bits of the largest |x| as float64; NaN compares above inf
  int64_t nonfinite = 0;   ///< elements that are inf or NaN
  int64_t zeros = 0;       ///< elements that are +0 or -0, if asked for
  int64_t numel = 0;
};

/// A Partial of one chunk in less memory. Its counts fit into 16 bits, and the plan has its length.
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

/// The Partial of something non-empty of which only the norm is known, to combine norms.
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

/// The norm in float64. The norm of nothing is 0 for every order.
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
  return power_norm(s.power.ref, compensated_value(s.power.hi, s.power.lo), order.p);
}

}  // namespace gradkern
