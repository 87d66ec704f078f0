// What one lane gathers of the elements that it reads, a unit at a time: one Gather per kind of element type.
//
// Of every unit a lane sums its 64 bytes from zero (sq and, if asked for, |x|) and deposits that into an
// ExactSum. Error bound of a term, beside the ones in core/norm.h and core/exact_sum.h (u = 2^-53):
//   - float32, bfloat16, float16, complex64: squares are exact in float64, complex64's |z|^2 rounded once. At most 32
//     of them are added: 32 u = 2^-48 relative, 2^-49 on the norm.
//   - bfloat16's exponent gets its bias in a way that makes 2^-127 of zero, and of subnormals something below 2^-126: an error
//     of 32 * 2^-252 at most, where the largest element is 2^-93 or more 2^-61 of its square.
//   - float32 pairs (sm_86 and others): see squares_in_pairs. 2^-31 relative, 2^-32 on the norm, before its rounding to
//     float32 (2^-25): together less than 0.51 ulp. Results in float64 do not come from them.
//   - float64, complex128: a square carries u (complex128's two u), 8 additions 8 u: 10 u on the sum, 6 u on the
//     norm with the root's own: 7e-16, against the contract's 1e-14.
//
// A lane reads fast and sees from its largest magnitude whether that was right. Units with something that is not
// finite, and those near the ends of a range, are settled out of line: a second read of 2 KiB that is in the cache,
// because the registers of the first, kept for a call, would cost every unit of every tensor.
#pragma once

#include <type_traits>

#include "core/exact_sum.h"
#include "cuda/elements.h"

// How squares of float32, bfloat16 and float16 are added up. A multiprocessor of sm_80, sm_90 and sm_100 does 32 or 64
// float64 operations a cycle, more than memory can feed; those of the other architectures do two. The choice is made for
// the architecture that is compiled for: where a binary runs on a relative with slower float64 (sm_80's on sm_86, sm_100's
// on sm_103), list that one in TORCH_CUDA_ARCH_LIST too. benchmarks/accumulation.cu measures both ways.
#if !defined(GRADKERN_COMPENSATED)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
#define GRADKERN_COMPENSATED 0
#else
#define GRADKERN_COMPENSATED 1
#endif
#endif

namespace gradkern::cuda {

/// What is gathered: kPlain squares and magnitudes, to float32's precision; kWide the same to float64's; kSums adds the
/// sum of |x| and the count of zeros; kPower the orders -inf and any other p.
enum class Pass { kPlain, kWide, kSums, kPower };
GRADKERN_HD constexpr bool has_sums(Pass pass) { return pass == Pass::kSums || pass == Pass::kPower; }

/// Of some elements, by one lane or by many.
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

/// A lane's part of one unit. `largest`: bits that order as magnitudes do, see the Gather.
struct Unit {
  uint64_t sq = 0, absolute = 0, largest = 0;
  int32_t sq_exponent = 0, absolute_exponent = 0;  ///< of terms of an ExactSum
  uint32_t nonfinite = 0, nonzero = 0;

  __device__ __forceinline__ void set_sq(const Term& term) {
    sq = term.integer;
    sq_exponent = term.exponent;
  }
  __device__ __forceinline__ void set_absolute(const Term& term) {
    absolute = term.integer;
    absolute_exponent = term.exponent;
  }
};

template <class T>
__device__ __forceinline__ uint32_t count_nonfinite(const Vectors& v) {
  uint32_t count = 0;
  for_each_element<T>(v, [&](T x) { count += !finite(x); });
  return count;
}

/// Magnitudes in float64, and their squares scaled by the bin of the largest.
struct Exact {
  double sq = 0, absolute = 0;
  uint64_t max_bits = 0;
  int32_t bin = 0;
};
template <class T>
__device__ __forceinline__ Exact exact_sums(const Vectors& v) {
  Exact out;
  for_each_element<T>(v, [&](T x) {
    const double m = magnitude(x);
    const uint64_t bits = abs_bits(m);
    out.max_bits = bits > out.max_bits ? bits : out.max_bits;
    out.absolute += m;
  });
  out.bin = bin_of(bit_cast<double>(out.max_bits));
  const double scale = bin_scale(out.bin);
  for_each_element<T>(v, [&](T x) { out.sq += scaled_square(x, scale); });
  return out;
}

// A Gather has
//   usual(v, unit)  what a unit comes to; false where the fast way is not right for it;
//   settled(v)      the same for any unit, with the same bits where the fast way is right;
//   largest         of all units that were added;
//   max_bits()      |x| in float64 of that.

// ---------------------------------------------------------------- float32, bfloat16, float16

/// Calls add(bits without the sign, slot) for the elements of a lane; 16-bit ones where they stand in their word.
template <class T, class Add>
__device__ __forceinline__ void for_each_magnitude(const Vectors& v, const Add& add) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t w = word(v.row[r], i);
      if constexpr (sizeof(T) == 4) {
        add(w & 0x7fffffffu, i % 2);
      } else {
        add(w & 0x7fffu, 0);
        add(w & 0x7fff0000u, 1);
      }
    }
}

