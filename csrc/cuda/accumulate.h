// The sums that one lane gathers from the elements of a unit, a batch at a time: one Gather for each kind of element type.
//
// A lane adds its part of every batch in order, and the sums of the 32 lanes are added as a tree. The result for a unit
// is one float64, a term of its tensor's ExactSum. Error bound of this term, in addition to the bounds in core/norm.h and
// core/exact_sum.h (u = 2^-53):
//   - float32, bfloat16, float16, complex64: squares are exact in float64; |z|^2 of complex64 is rounded once. A lane adds
//     at most 128 squares and the tree 5 sums: 134 u < 2^-45 relative, 2^-46 on the norm.
//   - bfloat16: the conversion turns zero into 2^-127 and a subnormal into a value below 2^-126. The error of the sum of
//     squares is at most 2^12 * 2^-252: 2^-54 of the largest square if the largest element of the unit is at least 2^-93.
//     That of the sum of |x| is at most 2^12 * 2^-126: 2^-44 of the largest element if that is at least 2^-70.
//   - float16: the conversion turns zero into 2^-127. The smallest other magnitude is 2^-24.
//   - float32 pairs (sm_86 and others), see squares_in_pairs(): the error is 2^-31 of a lane's sum of a batch. Sums below
//     the range of the pairs have an absolute error of 2^-31 * 2^-86 in each of 128 sums, and the unit's largest square is
//     at least 2^-76: 2^-34. Together 2^-30, which is 2^-31 on the norm before its rounding to float32 (2^-25): less than
//     0.52 ulp. Results in float64 do not use pairs.
//   - float64, complex128: a square has an error of u (complex128: 2u). With at most 32 additions and the tree's 5, the
//     sum has an error of 39 u, and the norm of 21 u with that of the root: 2.4e-15. The contract allows 1e-14.
//
// A warp first reads a unit in the fast way. The unit's largest magnitude then shows whether the sums are valid. If it is
// near the ends of the range, the unit is read again (segment.h). Non-finite elements are counted while they are in
// registers; a unit that has some has no sums.
#pragma once

#include <type_traits>

#include "cuda/magnitudes.h"
#include "cuda/sums.h"

// How squares of float32, bfloat16 and float16 are added: in float64 (0) or in pairs of float32 (1). A multiprocessor of
// sm_80, sm_90 and sm_100 does 32 or 64 float64 operations per cycle, more than memory can supply. On other architectures
// it does two. The choice is made for the compiled architecture. If a binary will run on a related architecture with
// slower float64 (sm_80 code on sm_86, sm_100 code on sm_103), add that one to TORCH_CUDA_ARCH_LIST.
// benchmarks/accumulation.cu measures both.
#if !defined(GRADKERN_COMPENSATED)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
#define GRADKERN_COMPENSATED 0
#else
#define GRADKERN_COMPENSATED 1
#endif
#endif

namespace gradkern::cuda {

/// A unit's sums times 2^(-1200 * bin), see ScaledSum. `largest`: bits in the order of magnitudes, see the Gather.
template <class Bits>
struct UnitSums {
  double sq = 0, absolute = 0;
  Bits largest = 0;
  int32_t bin = 0;
  uint32_t nonfinite = 0, nonzero = 0;  ///< of one lane
};

// The members of a Gather:
//   add(vectors)       adds a batch;
//   sums()             returns the sums of the lane;
//   usual(largest)     whether the sums of a unit with this largest magnitude are valid;
//   finite(largest)    whether the unit has sums;
//   max_bits(largest)  the bits of the largest |x| as float64.

// ---------------------------------------------------------------- float32, bfloat16, float16

__device__ __forceinline__ int32_t nearest(float x) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(x);
#else
  return int32_t(lrintf(x));
#endif
}

