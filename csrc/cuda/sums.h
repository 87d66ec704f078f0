// The statistics of part of a tensor, of a tensor or of the whole list.
#pragma once

#include "core/exact_sum.h"
#include "cuda/warp.h"

namespace gradkern::cuda {

/// The statistics that are gathered. kPlain: squares and magnitudes, to the precision of float32, of lists without float64
/// and complex128. kWide: the same of any list, to the precision of float64. kSums: also the number of zeros and the sum of
/// |x|. kPower: also the number of zeros and the sums of the orders -inf and any other p.
enum class Pass { kPlain, kWide, kSums, kPower };
GRADKERN_HD constexpr bool has_counts(Pass pass) { return pass == Pass::kSums || pass == Pass::kPower; }
GRADKERN_HD constexpr bool has_absolutes(Pass pass) { return pass == Pass::kSums; }

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
  uint64_t nonzero = 0;
  ExactSum absolute;
};
template <>
struct Sums<Pass::kPower> : Sums<Pass::kPlain> {
  uint64_t nonzero = 0;
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

inline __device__ GRADKERN_NOINLINE ExactSum combine_sums(const ExactSum a, const ExactSum b) { return combine(a, b); }

/// `a` comes before `b`; the order matters for kPower only.
template <Pass kPass>
__device__ __forceinline__ Sums<kPass> combine(const NormOrder& order, const Sums<kPass>& a, const Sums<kPass>& b) {
  Sums<kPass> s;
  s.sq = combine_sums(a.sq, b.sq);
  s.max_bits = a.max_bits > b.max_bits ? a.max_bits : b.max_bits;
  s.nonfinite = a.nonfinite + b.nonfinite;
  if constexpr (has_counts(kPass)) s.nonzero = a.nonzero + b.nonzero;
  if constexpr (has_absolutes(kPass)) s.absolute = combine_sums(a.absolute, b.absolute);
  if constexpr (kPass == Pass::kPower) s.power = combine_powers(order, a.power, b.power);
  return s;
}

// Over all lanes of a warp, with the result in every lane.
inline __device__ GRADKERN_NOINLINE ExactSum warp_sum(ExactSum s) {
  constexpr uint32_t kSign = 1u << 31;  // turns an order of signed numbers into one of unsigned
  raise_bottom(s, int32_t(warp_max(uint32_t(s.bottom) ^ kSign) ^ kSign));
  // The next digit is moved to the place of the first, because registers have no index.
#pragma unroll 1
  for (int i = 0; i < ExactSum::kDigits; ++i) {
    const uint64_t sum = warp_sum(s.digit[0]);
    for (int j = 1; j < ExactSum::kDigits; ++j) s.digit[j - 1] = s.digit[j];
    s.digit[ExactSum::kDigits - 1] = sum;
  }
  return s;
}

/// Combines all lanes, lower lanes first. The result is in lane 0.
__device__ __forceinline__ PowerSum warp_combine(const NormOrder& order, PowerSum sum) {
#pragma unroll 1
  for (int step = 1; step < int(kWarpSize); step *= 2) sum = combine_powers(order, sum, shuffle_down(sum, step));
  return sum;
}
template <Pass kPass>
__device__ __forceinline__ Sums<kPass> warp_combine(const NormOrder& order, Sums<kPass> s) {
  s.sq = warp_sum(s.sq);
  s.max_bits = warp_max(s.max_bits);
  s.nonfinite = warp_sum(s.nonfinite);
  if constexpr (has_counts(kPass)) s.nonzero = warp_sum(s.nonzero);
  if constexpr (has_absolutes(kPass)) s.absolute = warp_sum(s.absolute);
  if constexpr (kPass == Pass::kPower) s.power = warp_combine(order, s.power);
  return s;
}

/// The records [begin, end) of an array, of which the first may be elsewhere.
template <Pass kPass>
struct RecordRange {
  const Sums<kPass>* first = nullptr;
  const Sums<kPass>* rest = nullptr;
  uint32_t begin = 0, end = 0;
};

/// Combines record `at` of each lane, and those that follow at a distance of `step`. The result is in lane 0. Out of line,
/// because it is called in several places.
template <Pass kPass>
__device__ GRADKERN_NOINLINE Sums<kPass> combine_records(const NormOrder order, const RecordRange<kPass> records, uint32_t at,
                                                         uint32_t step) {
  Sums<kPass> s = nothing<kPass>(order);
  const auto record = [&] { return *(at == records.begin ? records.first : records.rest + at); };
  if (!has_counts(kPass) && at < records.end) {  // faster, but a second time the code
    s = record();
    at += step;
  }
#pragma unroll 1
  for (; at < records.end; at += step) s = combine<kPass>(order, s, record());
  return records.end - records.begin == 1 ? s : warp_combine<kPass>(order, s);
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
  if constexpr (has_counts(kPass)) p.zeros = numel - int64_t(s.nonzero);
  if constexpr (has_absolutes(kPass)) {
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

inline __device__ GRADKERN_NOINLINE double l2_norm(const ScaledSum sq) { return finish(sq); }

/// The norm of an order that the pass is for (see pass_for() in measure.cu). Passes other than kPower have no code for pow.
template <Pass kPass>
__device__ __forceinline__ double norm_of(const NormOrder& order, const Partial& s, double l2) {
  if (order.kind == NormKind::kTwo) return l2;
  if constexpr (kPass == Pass::kPower) return finish(order, s);
  if (has_absolutes(kPass) && order.kind != NormKind::kInf) return compensated_value(s.power.hi, s.power.lo);
  return max_abs(s);
}

}  // namespace gradkern::cuda