/// An element from what for_each_magnitude gives, as float32.
__device__ __forceinline__ float to_float32(uint32_t bits, int, float) { return bit_cast<float>(bits); }
__device__ __forceinline__ float to_float32(uint32_t bits, int slot, BFloat16) {
  return bit_cast<float>(slot ? bits : bits << 16);
}
__device__ __forceinline__ float to_float32(uint32_t bits, int slot, Float16) {
  return widen(Float16{uint16_t(slot ? bits >> 16 : bits)});
}

/// The same in float64. bfloat16 and float16: exponent and fraction are put where float64 has them, and one
/// multiplication repairs the exponent's bias, for subnormals and zero as well. Exact for finite numbers, without a
/// conversion from float32, which is a narrow pipe on every GPU.
__device__ __forceinline__ double to_float64(uint32_t bits, int, float) { return double(bit_cast<float>(bits)); }
__device__ __forceinline__ double to_float64(uint32_t bits, int slot, BFloat16) {
  return bit_cast<double>(uint64_t(slot ? bits >> 3 : bits << 13) << 32) * 0x1p+896;
}
__device__ __forceinline__ double to_float64(uint32_t bits, int slot, Float16) {
  return bit_cast<double>(uint64_t(slot ? bits >> 6 : bits << 10) << 32) * 0x1p+1008;
}

/// The high word of a bfloat16 in float64, its exponent's bias added in the shift: right for normal numbers, 2^-127 for zero.
constexpr uint32_t kBias = (1023u - 127u) << 20;
__device__ __forceinline__ uint32_t biased(uint32_t bits, int slot) { return (slot ? bits >> 3 : bits << 13) + kBias; }

/// The largest magnitude of a lane's unit, by the bits of the type itself.
template <class T>
__device__ __forceinline__ uint32_t largest_of(const Vectors& v) {
  uint32_t even = 0, odd = 0;  // an even element beside an odd one does not change which odd one is largest
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t all = word(v.row[r], i) & 0x7fffffffu, low = all & 0x7fffu;
      odd = all > odd ? all : odd;
      if (sizeof(T) == 2) even = low > even ? low : even;
    }
  if (sizeof(T) == 4) return odd;
  return even > odd >> 16 ? even : odd >> 16;
}

__device__ __forceinline__ int32_t nearest(float x) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(x);
#else
  return int32_t(lrintf(x));
#endif
}

/// The sum of squares in float32 alone, for architectures with few float64 units. Let the largest magnitude lie in
/// [2^e, 2^(e+1)), so that 32 squares come to less than 2^(2e+7). `sum` starts at 2^(2e+8) and stays within a factor of
/// two of that: its spacing is q = 2^(2e-15) throughout, what a square adds to it is a multiple of q found exactly, and the
/// rest of the square (at most q/2, rounded to 24 bits) goes to `rest`. |rest| <= 16 q, so that its additions
/// err by 32 * 2^-21 q = 2^-31 * 2^2e at most, where the sum of squares is at least 2^2e.
/// In float32's range for e in [-43, 59]; elements are multiplied by `scale` before, if at all.
template <class T, bool kScaled>
__device__ __forceinline__ Term squares_in_pairs(const Vectors& v, int32_t e, float scale) {
  const uint32_t start = uint32_t(2 * e + 8 + 127) << 23;
  float sum = bit_cast<float>(start), rest = 0;
  for_each_magnitude<T>(v, [&](uint32_t bits, int slot) {
    float x = to_float32(bits, slot, T{});
    if (kScaled) x *= scale;
    const float next = fmaf(x, x, sum);
    rest += fmaf(x, x, -(next - sum));
    sum = next;
  });
  const auto steps = int64_t(bit_cast<uint32_t>(sum) - start);
  const float in_units = rest * bit_cast<float>(uint32_t(24 + 15 - 2 * e + 127) << 23);
  return {uint64_t((steps << 24) + int64_t(nearest(in_units))), 2 * e - 39};
}

/// e of a magnitude; -126 at least.
__device__ __forceinline__ int32_t exponent_of(float largest) { return int32_t(bit_cast<uint32_t>(largest) >> 23) - 127; }

/// Multiplied into that range, from which subnormals are up to 2^-149 away.
template <class T>
__device__ __forceinline__ Term squares_in_scaled_pairs(const Vectors& v, float largest) {
  const int32_t e = exponent_of(largest), up = e < -100 ? 120 : e < 0 ? 70 : -70;
  const float scale = bit_cast<float>(uint32_t(127 + up) << 23);
  Term term = squares_in_pairs<T, true>(v, exponent_of(largest * scale), scale);
  term.exponent -= 2 * up;
  return term;
}

