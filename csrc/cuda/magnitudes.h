// Operations on the bits of float32, bfloat16 and float16: conversion to float64, the larger magnitude, tests for inf and
// NaN.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/elements.h"

namespace gradkern::cuda {

/// Calls visit(word, slot) for the words of a batch. The slot alternates between 0 and 1.
template <int kCount, class Visit>
__device__ __forceinline__ void for_each_word(const VectorRows<kCount>& v, const Visit& visit) {
#pragma unroll
  for (int r = 0; r < kCount; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) visit(word(v.row[r], i), i % 2);
}

/// Conversion of an element to float64, multiplied by 2^kScaleLog2, with or without its sign. 16-bit types avoid the
/// instruction that converts float32 to float64, because its throughput is low on every GPU.
template <class T>
struct InFloat64;
template <>
struct InFloat64<float> {
  static constexpr int kScaleLog2 = 0;
  static __device__ __forceinline__ double one(uint32_t w, int) { return double(bit_cast<float>(w)); }
};
/// (w & mask) | set in one instruction. From and.b32 and or.b32 with constants, the compiler makes two.
__device__ __forceinline__ uint32_t mask_and_set(uint32_t w, uint32_t mask, uint32_t set) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(w), "r"(mask), "r"(set));
  return out;
#else
  return (w & mask) | set;
#endif
}
/// A float64 whose lower word is zero. From a shift by 32 bits, the compiler moves the zero more often (sm_80).
__device__ __forceinline__ double with_high_word(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __hiloint2double(int(bits), 0);
#else
  return bit_cast<double>(uint64_t(bits) << 32);
#endif
}
/// Shifts exponent and fraction to their places in float64 and sets the two upper bits of the exponent. Exact for normal
/// numbers. Zero becomes 2^-127, and a subnormal a value below 2^-126, before scaling.
template <>
struct InFloat64<BFloat16> {
  static constexpr int kScaleLog2 = -128;
  static __device__ __forceinline__ double one(uint32_t w, int half) {
    return with_high_word(mask_and_set(half ? w >> 3 : w << 13, 0x0fffe000u, 0x30000000u));
  }
};
/// Two float16 without their signs, in one instruction.
__device__ __forceinline__ uint32_t magnitudes_of_halves(uint32_t w) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("abs.f16x2 %0, %1;" : "=r"(out) : "r"(w));
  return out;
#else
  return w & 0x7fff7fffu;
#endif
}
/// 1 for each of two 16-bit numbers, of either type, that is not zero: the least subnormal is smaller than all others.
__device__ __forceinline__ uint32_t nonzero_halves(uint32_t w) {
  constexpr uint32_t kLeast = 0x00010001u;
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("min.f16x2 %0, %1, %2;" : "=r"(out) : "r"(magnitudes_of_halves(w)), "r"(kLeast));
  return out;
#else
  return std::min(w & 0x7fffu, kLeast & 0xffffu) | std::min(w & 0x7fff0000u, kLeast & 0xffff0000u);
#endif
}
/// By way of float32, in which every float16 except zero is a normal number. Zero becomes 2^-127.
template <>
struct InFloat64<Float16> {
  static constexpr int kScaleLog2 = 0;
  static __device__ __forceinline__ double one(uint32_t w, int half) {
    const auto bits = bit_cast<uint32_t>(widen(Float16{uint16_t(magnitudes_of_halves(w) >> 16 * half)}));
    return bit_cast<double>(uint64_t((bits >> 3) + ((1023u - 127u) << 20)) << 32);
  }
};

