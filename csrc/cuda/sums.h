// The statistics of part of a tensor, of a tensor or of the whole list.
#pragma once

#include "core/exact_sum.h"
#include "cuda/warp.h"

namespace gradkern::cuda {

/// The statistics that are gathered. kPlain: squares and magnitudes, to the precision of float32, of lists without float64
/// and complex128. kWide: the same of any list, to the precision of float64. kSums: also the sum of |x| and the number of zeros. kPower: also those of -inf and any other p.
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

// Out of line, because of pow.
inline __device__ GRADKERN_NOINLINE PowerSum combine_powers(const NormOrder order, const PowerSum a, const PowerSum b) {
  return combine(order, a, b);
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
  if constexpr (kPass == Pass::kPower) s.power = combine_powers(order, a.power, b.power);
  return s;
}

/// Combines *first, an array's element `begin`, with rest[begin + 1 … end), in all lanes of a warp, which take them in
/// turns. The result is in lane 0. Out of line, because it is called in several places.
template <Pass kPass>
__device__ GRADKERN_NOINLINE Sums<kPass> combine_records(const NormOrder order, const Sums<kPass>* first, const Sums<kPass>* rest,
                                                         uint32_t begin, uint32_t end) {
  Sums<kPass> s = nothing<kPass>(order), next = s;
  uint32_t at = begin + threadIdx.x % kWarpSize;
  if (at < end) next = at == begin ? *first : rest[at];
#pragma unroll 1
  while (at < end) {
    const Sums<kPass> own = next;
    at += kWarpSize;
    if (at < end) next = rest[at];  // is loaded while the last is added
    s = combine<kPass>(order, s, own);
  }
#pragma unroll 1
  for (uint32_t step = 1; step < kWarpSize && step < end - begin; step *= 2) s = combine<kPass>(order, s, shuffle_down(s, int(step)));
  return s;
}

/// The order itself, as one of those that the pass is for (see pass_for() in measure.cu). So the compiler leaves out the
/// code of the others.
template <Pass kPass>
__device__ __forceinline__ NormOrder order_in(const NormOrder& order) {
  if constexpr (kPass == Pass::kPower) return order;
  const NormKind kind = order.kind;
  const bool sum = has_sums(kPass) && (kind == NormKind::kOne || kind == NormKind::kZero);
  return {sum ? kind == NormKind::kOne ? NormKind::kOne : NormKind::kZero : kind == NormKind::kInf ? NormKind::kInf : NormKind::kTwo};
}

/// The sums as a Partial (core/norm.h). If there are non-finite elements, no sum was gathered. Out of line, because rows and
/// totals share it.
template <Pass kPass>
__device__ GRADKERN_NOINLINE Partial partial_of(const NormOrder order, const Sums<kPass> s, int64_t numel) {
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
