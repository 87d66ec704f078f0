// Reads the part of a tensor that lies in a warp's span.
#pragma once

#include "cuda/accumulate.h"

namespace gradkern::cuda {

template <class T, Pass kPass>
using UnitOf = UnitSums<typename Gather<T, kPass>::Bits>;

GRADKERN_HD constexpr uint32_t batches_of(uint32_t bytes) { return (bytes + kBatchBytes - 1) / kBatchBytes; }

/// Gathers the batches of a unit, load(begin). The sums of a unit of zeros, or with a non-finite element, are 0.
template <class T, Pass kPass, class Load>
__device__ __forceinline__ UnitOf<T, kPass> gather_unit(uint32_t batches, const Load& load) {
  Gather<T, kPass> gather;
#pragma unroll 1
  for (uint32_t begin = 0; begin < batches * kBatchBytes; begin += kBatchBytes) gather.add(load(begin));
  UnitOf<T, kPass> unit = gather.sums();
  unit.largest = warp_max(unit.largest);
  const bool any = unit.largest != 0 && Gather<T, kPass>::finite(unit.largest);
  unit.sq = any ? warp_sum(unit.sq) : 0;
  if constexpr (has_sums(kPass)) unit.absolute = any ? warp_sum(unit.absolute) : 0;
  return unit;
}

/// Calls visit(batch, its bytes) for a unit of any length at any even address.
template <class Visit>
__device__ __forceinline__ void for_each_batch(const char* unit, uint32_t bytes, const Visit& visit) {
#pragma unroll 1
  for (uint32_t begin = 0; begin < bytes; begin += kBatchBytes) visit(load_batch_carefully(unit, begin, bytes), bytes - begin);
}

/// Reads a unit twice: for magnitudes in float64, then for their squares, scaled by the bin of the largest.
template <class T, Pass kPass>
__device__ __forceinline__ UnitOf<T, kPass> exact_unit(const char* at, uint32_t bytes, UnitOf<T, kPass> unit) {
  uint64_t largest = 0;
  uint32_t nonfinite = 0;
  for_each_batch(at, bytes, [&](const Vectors& v, uint32_t) {
    for_each_element<T>(v, [&](T x) {
      const uint64_t bits = abs_bits(magnitude(x));
      largest = bits > largest ? bits : largest;
      nonfinite += !finite(x);
    });
  });
  largest = warp_max(largest);
  unit.bin = bin_of(bit_cast<double>(largest));
  const double scale = bin_scale(unit.bin);
  double sq = 0, absolute = 0;
  for_each_batch(at, bytes, [&](const Vectors& v, uint32_t) {
    for_each_element<T>(v, [&](T x) {
      sq += scaled_square(x, scale);
      if (has_sums(kPass)) absolute += magnitude(x);
    });
  });
  const bool any = largest < kInfBits;  // |z| may be infinite where neither part is
  unit.sq = any ? warp_sum(sq) : 0;
  if constexpr (has_sums(kPass)) unit.absolute = any ? warp_sum(absolute) : 0;
  unit.nonfinite = nonfinite;
  if constexpr (std::is_same_v<T, Complex<double>>) unit.largest = largest;
  return unit;
}

/// Reads a unit of any length, at any even address, with any values.
template <class T, Pass kPass>
__device__ GRADKERN_NOINLINE UnitOf<T, kPass> careful_unit(const char* at, uint32_t bytes) {
  const bool aligned = is_aligned(at);
  UnitOf<T, kPass> unit = gather_unit<T, kPass>(batches_of(bytes), [&](uint32_t begin) {
    return aligned && begin + kBatchBytes <= bytes ? load_batch(at + begin) : load_batch_carefully(at, begin, bytes);
  });
  if (!Gather<T, kPass>::usual(unit.largest)) return exact_unit<T, kPass>(at, bytes, unit);
  if constexpr (std::is_same_v<T, Complex<double>>) unit.largest = abs_bits(sqrt(bit_cast<double>(unit.largest)));
  return unit;
}

/// The same, with a fast path for full, aligned units with usual values.
template <class T, Pass kPass>
__device__ __forceinline__ UnitOf<T, kPass> read_unit(const char* at, uint32_t bytes, bool aligned) {
  if (kPass == Pass::kPower || !aligned || bytes % kBatchBytes != 0) return careful_unit<T, kPass>(at, bytes);
  UnitOf<T, kPass> unit = gather_unit<T, kPass>(bytes / kBatchBytes, [at](uint32_t begin) { return load_batch(at + begin); });
  if (!Gather<T, kPass>::usual(unit.largest)) return careful_unit<T, kPass>(at, bytes);
  if constexpr (std::is_same_v<T, Complex<double>>) unit.largest = abs_bits(sqrt(bit_cast<double>(unit.largest)));
  return unit;
}

// ------------------------------------------------------------------------------- any other order

/// The sum of a lane's batch for the orders -inf and any other p: the smallest magnitude, or the powers relative to
/// the dominant one (core/norm.h).
template <class T>
__device__ PowerSum power_of_batch(const Vectors& v, uint32_t bytes, const NormOrder& order) {
  double smallest = infinity();
  uint64_t largest = 0;
  bool any = false;
  for_each_valid<T>(v, bytes, [&](T x) {
    const double m = magnitude(x);
    const uint64_t bits = abs_bits(m);
    if (!(m >= smallest) && smallest == smallest) smallest = m;  // the first NaN stays
    largest = bits > largest ? bits : largest;
    any = true;
  });
  if (order.kind == NormKind::kNegInf) return {smallest, 0, 0};
  PowerSum sum;
  if (!any) return sum;
  const double top = largest > kInfBits ? quiet_nan() : bit_cast<double>(largest);
  sum.ref = order.p > 0 ? top : smallest;
  for_each_valid<T>(v, bytes, [&](T x) {
    add_compensated(sum.hi, sum.lo, power_term(magnitude(x), sum.ref, order.p));
  });
  return sum;
}

/// Adds a lane's part of a unit to `sum`. Not optimized, because training loops do not clip by these orders.
template <class T>
__device__ GRADKERN_NOINLINE PowerSum add_power(const char* at, uint32_t bytes, const NormOrder& order, PowerSum sum) {
  for_each_batch(at, bytes, [&](const Vectors& v, uint32_t left) { sum = combine(order, sum, power_of_batch<T>(v, left, order)); });
  return sum;
}

/// Combines all lanes, lower lanes first. The result is in lane 0.
__device__ __forceinline__ PowerSum warp_combine(const NormOrder& order, PowerSum sum) {
#pragma unroll 1
  for (int step = 1; step < int(kWarpSize); step *= 2) sum = combine(order, sum, shuffle_down(sum, step));
  return sum;
}

// ------------------------------------------------------------------------------- a segment

/// The sums of a segment, in lane 0.
template <Pass kPass, class T>
__device__ __forceinline__ Sums<kPass> add_segment(const NormOrder& order, const Segment& segment) {
  using Lane = Gather<T, kPass>;
  Sums<kPass> s = nothing<kPass>(order);
  typename Lane::Bits largest = 0;
  uint32_t nonfinite = 0, nonzero = 0;  // a warp's span has less than 2^32 elements of any type
  const char* at = reinterpret_cast<const char*>(segment.data) + (uint64_t(segment.begin) << kUnitLog2);
  const bool aligned = is_aligned(at);
#pragma unroll 1
  for (uint32_t i = segment.begin; i < segment.end; ++i, at += kUnitBytes) {
    const uint32_t bytes = segment.unit_bytes(i);
    const UnitOf<T, kPass> unit = read_unit<T, kPass>(at, bytes, aligned);
    deposit(s.sq, term_of(unit.sq, unit.bin));
    largest = unit.largest > largest ? unit.largest : largest;
    nonfinite += unit.nonfinite;
    if constexpr (has_sums(kPass)) {
      deposit(s.absolute, term_of(unit.absolute));
      nonzero += unit.nonzero;
    }
    if constexpr (kPass == Pass::kPower) s.power = add_power<T>(at, bytes, order, s.power);
  }
  s.max_bits = Lane::max_bits(largest);
  s.nonfinite = warp_sum(nonfinite);
  if constexpr (has_sums(kPass)) s.nonzero = warp_sum(nonzero);
  if constexpr (kPass == Pass::kPower) s.power = warp_combine(order, s.power);
  return s;
}

template <Pass kPass>
__device__ __forceinline__ Sums<kPass> add_segment(const NormOrder& order, const Segment& segment) {
  switch (segment.dtype) {
    case DType::kFloat32: return add_segment<kPass, float>(order, segment);
    case DType::kBFloat16: return add_segment<kPass, BFloat16>(order, segment);
    case DType::kFloat16: return add_segment<kPass, Float16>(order, segment);
    case DType::kFloat64: return add_segment<kPass, double>(order, segment);
    case DType::kComplex64: return add_segment<kPass, Complex<float>>(order, segment);
    case DType::kComplex128: return add_segment<kPass, Complex<double>>(order, segment);
  }
  return nothing<kPass>(order);
}

}  // namespace gradkern::cuda