/// float32, bfloat16 or float16.
template <class T, Pass kPass>
struct Gather {
  static constexpr bool kSums = has_sums(kPass);
  static constexpr bool kPairs = GRADKERN_COMPENSATED && kPass == Pass::kPlain;
  static constexpr bool kBiased = std::is_same_v<T, BFloat16> && !kSums && !kPairs;
  static constexpr uint32_t kInfinity = sizeof(T) == 4 ? 0x7f800000u : std::is_same_v<T, BFloat16> ? 0x7f80u : 0x7c00u;
  /// Between these a unit's largest magnitude is nothing unusual.
  static constexpr int32_t kLeastExponent = kPairs ? -43 : -93, kMostExponent = 59;
  static constexpr bool kTinyIsUnusual = kBiased || (kPairs && !std::is_same_v<T, Float16>);
  static constexpr bool kHugeIsUnusual = kPairs && !std::is_same_v<T, Float16>;
  static constexpr int kFractionBits = sizeof(T) == 4 ? 23 : 7;  ///< where exponents of float32 and bfloat16 begin
  static constexpr uint32_t kLeast = kTinyIsUnusual ? uint32_t(127 + kLeastExponent) << kFractionBits : 1u;
  static constexpr uint32_t kMost = kHugeIsUnusual ? uint32_t(127 + kMostExponent + 1) << kFractionBits : kInfinity;

  uint32_t largest = 0;  ///< by the bits of the type

  __device__ static __forceinline__ Unit sums_of(const Vectors& v) {
    Unit unit;
    uint32_t top = 0;
    double sq[2] = {0, 0}, absolute[2] = {0, 0};
    if constexpr (!kPairs)
      for_each_magnitude<T>(v, [&](uint32_t bits, int slot) {
        double x;
        if constexpr (kBiased) {
          const uint32_t high = biased(bits, slot);
          top = high > top ? high : top;
          x = bit_cast<double>(uint64_t(high) << 32);
        } else {
          x = to_float64(bits, slot, T{});
        }
        sq[slot] = fma(x, x, sq[slot]);
        if (kSums) absolute[slot] += x;
        if (kSums) unit.nonzero += bits != 0;
      });
    unit.largest = kBiased ? (top - kBias) >> 13 : largest_of<T>(v);
    if constexpr (!kPairs) unit.set_sq(term_of(sq[0] + sq[1]));
    if constexpr (kSums) unit.set_absolute(term_of(absolute[0] + absolute[1]));
    return unit;
  }

  __device__ static __forceinline__ bool usual(const Vectors& v, Unit& unit) {
    unit = sums_of(v);
    const auto top = uint32_t(unit.largest);
    if (top == 0) unit.set_sq({0, 0});
    if (top - kLeast >= kMost - kLeast) return top == 0;
    if constexpr (kPairs) unit.set_sq(squares_in_pairs<T, false>(v, exponent_of(to_float32(top, 0, T{})), 1));
    return true;
  }

  __device__ static __forceinline__ Unit settled(const Vectors& v) {
    Unit unit;
    if (usual(v, unit)) return unit;
    const auto top = uint32_t(unit.largest);
    if (top >= kInfinity) {
      unit.nonfinite = count_nonfinite<T>(v);
      unit.sq = unit.absolute = 0;
    } else if constexpr (kPairs) {
      unit.set_sq(squares_in_scaled_pairs<T>(v, to_float32(top, 0, T{})));
    } else if constexpr (kBiased) {
      unit.set_sq(term_of(exact_sums<T>(v).sq));
    }
    return unit;
  }

  __device__ __forceinline__ uint64_t max_bits() const { return abs_bits(double(to_float32(largest, 0, T{}))); }
};

// ------------------------------------------------------------------- float64, complex64, complex128

/// Sums in float64 without scaling. largest: bits of the largest |x|, or of the largest |z|^2.
template <class T, Pass kPass>
__device__ __forceinline__ Unit wide_sums(const Vectors& v) {
  Unit unit;
  double sq = 0, absolute = 0;
  for_each_element<T>(v, [&](T x) {
    const double square = scaled_square(x, 1.0);
    const uint64_t bits = abs_bits(is_complex_type(x) ? square : real_part(x));
    unit.largest = bits > unit.largest ? bits : unit.largest;
    sq += square;
    if constexpr (has_sums(kPass)) {
      absolute += is_complex_type(x) ? sqrt(square) : fabs(real_part(x));
      unit.nonzero += nonzero(x);
    }
  });
  unit.set_sq(term_of(sq));
  if constexpr (has_sums(kPass)) unit.set_absolute(term_of(absolute));
  return unit;
}

