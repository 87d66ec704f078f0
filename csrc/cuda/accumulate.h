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

// See Gather::kHoldsBatch.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define GRADKERN_HOLDS_BFLOAT16 1
#else
#define GRADKERN_HOLDS_BFLOAT16 0
#endif

namespace gradkern::cuda {

/// The sums of one lane. Magnitudes are the bits of |x| in float64, or of |z|^2 for complex numbers.
struct LaneSums {
  double sq = 0, absolute = 0;
  uint64_t largest = 0;
  uint32_t nonfinite = 0, nonzero = 0;
  uint64_t usual_from = 0, usual_to = 0;  ///< the sums are valid if the largest magnitude of all lanes is in [from, to)
};

// The members of a Gather:
//   add(vectors)            adds a batch, by add_squares(vectors) and add_largest(vectors);
//   add_compactly(vectors)  the same in a loop, with the same bits;
//   kHoldsBatch             whether a branch between these two should hold the batch in registers;
//   kStep                   rows of a step of a compact loop;
//   all_finite()            whether all elements so far were finite; in float64, also their squares;
//   squares(), absolutes()  the sums of the lane;
//   largest_bits()          the largest magnitude, see LaneSums;
//   kUsualFrom, kUsualTo    see LaneSums.

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
  static constexpr bool kCounts = has_counts(kPass), kSums = has_absolutes(kPass), kHalves = sizeof(T) == 2;
  static constexpr bool kBFloat16 = std::is_same_v<T, BFloat16>, kFloat16 = std::is_same_v<T, Float16>;
  static constexpr int kStep = kSums ? 2 : 1;
  static constexpr bool kPairs = GRADKERN_COMPENSATED && kPass == Pass::kPlain;
  /// Each number in float64 needs a register of zeros. With a branch between squares and magnitudes, sm_100 moves zeros less
  /// often: 138 instructions instead of 160.
  static constexpr bool kHoldsBatch = GRADKERN_HOLDS_BFLOAT16 && kBFloat16 && !kPairs;
  static constexpr double kUnscale = kPairs || InFloat64<T>::kScaleLog2 == 0 ? 1 : 0x1p+128;
  static_assert(InFloat64<T>::kScaleLog2 == 0 || InFloat64<T>::kScaleLog2 == -128);
  /// For bfloat16, see above. For pairs also the largest that squares_in_pairs() takes. Others have no limits.
  static constexpr bool kTinyIsUnusual = kBFloat16 || (kPairs && !kFloat16), kHugeIsUnusual = kPairs && !kFloat16;
  static constexpr int kLeastExponent = kPairs ? -38 : kSums ? -70 : -93, kMostExponent = 60;
  static constexpr uint64_t kUsualFrom = kTinyIsUnusual ? uint64_t(1023 + kLeastExponent) << 52 : 0;
  static constexpr uint64_t kUsualTo = kHugeIsUnusual ? uint64_t(1023 + kMostExponent) << 52 : kInfBits;
  static constexpr uint32_t kPairsLeast = 127 - 43, kPairsMost = 127 + kMostExponent - 1;  ///< biased, of squares_in_pairs()

  double sq[2] = {0, 0}, absolute[2] = {0, 0};
  uint32_t largest = 0;
  std::conditional_t<kHalves, uint32_t, float> nonzero = 0;  ///< two counts side by side; or one, which is cheap in float32

  __device__ __forceinline__ void add_one(uint32_t w, int slot, int half) {
    const double x = InFloat64<T>::one(w, half);
    sq[slot] = fma(x, x, sq[slot]);
    if (kSums) absolute[slot] += fabs(x);
  }

  template <int kCount>
  __device__ __forceinline__ void add_squares(const VectorRows<kCount>& v) {
    if constexpr (kCounts && kHalves) for_each_word(v, [&](uint32_t w, int) { nonzero += nonzero_halves(w); });
    if constexpr (kCounts && !kHalves) for_each_element<float>(v, [&](float x) { nonzero += x != 0 ? 1.0f : 0.0f; });
    if constexpr (kPairs) {
      const uint32_t own = larger_magnitude<T>(0, v);
      const uint32_t exponent = bit_cast<uint32_t>(larger(own)) >> 23;
      const uint32_t e = exponent < kPairsLeast ? kPairsLeast : exponent < kPairsMost ? exponent : kPairsMost;
      sq[0] = squares_in_pairs<T>(v, int32_t(e) - 127, sq[0]);
      largest = larger_magnitude(largest, own, T{});
    } else {
      for_each_word(v, [&](uint32_t w, int slot) {
        if constexpr (kHalves) {
          add_one(w, 0, 0);
          add_one(w, 1, 1);
        } else {
          add_one(w, slot, 0);
        }
      });
    }
  }
  template <int kCount>
  __device__ __forceinline__ void add_largest(const VectorRows<kCount>& v) {
    if constexpr (!kPairs) largest = larger_magnitude<T>(largest, v);
  }
  template <int kCount>
  __device__ __forceinline__ void add(const VectorRows<kCount>& v) {
    add_squares(v);
    add_largest(v);
  }