/// `sq` plus the sum of squares of a batch, computed in float32 for architectures with few float64 units. All magnitudes
/// are below 2^(e+1), so that the sum of 32 squares is below 2^(2e+7). `sum` starts at 2^(2e+8) and stays below twice that.
/// Its spacing is therefore always q = 2^(2e-15). Each square adds a multiple of q to `sum`, which fmaf yields exactly. The
/// remainder of the square (at most q/2, rounded to 24 bits) is added to `rest`. |rest| <= 16 q, so that its additions have
/// an error of at most 32 * 2^-21 q = 2^-31 * 2^2e. All values are in float32's range for e in [-43, 59].
template <class T>
__device__ __forceinline__ double squares_in_pairs(const Vectors& v, int32_t e, double sq) {
  const uint32_t start = uint32_t(2 * e + 8 + 127) << 23;
  float sum = bit_cast<float>(start), rest = 0;
  for_each_element<T>(v, [&](T element) {
    const float x = widen(element), next = fmaf(x, x, sum);
    rest += fmaf(x, x, -(next - sum));
    sum = next;
  });
  const auto steps = int64_t(bit_cast<uint32_t>(sum) - start);
  const float in_units = rest * bit_cast<float>(uint32_t(24 + 15 - 2 * e + 127) << 23);
  const auto unit = bit_cast<double>(uint64_t(1023 + 2 * e - 39) << 52);
  return fma(double((steps << 24) + int64_t(nearest(in_units))), unit, sq);
}

/// largest: bits of the type. Within a lane, 16-bit types keep two, side by side, with arbitrary signs.
template <class T, Pass kPass>
struct Gather {
  using Bits = uint32_t;
  static constexpr bool kSums = has_sums(kPass), kHalves = sizeof(T) == 2;
  static constexpr bool kBFloat16 = std::is_same_v<T, BFloat16>, kFloat16 = std::is_same_v<T, Float16>;
  static constexpr bool kPairs = GRADKERN_COMPENSATED && kPass == Pass::kPlain;
  static constexpr uint32_t kInfinity = kFloat16 ? 0x7c00u : kBFloat16 ? 0x7f80u : 0x7f800000u;
  // Biased exponents. A unit's sums are valid if its largest magnitude is from the first to below the second. The third is
  // the smallest that squares_in_pairs() takes.
  static constexpr uint32_t kLeastExponent = 127 - (kPairs ? 38 : kSums ? 70 : 93), kMostExponent = 127 + 60;
  static constexpr uint32_t kPairsExponent = 127 - 43;
  static constexpr bool kTinyIsUnusual = kBFloat16 || (kPairs && !kFloat16), kHugeIsUnusual = kPairs && !kFloat16;
  static constexpr int kFractionBits = kHalves ? 7 : 23;  ///< of float32 and bfloat16
  static constexpr uint32_t kLeast = kTinyIsUnusual ? kLeastExponent << kFractionBits : 1u;
  static constexpr uint32_t kMost = kHugeIsUnusual ? kMostExponent << kFractionBits : kInfinity;

  double sq[2] = {0, 0}, absolute[2] = {0, 0};
  uint32_t largest = 0, nonfinite = 0, nonzero = 0;

  __device__ __forceinline__ void add_one(uint32_t w, int slot, int half, uint32_t bits) {
    const double x = InFloat64<T>::one(w, half);
    sq[slot] = fma(x, x, sq[slot]);
    if (kSums) absolute[slot] += fabs(x);
    if (kSums) nonzero += bits != 0;
  }

  __device__ __forceinline__ void add(const Vectors& v) {
    if constexpr (kPairs) {
      const uint32_t own = larger_magnitude<T>(0, v);
      const uint32_t exponent = bit_cast<uint32_t>(magnitude_of(of_both(own))) >> 23;
      const uint32_t e = exponent < kPairsExponent ? kPairsExponent : exponent < kMostExponent ? exponent : kMostExponent - 1;
      sq[0] = squares_in_pairs<T>(v, int32_t(e) - 127, sq[0]);
      largest = larger_magnitude(largest, own, T{});
    } else {
      for_each_word(v, [&](uint32_t w, int slot) {
        if constexpr (kHalves) {
          add_one(w, 0, 0, w & 0x7fffu);
          add_one(w, 1, 1, w & 0x7fff0000u);
        } else {
          add_one(w, slot, 0, w & 0x7fffffffu);
        }
      });
      largest = larger_magnitude<T>(largest, v);
    }
    if (__builtin_expect(nonfinite_bits<T>(largest), 0)) nonfinite += count_nonfinite_words<T>(v);
  }

