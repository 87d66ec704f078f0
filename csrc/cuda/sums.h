// The statistics of part of a tensor, of a tensor or of the whole list.
#pragma once

#include "core/exact_sum.h"
#include "cuda/warp.h"

namespace gradkern::cuda {

/// The statistics that are gathered. kPlain: squares and magnitudes, to the precision of float32. kWide: the same, to the
/// precision of float64. kSums: also the sum of |x| and the number of zeros. kPower: also those of -inf and any other p.
enum class Pass { kPlain, kWide, kSums, kPower };
GRADKERN_HD constexpr bool has_sums(Pass pass) { return pass == Pass::kSums || pass == Pass::kPower; }

template <Pass kPass>
struct Sums {
  ExactSum sq;
  uint64_t max_bits = 0;  ///< of the largest |x| in float64; NaN above infinity
  uint64_t nonfinite = 0;
};
template <>
struct Sums<Pass::kWide> : Sums<Pass::kPlain> {};
template <>
struct Sums<Pass::kSums> : Sums<Pass::kPlain> {
  ExactSum absolute;
  uint64_t nonzero = 0;
};
template <>
struct Sums<Pass::kPower> : Sums<Pass::kSums> {
  PowerSum power;
};

template <Pass kPass>
__device__ __forceinline__ Sums<kPass> nothing(const NormOrder& order) {
  Sums<kPass> s;
  if constexpr (kPass == Pass::kPower) s.power = empty_partial(order).power;
  return s;
}

/// `a` comes before `b`; the order matters for kPower only.
template <Pass kPass>
__device__ __forceinline__ Sums<kPass> combine(const NormOrder& order, const Sums<kPass>& a, const Sums<kPass>& b) {
  Sums<kPass> s;
  s.sq = combine(a.sq, b.sq);
  s.max_bits = a.max_bits > b.max_bits ? a.max_bits : b.max_bits;
  s.nonfinite = a.nonfinite + b.nonfinite;
  if constexpr (has_sums(kPass)) {
    s.absolute = combine(a.absolute, b.absolute);
    s.nonzero = a.nonzero + b.nonzero;
  }
  if constexpr (kPass == Pass::kPower) s.power = combine(order, a.power, b.power);
  return s;
}

/// Combines all lanes, lower lanes first. The result is in lane 0.
template <Pass kPass>
__device__ __forceinline__ Sums<kPass> warp_combine(const NormOrder& order, Sums<kPass> s) {
#pragma unroll 1
  for (int step = 1; step < int(kWarpSize); step *= 2) s = combine<kPass>(order, s, shuffle_down(s, step));
  return s;
}

/// The sums as a Partial (core/norm.h). If there are non-finite elements, no sum was gathered.
template <Pass kPass>
__device__ __forceinline__ Partial partial_of(const NormOrder& order, const Sums<kPass>& s, int64_t numel) {
  Partial p;
  p.max_bits = s.max_bits;
  p.nonfinite = int64_t(s.nonfinite);
  p.numel = numel;
  const bool finite = s.max_bits < kInfBits;
  const double largest = max_abs(p);
  if (finite) p.sq = value_of(s.sq, bin_of(largest));
  else p.sq.hi = largest;
  if constexpr (has_sums(kPass)) {
    p.zeros = numel - int64_t(s.nonzero);
    if (order.kind == NormKind::kZero) p.power.hi = double(s.nonzero);
    if (order.kind == NormKind::kOne && finite) {
      const ScaledSum sum = value_of(s.absolute, 0);
      p.power = {0, sum.hi, sum.lo};
    }
    if (order.kind == NormKind::kOne && !finite) p.power.hi = largest;
  }
  if constexpr (kPass == Pass::kPower) p.power = s.power;
  return p;
}

}  // namespace gradkern::cuda