  __device__ __forceinline__ void add_compactly(const Vectors& v) {
    if constexpr (kPairs) add(v);
    else for_each_rows<kStep>(v, [&](const VectorRows<kStep>& rows) { add(rows); });
  }
  __device__ __forceinline__ bool all_finite() const { return cuda::all_finite<T>(largest); }
  __device__ __forceinline__ uint32_t nonzeros() const {
    const auto count = uint32_t(nonzero);
    return kHalves ? (count & 0xffffu) + (count >> 16) : count;
  }
  __device__ __forceinline__ double squares() const { return (sq[0] + sq[1]) * kUnscale * kUnscale; }
  __device__ __forceinline__ double absolutes() const { return (absolute[0] + absolute[1]) * kUnscale; }
  __device__ __forceinline__ uint64_t largest_bits() const { return abs_bits(double(larger(largest))); }

 private:
  /// The larger of two magnitudes side by side, or the one.
  __device__ static __forceinline__ float larger(uint32_t bits) {
    if constexpr (kHalves) {
      const uint32_t low = bits & 0x7fffu, high = bits >> 16 & 0x7fffu;
      return widen(T{uint16_t(low > high ? low : high)});
    } else {
      return bit_cast<float>(bits & 0x7fffffffu);
    }
  }
};

// ------------------------------------------------------------------- float64, complex64, complex128

/// Sums in float64, without scaling. largest: the bits of the largest |x| or |z|^2, with any sign.
template <class T, Pass kPass>
struct WideGather {
  static constexpr bool kCounts = has_counts(kPass), kSums = has_absolutes(kPass);
  static constexpr bool kHoldsBatch = false;
  static constexpr int kStep = kSums && std::is_same_v<T, double> ? 2 : 1;

  double sq = 0, absolute = 0;
  uint64_t largest = 0;
  uint32_t nonzero = 0;

  __device__ __forceinline__ void add_one(double x) {
    take(x);
    sq = fma(x, x, sq);
    if (kSums) absolute += fabs(x);
    if (kCounts) nonzero += cuda::nonzero(x);
  }
  template <class Real>
  __device__ __forceinline__ void add_one(Complex<Real> z) {
    const double re = z.re, im = z.im, square = fma(re, re, im * im);
    take(square);
    sq += square;
    if (kSums) absolute += sqrt(square);
    if (kCounts) nonzero += cuda::nonzero(z);
  }
  /// On architectures with many float64 units, by one comparison in float64. It loses NaN, which the squares keep.
  __device__ __forceinline__ void take(double x) {
    if constexpr (GRADKERN_COMPENSATED) largest = abs_bits(x) > largest ? abs_bits(x) : largest;
    else largest = fabs(x) > fabs(bit_cast<double>(largest)) ? bit_cast<uint64_t>(x) : largest;
  }

  template <int kCount>
  __device__ __forceinline__ void add(const VectorRows<kCount>& v) {
    for_each_element<T>(v, [&](T x) { add_one(x); });
  }
  __device__ __forceinline__ void add_squares(const Vectors& v) { add(v); }
  __device__ __forceinline__ void add_largest(const Vectors&) {}  // add_one() has done it
  __device__ __forceinline__ void add_compactly(const Vectors& v) {
    for_each_rows<kStep>(v, [&](const VectorRows<kStep>& rows) { add(rows); });
  }
  __device__ __forceinline__ bool all_finite() const { return sq < infinity(); }
  __device__ __forceinline__ uint32_t nonzeros() const { return nonzero; }
  __device__ __forceinline__ double squares() const { return sq; }
  __device__ __forceinline__ double absolutes() const { return absolute; }
  __device__ __forceinline__ uint64_t largest_bits() const {
    return sq == sq ? abs_bits(bit_cast<double>(largest)) : abs_bits(quiet_nan());
  }
};

template <Pass kPass>
struct Gather<double, kPass> : WideGather<double, kPass> {
  static constexpr uint64_t kUsualFrom = uint64_t(1023 - 400) << 52, kUsualTo = uint64_t(1023 + 480) << 52;  ///< as bin_of()
};

/// |z|^2 is in float64's range.
template <Pass kPass>
struct Gather<Complex<float>, kPass> : WideGather<Complex<float>, kPass> {
  static constexpr uint64_t kUsualFrom = 0, kUsualTo = kInfBits;
};

/// Outside these limits |z| is computed by hypot (segment.h).
template <Pass kPass>
struct Gather<Complex<double>, kPass> : WideGather<Complex<double>, kPass> {
  static constexpr uint64_t kUsualFrom = uint64_t(1023 - 800) << 52, kUsualTo = uint64_t(1023 + 960) << 52;
};

}  // namespace gradkern::cuda
