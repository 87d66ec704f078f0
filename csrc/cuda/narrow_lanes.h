// float32, bfloat16 and float16: squares added up in float64, or in pairs of float32 where float64
// is slow.
//
// A multiprocessor of sm_80, sm_90 and sm_100 does 32 or 64 float64 operations a cycle, more than memory
// can feed (two an element); those of the other architectures do two, which is up to 2.5 times
// too few. The choice is made for the architecture that is compiled for: where a binary runs on a relative
// with slower float64 (sm_80's on sm_86, sm_100's on sm_103), list that one in TORCH_CUDA_ARCH_LIST too.
// benchmarks/accumulation.cu measures both ways on a GPU; CUDAFLAGS=-DGRADKERN_COMPENSATED=0
// or 1 chooses one for all architectures.
#pragma once

#include <type_traits>

#include "cuda/lane_sums.h"

#if !defined(GRADKERN_COMPENSATED)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
#define GRADKERN_COMPENSATED 0
#else
#define GRADKERN_COMPENSATED 1
#endif
#endif

namespace gradkern::cuda {

__device__ __forceinline__ uint32_t infinity_bits(float) { return 0x7f800000u; }
__device__ __forceinline__ uint32_t infinity_bits(BFloat16) { return 0x7f80u; }
__device__ __forceinline__ uint32_t infinity_bits(Float16) { return 0x7c00u; }

/// An element from its bits without the sign.
__device__ __forceinline__ float magnitude_of(uint32_t bits, float) { return bit_cast<float>(bits); }
template <class T>
__device__ __forceinline__ float magnitude_of(uint32_t bits, T) { return widen(T{uint16_t(bits)}); }

/// Calls add(bits without the sign, slot) for the elements of a vector.
template <class T, class Add>
__device__ __forceinline__ void for_each_magnitude(const uint4& v, const Add& add) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      add(word(v, i) & 0x7fffffffu, i % 2);
    } else {
      add(word(v, i) & 0x7fffu, 0);
      add(word(v, i) >> 16 & 0x7fffu, 1);
    }
  }
}

/// The largest magnitude, from its bits; and what it says where it is inf or NaN: true.
template <class T>
__device__ __forceinline__ bool settle_largest(const char* data, uint32_t bytes, uint32_t largest,
                                               LaneSums& out) {
  out.max_bits = abs_bits(double(magnitude_of(largest, T{})));
  if (largest < infinity_bits(T{})) return false;
  out.sq = out.absolute = largest > infinity_bits(T{}) ? quiet_nan() : infinity();
  out.nonfinite = count_nonfinite<T>(data, bytes);
  return true;
}

__device__ __forceinline__ double widen_magnitude(uint32_t bits, float) {
  return double(bit_cast<float>(bits));
}
/// The 16-bit types: exponent and fraction are put where float64 has them, and one
/// multiplication repairs the exponent's bias, for subnormals and zero as well. Exact for finite
/// numbers, and not slowed down by the float32-to-float64 conversion, which is a narrow pipe on
/// every GPU. Infinity and NaN come out finite and are repaired at the end.
__device__ __forceinline__ double widen_magnitude(uint32_t bits, BFloat16) {
  return bit_cast<double>(uint64_t(bits) << 45) * 0x1p+896;
}
__device__ __forceinline__ double widen_magnitude(uint32_t bits, Float16) {
  return bit_cast<double>(uint64_t(bits) << 42) * 0x1p+1008;
}

template <class T, bool kSums>
struct Float64Lane {
  double sq[2] = {0, 0}, absolute[2] = {0, 0};
  uint32_t largest = 0, nonzero = 0;

  __device__ __forceinline__ void take(const uint4& v) {
    for_each_magnitude<T>(v, [this](uint32_t bits, int slot) {
      const double x = widen_magnitude(bits, T{});
      sq[slot] += x * x;
      largest = bits > largest ? bits : largest;
      if (kSums) {
        absolute[slot] += x;
        nonzero += bits != 0;
      }
    });
  }

  __device__ __forceinline__ LaneSums finish(const char* data, uint32_t bytes) const {
    LaneSums out;
    out.sq = sq[0] + sq[1];
    out.absolute = absolute[0] + absolute[1];
    out.nonzero = nonzero;
    settle_largest<T>(data, bytes, largest, out);
    return out;
  }
};

/// An unevaluated sum of two float32 that grows by Knuth's TwoSum. The functions keep the compiler
/// from contracting a product into an addition.
struct FloatPair {
  float hi = 0, lo = 0;

#if defined(__CUDA_ARCH__)
  static __device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
  static __device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
#else
  static float plus(float a, float b) { return a + b; }
  static float times(float a, float b) { return a * b; }
#endif

  __device__ __forceinline__ void add(float x) {
    const float sum = plus(hi, x), rounded = plus(sum, -hi);
    lo = plus(lo, plus(plus(hi, -plus(sum, -rounded)), plus(x, -rounded)));
    hi = sum;
  }
  __device__ __forceinline__ void add_square(float x) {
    const float square = times(x, x);
    add(square);
    lo = plus(lo, fmaf(x, x, -square));  // nothing for the 16-bit types, whose squares are exact
  }
  __device__ __forceinline__ double value() const { return double(hi) + double(lo); }
};

/// Elements are multiplied by 2^32, which is exact. Right where a lane's largest element lies in
/// [2^-84, 2^26] (float16 always does): what underflows in a lane of at most 2^11 elements is below
/// 2^-138 then, 2^-34 of the largest square, and what overflows does not exist. Elsewhere, for
/// gradients that vanish or explode, the lane's elements are read again.
template <class T>
struct CompensatedLane {
  FloatPair sq[2];
  uint32_t largest = 0;

  __device__ __forceinline__ void take(const uint4& v) {
    for_each_magnitude<T>(v, [this](uint32_t bits, int slot) {
      const float x = FloatPair::times(magnitude_of(bits, T{}), 0x1p+32f);
      if constexpr (sizeof(T) == 4) sq[slot].add_square(x);
      else sq[slot].add(FloatPair::times(x, x));
      largest = bits > largest ? bits : largest;
    });
  }

  __device__ __forceinline__ LaneSums finish(const char* data, uint32_t bytes) const {
    LaneSums out;
    out.sq = (sq[0].value() + sq[1].value()) * 0x1p-64;
    if (settle_largest<T>(data, bytes, largest, out) || largest == 0) return out;
    const double x = bit_cast<double>(out.max_bits);
    if (x < 0x1p-84 || x > 0x1p+26) finish_scaled<T, false>(data, bytes, x, out);
    return out;
  }
};

/// Beside the sum of |x| and the count of zeros, which few ask for, four loads and four pairs would not
/// fit the registers.
template <class T, bool kSums>
using NarrowLane =
    std::conditional_t<GRADKERN_COMPENSATED && !kSums, CompensatedLane<T>, Float64Lane<T, kSums>>;

}  // namespace gradkern::cuda