/// The larger magnitude of a float32, or elementwise of two bfloat16 or float16. NaN is propagated. `a` is an earlier
/// result, or 0. The sign of the result is arbitrary.
#if defined(__CUDA_ARCH__)
__device__ __forceinline__ uint32_t larger_magnitude(uint32_t a, uint32_t w, float) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(fabsf(bit_cast<float>(a))), "f"(fabsf(bit_cast<float>(w))));
  return bit_cast<uint32_t>(out);
}
__device__ __forceinline__ uint32_t larger_magnitude(uint32_t a, uint32_t w, BFloat16) {
  uint32_t out;
#if __CUDA_ARCH__ >= 860
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(w));
#else
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(w & 0x7fff7fffu));
#endif
  return out;
}
__device__ __forceinline__ uint32_t larger_magnitude(uint32_t a, uint32_t w, Float16) {
  uint32_t out;
#if __CUDA_ARCH__ >= 860
  asm("max.NaN.xorsign.abs.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(w));
#else
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(magnitudes_of_halves(w)));
#endif
  return out;
}
#else
template <class T>
uint32_t larger_magnitude(uint32_t a, uint32_t w, T) {
  const uint32_t high = sizeof(T) == 2 ? 0x7fff0000u : 0x7fffffffu, low = sizeof(T) == 2 ? 0x7fffu : 0u;
  return std::max(a & high, w & high) | std::max(a & low, w & low);
}
#endif

/// The same over all words of a batch.
template <class T, int kCount>
__device__ __forceinline__ uint32_t larger_magnitude(uint32_t a, const VectorRows<kCount>& v) {
  for_each_word(v, [&](uint32_t w, int) { a = larger_magnitude(a, w, T{}); });
  return a;
}

/// All bits set if each of two 16-bit numbers is finite.
template <class T>
__device__ __forceinline__ uint32_t finite_halves(uint32_t w) {
  constexpr uint32_t kInfinities = std::is_same_v<T, BFloat16> ? 0x7f807f80u : 0x7c007c00u, kSigns = 0x80008000u;
#if defined(__CUDA_ARCH__)
  uint32_t out;
  if constexpr (std::is_same_v<T, Float16>) {
    asm("set.lt.u32.f16x2 %0, %1, %2;" : "=r"(out) : "r"(magnitudes_of_halves(w)), "r"(kInfinities));
    return out;
  }
#if __CUDA_ARCH__ >= 900
  asm("abs.bf16x2 %0, %1;" : "=r"(out) : "r"(w));
  asm("set.lt.u32.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(out), "r"(kInfinities));
  return out;
#endif
#endif
  // With its sign set, infinity is the least number that this sum carries beyond the sign, which is then zero.
  return (((w | kSigns) + (kSigns - kInfinities)) & kSigns) == kSigns ? ~0u : 0;
}

/// Whether the float32, or each of two 16-bit numbers, is finite.
template <class T>
__device__ __forceinline__ bool all_finite(uint32_t w) {
  if constexpr (sizeof(T) == 4) return fabsf(bit_cast<float>(w)) <= 0x1.fffffep127f;
  else return finite_halves<T>(w) == ~0u;
}

/// The number of elements of a row that are not finite. Adding one to the exponent of inf and NaN carries into the sign.
__device__ __forceinline__ uint32_t count_nonfinite(DType dtype, const VectorRows<1>& row) {
  const bool halves = itemsize_log2(dtype) == 1, pairs = itemsize_log2(dtype) >= 3;
  const uint32_t signs = halves ? 0x80008000u : 0x80000000u;
  const uint32_t one = dtype == DType::kFloat16    ? 0x04000400u
                       : dtype == DType::kBFloat16 ? 0x00800080u
                       : is_double(dtype)          ? 0x00100000u
                                                   : 0x00800000u;
  // Of the words of a pair: the first counts alone, together with the second, or not at all.
  const uint32_t alone = pairs ? 0 : signs, together = dtype == DType::kComplex64 ? signs : 0;
  uint32_t count = 0, before = 0;
  for_each_word(row, [&](uint32_t w, int slot) {
    const uint32_t marks = ((w & ~signs) + one) & signs;
    count += uint32_t(__popc(slot == 0 ? marks & alone : marks | before));
    before = marks & together;
  });
  return dtype == DType::kComplex128 && count > 1 ? 1 : count;
}

/// The same of several rows. Out of line, because all types share it.
template <int kCount>
__device__ GRADKERN_NOINLINE uint32_t count_nonfinite(DType dtype, const VectorRows<kCount> v) {
  uint32_t count = 0;
  for_each_rows<1>(v, [&](const VectorRows<1>& row) { count += count_nonfinite(dtype, row); });
  return count;
}

}  // namespace gradkern::cuda