  __device__ __forceinline__ UnitSums<Bits> sums() const {
    constexpr double kUnscale = kPairs || InFloat64<T>::kScaleLog2 == 0 ? 1 : 0x1p+128;
    static_assert(InFloat64<T>::kScaleLog2 == 0 || InFloat64<T>::kScaleLog2 == -128);
    return {(sq[0] + sq[1]) * kUnscale * kUnscale, (absolute[0] + absolute[1]) * kUnscale, of_both(largest), 0, nonfinite, nonzero};
  }
  __device__ static __forceinline__ bool usual(Bits largest) {
    return largest == 0 || largest - kLeast < kMost - kLeast || largest >= kInfinity;
  }
  __device__ static __forceinline__ bool finite(Bits largest) { return largest < kInfinity; }
  __device__ static __forceinline__ uint64_t max_bits(Bits largest) { return abs_bits(double(magnitude_of(largest))); }

 private:
  __device__ static __forceinline__ uint32_t of_both(uint32_t largest) {
    const uint32_t low = largest & 0x7fffu, high = largest >> 16 & 0x7fffu;
    return !kHalves ? largest & 0x7fffffffu : low > high ? low : high;
  }
  __device__ static __forceinline__ float magnitude_of(Bits bits) {
    if constexpr (kHalves) return widen(T{uint16_t(bits)});
    else return bit_cast<float>(bits);
  }
};

// ------------------------------------------------------------------- float64, complex64, complex128

/// Sums in float64, without scaling. largest: the bits of the largest |x| or |z|^2.
template <class T, Pass kPass>
struct WideGather {
  using Bits = uint64_t;
  static constexpr bool kSums = has_sums(kPass);

  double sq = 0, absolute = 0;
  uint64_t largest = 0;
  uint32_t nonfinite = 0, nonzero = 0;

  __device__ __forceinline__ void add_one(double x) {
    take(abs_bits(x));
    sq = fma(x, x, sq);
    if (kSums) absolute += fabs(x);
    if (kSums) nonzero += cuda::nonzero(x);
  }
  template <class Real>
  __device__ __forceinline__ void add_one(Complex<Real> z) {
    const double re = z.re, im = z.im, square = fma(re, re, im * im);
    take(abs_bits(square));
    sq += square;
    if (kSums) absolute += sqrt(square);
    if (kSums) nonzero += cuda::nonzero(z);
  }
  __device__ __forceinline__ void take(uint64_t bits) { largest = bits > largest ? bits : largest; }

  __device__ __forceinline__ void add(const Vectors& v) {
    for_each_element<T>(v, [&](T x) { add_one(x); });
    // |z|^2 of complex128 may be infinite for a finite z. Such units are read again, and counted then.
    if (!std::is_same_v<T, Complex<double>> && __builtin_expect(largest >= kInfBits, 0))
      for_each_element<T>(v, [&](T x) { nonfinite += !cuda::finite(x); });
  }
  __device__ __forceinline__ UnitSums<Bits> sums() const { return {sq, absolute, largest, 0, nonfinite, nonzero}; }
  __device__ static __forceinline__ bool finite(Bits largest) { return largest < kInfBits; }
};

/// largest: |x|.
template <Pass kPass>
struct Gather<double, kPass> : WideGather<double, kPass> {
  __device__ static __forceinline__ bool usual(uint64_t largest) {
    return bin_of(bit_cast<double>(largest)) == 0 || largest >= kInfBits;
  }
  __device__ static __forceinline__ uint64_t max_bits(uint64_t largest) { return largest; }
};

/// largest: |z|^2, which is in float64's range.
template <Pass kPass>
struct Gather<Complex<float>, kPass> : WideGather<Complex<float>, kPass> {
  __device__ static __forceinline__ bool usual(uint64_t) { return true; }
  __device__ static __forceinline__ uint64_t max_bits(uint64_t largest) { return abs_bits(sqrt(bit_cast<double>(largest))); }
};

/// largest: |z|^2. Outside [2^-800, 2^960] the unit is read again, and |z| computed by hypot (segment.h).
template <Pass kPass>
struct Gather<Complex<double>, kPass> : WideGather<Complex<double>, kPass> {
  __device__ static __forceinline__ bool usual(uint64_t largest) {
    const double square = bit_cast<double>(largest);
    return square >= 0x1p-800 && square <= 0x1p+960;
  }
  __device__ static __forceinline__ uint64_t max_bits(uint64_t largest) { return largest; }
};

}  // namespace gradkern::cuda
