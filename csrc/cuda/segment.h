// Reads the part of a tensor that lies in a warp's span.
#pragma once

#include "cuda/accumulate.h"

namespace gradkern::cuda {

/// The sums of a unit times 2^(-1200 * bin), see ScaledSum. Counts are those of one lane.
struct UnitSums {
  double sq = 0, absolute = 0;
  uint64_t max_bits = 0;  ///< of the largest |x| as float64
  int32_t bin = 0;
  uint32_t nonfinite = 0, nonzero = 0;
};

/// Gathers a lane's part of a unit of any length, at any even address. Once an element is not finite, the non-finite ones of
/// each batch are counted while it is in registers. kPower leaves that to add_power().
template <class T, Pass kPass>
__device__ __forceinline__ LaneSums gather_unit(DType dtype, const char* at, uint32_t bytes, bool aligned) {
  using Lane = Gather<T, kPass>;
  Lane lane;
  uint32_t begin = 0, nonfinite = 0;
  const uint32_t whole = aligned ? bytes & ~(kBatchBytes - 1) : 0;
  if constexpr (kPass == Pass::kPower) {  // whose time is that of pow
#pragma unroll 1
    for (; begin < bytes; begin += kRowBytes) lane.add(load_rows_carefully<1>(at, begin, bytes));
  } else if constexpr (kPass == Pass::kSums) {
#pragma unroll 1
    for (; begin < bytes; begin += kBatchBytes) {
      const Vectors v = begin < whole ? load_batch(at + begin + lane_offset()) : load_rows_carefully<kRows>(at, begin, bytes);
      for_each_rows<Lane::kStep>(v, [&](const VectorRows<Lane::kStep>& rows) {
        lane.add(rows);
        const uint4 second = Lane::kStep == 1 ? zero_vector() : rows.row[Lane::kStep - 1];
        if (!lane.all_finite()) nonfinite += count_nonfinite<2>(dtype, {rows.row[0], second});
      });
    }
  } else {
#pragma unroll 1
    while (begin < bytes) {
      Vectors v;
      if (begin < whole) {
#pragma unroll 1
        do {
          v = load_batch(at + begin + lane_offset());
          lane.add_squares(v);
          if (Lane::kHoldsBatch && __builtin_expect(begin > bytes, 0)) break;  // never
          lane.add_largest(v);
          begin += kBatchBytes;
          if (__builtin_expect(!lane.all_finite(), 0)) break;
        } while (begin < whole);
      } else {
        v = load_rows_carefully<kRows>(at, begin, bytes);
        lane.add_compactly(v);
        begin += kBatchBytes;
      }
      if (!lane.all_finite()) nonfinite += count_nonfinite(dtype, v);
    }
  }
  return {lane.squares(), lane.absolutes(), lane.largest_bits(), nonfinite, lane.nonzeros(), Lane::kUsualFrom, Lane::kUsualTo};
}

template <Pass kPass>
__device__ __forceinline__ LaneSums gather_unit(DType dtype, const char* at, uint32_t bytes, bool aligned) {
  switch (dtype) {
    case DType::kFloat32: return gather_unit<float, kPass>(dtype, at, bytes, aligned);
    case DType::kBFloat16: return gather_unit<BFloat16, kPass>(dtype, at, bytes, aligned);
    case DType::kFloat16: return gather_unit<Float16, kPass>(dtype, at, bytes, aligned);
    case DType::kComplex64: return gather_unit<Complex<float>, kPass>(dtype, at, bytes, aligned);
    case DType::kFloat64:
      if constexpr (kPass != Pass::kPlain) return gather_unit<double, kPass>(dtype, at, bytes, aligned);
      break;
    case DType::kComplex128:
      if constexpr (kPass != Pass::kPlain) return gather_unit<Complex<double>, kPass>(dtype, at, bytes, aligned);
      break;
  }
  return {};
}

// ------------------------------------------------------------------------------- rare values and orders

// Compact code for all types: loops that are not unrolled, over one element at a time.

/// |x| in float64; for complex numbers, see core/norm.h.
inline __device__ GRADKERN_NOINLINE double magnitude_of(const AnyElement x) {
  return x.complex ? magnitude(x.value) : fabs(x.value.re);
}

/// Reads a unit twice: for magnitudes in float64, then for their squares, scaled by the bin of the largest. The result
/// has no count of non-zero elements. In kPlain, complex units are never read again.
template <Pass kPass>
__device__ GRADKERN_NOINLINE UnitSums exact_unit(DType dtype, const char* at, uint32_t bytes) {
  const auto magnitude_in_pass = [](const AnyElement& x) { return kPass == Pass::kPlain ? fabs(x.value.re) : magnitude_of(x); };
  UnitSums unit;
  double scale = 0;
#pragma unroll 1
  for (bool measured = false;; measured = true) {
    for_each_element(dtype, at, bytes, [&](const AnyElement& x) {
      if (measured) {
        const double re = x.value.re * scale, im = x.value.im * scale;
        unit.sq += re * re + im * im;
        if (!has_absolutes(kPass)) return;
      }
      const double magnitude = magnitude_in_pass(x);
      if (measured) {
        unit.absolute += magnitude;
      } else {
        unit.max_bits = abs_bits(magnitude) > unit.max_bits ? abs_bits(magnitude) : unit.max_bits;
        if (kPass != Pass::kPower) unit.nonfinite += !finite(x.value);
      }
    });
    if (measured) break;
    unit.max_bits = warp_max(unit.max_bits);
    if (unit.max_bits >= kInfBits) return unit;  // |z| may be infinite where neither part is
    unit.bin = bin_of(bit_cast<double>(unit.max_bits));
    scale = bin_scale(unit.bin);
  }
  unit.sq = warp_sum(unit.sq);
  if (has_absolutes(kPass)) unit.absolute = warp_sum(unit.absolute);
  return unit;
}

/// The sums of a unit with any values. Those of a unit of zeros, or with a non-finite element, are 0.
template <Pass kPass>
__device__ __forceinline__ UnitSums read_unit(DType dtype, const char* at, uint32_t bytes, bool aligned) {
  const LaneSums lane = gather_unit<kPass>(dtype, at, bytes, aligned);
  const uint64_t largest = warp_max(lane.largest);
  UnitSums unit{0, 0, largest, 0, lane.nonfinite, lane.nonzero};
  // |z|^2 may be infinite or zero where z is not.
  const bool may_overflow = kPass != Pass::kPlain && dtype == DType::kComplex128;
  if (largest >= lane.usual_from && largest < lane.usual_to && largest != 0) {
    unit.sq = warp_sum(lane.sq);
    if constexpr (has_absolutes(kPass)) unit.absolute = warp_sum(lane.absolute);
  } else if (largest >= kInfBits ? may_overflow && warp_max(lane.nonfinite) == 0 : largest != 0 || may_overflow) {
    unit = exact_unit<kPass>(dtype, at, bytes);
    unit.nonzero = lane.nonzero;
    return unit;
  }
  if (is_complex(dtype)) unit.max_bits = abs_bits(l2_norm({bit_cast<double>(largest)}));
  return unit;
}

/// The sum of powers and the number of elements that are not finite, of one lane.
struct Powers {
  PowerSum sum;
  uint32_t nonfinite = 0;
};

/// Adds a lane's part of a unit to `powers`, for the orders -inf and any other p: the smallest magnitude, or the powers
/// relative to the dominant one (core/norm.h). Counts the elements that are not finite, because it reads all of them anyway.
inline __device__ GRADKERN_NOINLINE Powers add_power(DType dtype, const char* at, uint32_t bytes, const NormOrder order, Powers powers) {
  double smallest = infinity();
  uint64_t largest = 0;
  for_each_element(dtype, at, bytes, [&](const AnyElement& x) {
    const double m = magnitude_of(x);
    const uint64_t bits = abs_bits(m);
    if (!(m >= smallest) && smallest == smallest) smallest = m;  // the first NaN stays
    largest = bits > largest ? bits : largest;
    powers.nonfinite += !finite(x.value);
  });
  PowerSum own;
  own.ref = order.kind == NormKind::kNegInf || order.p < 0 ? smallest : largest > kInfBits ? quiet_nan() : bit_cast<double>(largest);
  if (order.kind != NormKind::kNegInf)
    for_each_element(dtype, at, bytes, [&](const AnyElement& x) {
      add_compensated(own.hi, own.lo, power_term(magnitude_of(x), own.ref, order.p));
    });
  powers.sum = combine_powers(order, powers.sum, own);
  return powers;
}

// ------------------------------------------------------------------------------- a segment

/// The sums of a segment, in lane 0.
template <Pass kPass>
__device__ __forceinline__ Sums<kPass> add_segment(const NormOrder& order, const Segment& segment) {
  Sums<kPass> s = nothing<kPass>(order);
  uint32_t nonfinite = 0, nonzero = 0;  // a warp's span has less than 2^32 elements of any type
  const char* at = reinterpret_cast<const char*>(segment.data) + (uint64_t(segment.begin) << kUnitLog2);
  const bool aligned = is_aligned(at);
#pragma unroll 1
  for (uint32_t i = segment.begin; i < segment.end; ++i, at += kUnitBytes) {
    const uint32_t bytes = segment.unit_bytes(i);
    const UnitSums unit = read_unit<kPass>(segment.dtype, at, bytes, aligned);
    deposit(s.sq, term_of(unit.sq, unit.bin));
    s.max_bits = unit.max_bits > s.max_bits ? unit.max_bits : s.max_bits;
    if constexpr (kPass != Pass::kPower) nonfinite += unit.nonfinite;
    if constexpr (has_absolutes(kPass)) deposit(s.absolute, term_of(unit.absolute));
    if constexpr (has_counts(kPass)) nonzero += unit.nonzero;
    if constexpr (kPass == Pass::kPower) {
      const Powers powers = add_power(segment.dtype, at, bytes, order, {s.power, nonfinite});
      s.power = powers.sum;
      nonfinite = powers.nonfinite;
    }
  }
  s.nonfinite = warp_sum(nonfinite);
  if constexpr (has_counts(kPass)) s.nonzero = warp_sum(nonzero);
  if constexpr (kPass == Pass::kPower) s.power = warp_combine(order, s.power);
  return s;
}

}  // namespace gradkern::cuda