/// largest: |x|.
template <Pass kPass>
struct Gather<double, kPass> {
  uint64_t largest = 0;

  __device__ static __forceinline__ bool usual(const Vectors& v, Unit& unit) {
    unit = wide_sums<double, kPass>(v);
    return bin_of(bit_cast<double>(unit.largest)) == 0;
  }
  __device__ static __forceinline__ Unit settled(const Vectors& v) {
    Unit unit;
    if (usual(v, unit)) return unit;
    if (unit.largest < kInfBits) {
      const Exact exact = exact_sums<double>(v);
      unit.set_sq(term_of(exact.sq, exact.bin));
    } else {
      unit.nonfinite = count_nonfinite<double>(v);
      unit.sq = unit.absolute = 0;
    }
    return unit;
  }
  __device__ __forceinline__ uint64_t max_bits() const { return largest; }
};

/// largest: |z|^2, which is within float64's range.
template <Pass kPass>
struct Gather<Complex<float>, kPass> {
  uint64_t largest = 0;

  __device__ static __forceinline__ bool usual(const Vectors& v, Unit& unit) {
    unit = wide_sums<Complex<float>, kPass>(v);
    return unit.largest < kInfBits;
  }
  __device__ static __forceinline__ Unit settled(const Vectors& v) {
    Unit unit;
    if (usual(v, unit)) return unit;
    unit.nonfinite = count_nonfinite<Complex<float>>(v);
    unit.sq = unit.absolute = 0;
    return unit;
  }
  __device__ __forceinline__ uint64_t max_bits() const { return abs_bits(sqrt(bit_cast<double>(largest))); }
};

/// largest: |z|. |z|^2 is right, and so is its maximum, where it lies in [2^-800, 2^960]; everywhere else |z| is
/// computed by hypot.
template <Pass kPass>
struct Gather<Complex<double>, kPass> {
  uint64_t largest = 0;

  __device__ static __forceinline__ bool usual(const Vectors& v, Unit& unit) {
    unit = wide_sums<Complex<double>, kPass>(v);
    const double top = bit_cast<double>(unit.largest);
    unit.largest = abs_bits(sqrt(top));
    return top >= 0x1p-800 && top <= 0x1p+960;
  }
  __device__ static __forceinline__ Unit settled(const Vectors& v) {
    Unit unit;
    if (usual(v, unit)) return unit;
    const Exact exact = exact_sums<Complex<double>>(v);
    unit.largest = exact.max_bits;
    if (exact.max_bits < kInfBits) {
      unit.set_sq(term_of(exact.sq, exact.bin));
      if constexpr (has_sums(kPass)) unit.set_absolute(term_of(exact.absolute));
    } else {  // |z| may be infinite where neither part is
      unit.nonfinite = count_nonfinite<Complex<double>>(v);
      unit.sq = unit.absolute = 0;
    }
    return unit;
  }
  __device__ __forceinline__ uint64_t max_bits() const { return largest; }
};

template <class T, Pass kPass>
__device__ __forceinline__ void add_unit(const Unit& unit, Gather<T, kPass>& gather, Sums<kPass>& s) {
  using Largest = decltype(gather.largest);
  gather.largest = Largest(unit.largest) > gather.largest ? Largest(unit.largest) : gather.largest;
  deposit(s.sq, {unit.sq, unit.sq_exponent});
  if constexpr (has_sums(kPass)) {
    deposit(s.absolute, {unit.absolute, unit.absolute_exponent});
    s.nonzero += unit.nonzero;
  }
}

/// For what is unusual, and for the ends of tensors and misaligned ones.
template <class T, Pass kPass>
__device__ GRADKERN_NOINLINE Unit settled_unit(const char* at, uint32_t bytes) {
  return Gather<T, kPass>::settled(load_unit_carefully(at, bytes));
}

// ------------------------------------------------------------------------------- any other order

/// The orders -inf and any other p of a lane's unit: the smallest magnitude, then the powers relative to the
/// dominant one (core/norm.h).
template <class T>
__device__ PowerSum power_of_unit(const Vectors& v, uint32_t bytes, const NormOrder& order) {
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

template <class T>
__device__ __forceinline__ void add_power(const NormOrder& order, const Vectors& v, uint32_t bytes, Sums<Pass::kPower>& s) {
  s.power = combine(order, s.power, power_of_unit<T>(v, bytes, order));
}

// ----------------------------------------------------------------------- from lanes to tensors

template <Pass kPass>
__device__ __forceinline__ Sums<kPass> nothing(const NormOrder& order) {
  Sums<kPass> s;
  if constexpr (kPass == Pass::kPower) s.power = empty_partial(order).power;
  return s;
}

/// `a` comes before `b`, which matters to kPower alone.
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

/// What core/norm.h makes of it. Beside something that is not finite no sum was gathered.
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
