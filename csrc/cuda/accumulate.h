// What one lane gathers of the elements of a unit, a batch at a time: one Gather per kind of element type.
//
// A unit's sums (sq and, if asked for, |x|) begin at zero. A lane adds up its share of every batch in order, and
// the 32 lanes are added in a tree: one float64 a unit, which is one term of its tensor's ExactSum. Error bound of that
// term, beside the ones in core/norm.h and core/exact_sum.h (u = 2^-53):
//   - float32, bfloat16, float16, complex64: squares are exact in float64, complex64's |z|^2 rounded once. A lane adds
//     at most 128 of them, the tree 5: 134 u < 2^-45 relative, 2^-46 on the norm.
//   - bfloat16's exponent gets its bias in a way that makes 2^-127 of zero, and of subnormals something below 2^-126: an error
//     of 2^12 * 2^-252 at most, where the largest element of the unit is 2^-93 or more 2^-54 of its square; of the
//     sum of |x| 2^12 * 2^-126, where the largest is 2^-70 or more 2^-44. float16's zeros become 2^-127, beside 2^-24 or more.
//   - float32 pairs (sm_86 and others): see squares_in_pairs. 2^-31 of a lane's sum in a batch; where that is below what
//     the pairs hold, 2^-31 * 2^-86 in each of 128 such sums, beside a largest square of 2^-76 or more in the unit:
//     2^-34. Together 2^-30, 2^-31 on the norm before its rounding to float32 (2^-25): less than 0.52 ulp. Results in
//     float64 do not come from them.
//   - float64, complex128: a square carries u (complex128's two u), at most 32 additions and the tree's 5: 39 u on the
//     sum, 21 u on the norm with the root's own: 2.4e-15, against the contract's 1e-14.
//
// A warp reads fast and sees from the unit's largest magnitude whether that was right. Elements that are not finite are
// counted from the registers they are in; no sum is kept beside them. Units near the ends of a range are read again
// (segment.h).
#pragma once

#include <type_traits>

#include "cuda/magnitudes.h"
#include "cuda/sums.h"

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

/// A unit's sums times 2^(-1200 * bin), see ScaledSum. `largest`: bits that order as magnitudes do, see the Gather.
template <class Bits>
struct UnitSums {
  double sq = 0, absolute = 0;
  Bits largest = 0;
  int32_t bin = 0;
  uint32_t nonfinite = 0, nonzero = 0;  ///< of a lane, always
};

// A Gather has
//   add(vectors)     a batch;
//   sums()           of the lane;
//   usual(largest)   of a whole unit: whether that and the sums are right;
//   finite(largest)  whether there are any sums;
//   max_bits(largest)  |x| in float64 of that.

// ---------------------------------------------------------------- float32, bfloat16, float16

__device__ __forceinline__ int32_t nearest(float x) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(x);
#else
  return int32_t(lrintf(x));
#endif
}

/// `sq` plus the sum of squares of a batch in float32 alone, for architectures with few float64 units. Let no magnitude
/// reach 2^(e+1), so that 32 squares come to less than 2^(2e+7). `sum` starts at 2^(2e+8) and stays within a factor of
/// two of that: its spacing is q = 2^(2e-15) throughout, what a square adds to it is a multiple of q found exactly, and the
/// rest of the square (at most q/2, rounded to 24 bits) goes to `rest`. |rest| <= 16 q, so that its additions
/// err by 32 * 2^-21 q = 2^-31 * 2^2e at most. In float32's range for e in [-43, 59].
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

/// largest: by the bits of the type; within a lane of two halves side by side, and with any sign.
template <class T, Pass kPass>
struct Gather {
  using Bits = uint32_t;
  static constexpr bool kSums = has_sums(kPass), kHalves = sizeof(T) == 2;
  static constexpr bool kBFloat16 = std::is_same_v<T, BFloat16>, kFloat16 = std::is_same_v<T, Float16>;
  static constexpr bool kPairs = GRADKERN_COMPENSATED && kPass == Pass::kPlain;
  static constexpr uint32_t kInfinity = kFloat16 ? 0x7c00u : kBFloat16 ? 0x7f80u : 0x7f800000u;
  // Biased exponents: a unit's largest magnitude is nothing unusual from the first to below the second; the third
  // is the least that squares_in_pairs is given.
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

/// Sums in float64 without scaling. largest: bits of the largest |x|, or of the largest |z|^2.
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
    // |z|^2 of complex128 may be infinite where z is not: such units are read again, and counted then.
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

/// largest: |z|^2, which is within float64's range.
template <Pass kPass>
struct Gather<Complex<float>, kPass> : WideGather<Complex<float>, kPass> {
  __device__ static __forceinline__ bool usual(uint64_t) { return true; }
  __device__ static __forceinline__ uint64_t max_bits(uint64_t largest) { return abs_bits(sqrt(bit_cast<double>(largest))); }
};

/// largest: |z|^2 where that lies in [2^-800, 2^960]; everywhere else |z| is computed by hypot (segment.h).
template <Pass kPass>
struct Gather<Complex<double>, kPass> : WideGather<Complex<double>, kPass> {
  __device__ static __forceinline__ bool usual(uint64_t largest) {
    const double square = bit_cast<double>(largest);
    return square >= 0x1p-800 && square <= 0x1p+960;
  }
  __device__ static __forceinline__ uint64_t max_bits(uint64_t largest) { return largest; }
};

}  // namespace gradkern::cuda
