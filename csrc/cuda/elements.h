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

/// |x| in float64. For complex numbers, see core/norm.h.
template <class T>
__device__ __forceinline__ double magnitude(T x) { return fabs(double(widen(x))); }

template <class T>
__device__ __forceinline__ bool finite(T x) { return is_finite(double(widen(x))); }
template <class Real>
__device__ __forceinline__ bool finite(Complex<Real> z) {
  return is_finite(double(z.re)) && is_finite(double(z.im));
}

template <class T>
__device__ __forceinline__ bool is_complex_type(T) { return false; }
template <class Real>
__device__ __forceinline__ bool is_complex_type(Complex<Real>) { return true; }

__device__ __forceinline__ double real_part(double x) { return x; }
template <class Real>
__device__ __forceinline__ double real_part(Complex<Real> z) { return double(z.re); }

__device__ __forceinline__ bool nonzero(double x) { return abs_bits(x) != 0; }
template <class Real>
__device__ __forceinline__ bool nonzero(Complex<Real> z) { return z.re != 0 || z.im != 0; }

/// |x * scale|^2 for a power of two.
template <class T>
__device__ __forceinline__ double scaled_square(T x, double scale) {
  const double y = double(widen(x)) * scale;
  return y * y;
}
template <class Real>
__device__ __forceinline__ double scaled_square(Complex<Real> z, double scale) {
  const double re = double(z.re) * scale, im = double(z.im) * scale;
  return re * re + im * im;
}

/// Calls visit(element) for the elements of a lane in a batch.
template <class T, class Visit>
__device__ __forceinline__ void for_each_element(const Vectors& v, const Visit& visit) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < int(kVectorBytes / sizeof(T)); ++i) visit(element<T>(v.row[r], i));
}

/// The same, without the padding of a batch of `bytes` bytes. The loops are not unrolled: that took half of the time in
/// which ptxas compiled measure.cu, for the orders that training loops do not clip by.
template <class T, class Visit>
__device__ __forceinline__ void for_each_valid(const Vectors& v, uint32_t bytes, const Visit& visit) {
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
    const uint32_t valid = valid_bytes(bytes, lane_offset() + uint32_t(r) * kRowBytes);
#pragma unroll 1
    for (int i = 0; i < int(kVectorBytes / sizeof(T)); ++i)
      if (i * sizeof(T) < valid) visit(element<T>(v.row[r], i));
  }
}

}  // namespace gradkern::cuda
