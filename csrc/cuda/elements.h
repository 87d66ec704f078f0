// The elements of a 16-byte vector, and conversions by machine instructions.
//
// Conversions are exact or round to nearest even, as those of core/dtype.h. The bits are the same, except
// for the payload of a NaN.
#pragma once

#include "core/clip.h"
#include "core/norm.h"
#include "cuda/vector_io.h"

namespace gradkern::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return to_float(x); }
__device__ __forceinline__ float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return to_float(x);
#endif
}

template <class T>
__device__ __forceinline__ T narrow(float x) { return from_float<T>(x); }
#if defined(__CUDA_ARCH__)
template <>
__device__ __forceinline__ Float16 narrow<Float16>(float x) {
  Float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#endif
#endif

/// Element i of a vector; i must be a compile-time constant after unrolling.
template <class T>
__device__ __forceinline__ T element(const uint4& v, int i);
template <>
__device__ __forceinline__ float element<float>(const uint4& v, int i) {
  return bit_cast<float>(word(v, i));
}
template <>
__device__ __forceinline__ BFloat16 element<BFloat16>(const uint4& v, int i) {
  return {uint16_t(word(v, i / 2) >> (16 * (i % 2)))};
}
template <>
__device__ __forceinline__ Float16 element<Float16>(const uint4& v, int i) {
  return {uint16_t(word(v, i / 2) >> (16 * (i % 2)))};
}
template <>
__device__ __forceinline__ double element<double>(const uint4& v, int i) {
  return bit_cast<double>(uint64_t(word(v, 2 * i)) | uint64_t(word(v, 2 * i + 1)) << 32);
}
template <>
__device__ __forceinline__ Complex<float> element<Complex<float>>(const uint4& v, int i) {
  return {element<float>(v, 2 * i), element<float>(v, 2 * i + 1)};
}
template <>
__device__ __forceinline__ Complex<double> element<Complex<double>>(const uint4& v, int) {
  return {element<double>(v, 0), element<double>(v, 1)};
}

__device__ __forceinline__ void set_element(uint4& v, int i, float x) {
  word(v, i) = bit_cast<uint32_t>(x);
}
__device__ __forceinline__ void set_half(uint4& v, int i, uint16_t bits) {
  const uint32_t kept = word(v, i / 2) & (i % 2 ? 0x0000ffffu : 0xffff0000u);
  word(v, i / 2) = kept | uint32_t(bits) << (16 * (i % 2));
}
__device__ __forceinline__ void set_element(uint4& v, int i, BFloat16 x) { set_half(v, i, x.bits); }
__device__ __forceinline__ void set_element(uint4& v, int i, Float16 x) { set_half(v, i, x.bits); }
__device__ __forceinline__ void set_element(uint4& v, int i, double x) {
  const uint64_t bits = bit_cast<uint64_t>(x);
  word(v, 2 * i) = uint32_t(bits);
  word(v, 2 * i + 1) = uint32_t(bits >> 32);
}

template <class Real>
__device__ __forceinline__ bool finite(Complex<Real> z) {
  return is_finite(double(z.re)) && is_finite(double(z.im));
}

/// Whether any of a number's 32-bit words has a bit that is not a sign: two operations of three operands at most.
__device__ __forceinline__ uint32_t any_bits(double x) {
  const auto bits = bit_cast<uint64_t>(x);
  return (uint32_t(bits >> 32) & 0x7fffffffu) | uint32_t(bits);
}
__device__ __forceinline__ bool nonzero(double x) { return any_bits(x) != 0; }
__device__ __forceinline__ bool nonzero(Complex<float> z) {
  return ((bit_cast<uint32_t>(z.re) | bit_cast<uint32_t>(z.im)) & 0x7fffffffu) != 0;
}
__device__ __forceinline__ bool nonzero(Complex<double> z) { return (any_bits(z.re) | any_bits(z.im)) != 0; }

/// Calls visit(element) for the elements of a lane in a batch.
template <class T, int kCount, class Visit>
__device__ __forceinline__ void for_each_element(const VectorRows<kCount>& v, const Visit& visit) {
#pragma unroll
  for (int r = 0; r < kCount; ++r)
#pragma unroll
    for (int i = 0; i < int(kVectorBytes / sizeof(T)); ++i) visit(element<T>(v.row[r], i));
}

// ------------------------------------------------------------------------------- any type, one element at a time

/// An element of a type that is known at run time, in float64. A real number has no imaginary part.
struct AnyElement {
  Complex<double> value;
  bool complex;
};

/// From its bits.
__device__ __forceinline__ AnyElement element_of_bits(DType dtype, uint64_t low, uint64_t high) {
  const auto first = bit_cast<float>(uint32_t(low)), second = bit_cast<float>(uint32_t(low >> 32));
  switch (dtype) {
    case DType::kFloat32: return {{first, 0}, false};
    case DType::kBFloat16: return {{widen(BFloat16{uint16_t(low)}), 0}, false};
    case DType::kFloat16: return {{widen(Float16{uint16_t(low)}), 0}, false};
    case DType::kFloat64: return {{bit_cast<double>(low), 0}, false};
    case DType::kComplex64: return {{first, second}, true};
    case DType::kComplex128: return {{bit_cast<double>(low), bit_cast<double>(high)}, true};
  }
  return {};
}

/// The element at an even address. Out of line like the other functions for rare cases, because code that is rarely used
/// should be short.
inline __device__ GRADKERN_NOINLINE AnyElement any_element(DType dtype, const char* from, uint32_t size) {
  uint64_t low = 0, high = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < size; i += 2) {
    const uint64_t half = *global(reinterpret_cast<const uint16_t*>(from + i));
    if (i < 8) low |= half << 8 * i;
    else high |= half << 8 * (i - 8);
  }
  return element_of_bits(dtype, low, high);
}

/// Calls visit(AnyElement) for a lane's elements of a unit at any even address, in the order of its batches. The loops
/// are not unrolled, because this is for rare cases.
template <class Visit>
__device__ __forceinline__ void for_each_element(DType dtype, const char* unit, uint32_t bytes, const Visit& visit) {
  const uint32_t size = 1u << itemsize_log2(dtype);
#pragma unroll 1
  for (uint32_t offset = lane_offset(); offset < bytes; offset += kRowBytes) {
    const uint32_t end = offset + valid_bytes(bytes, offset);
#pragma unroll 1
    for (uint32_t at = offset; at < end; at += size) visit(any_element(dtype, unit + at, size));
  }
}

}  // namespace gradkern::cuda
