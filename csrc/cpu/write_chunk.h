// The two kernels that write: scaling by the clip coefficient and clamping to a limit. Plain
// loops over elements; the compiler vectorises them for the instruction set at hand.
#pragma once

#include "core/clip.h"
#include "cpu/chunk_kernels.h"
#include "cpu/vectors.h"

namespace gradkern::cpu {
namespace {

template <class T>
void scale_real(T* data, int64_t length, double coef) {
  for (int64_t i = 0; i < length; ++i) data[i] = scaled(data[i], coef);
}

/// Brain floats two at a time, in place: a pair of 32 bits holds an even and an odd element, each of which is
/// a float32 once the other is shifted or masked away. The bits of scaled().
template <>
void scale_real<BFloat16>(BFloat16* data, int64_t length, double coef) {
  using Pairs = Vec<uint32_t, kVectorBytes / 4>;
  using Reals = Vec<float, kVectorBytes / 4>;
  constexpr int64_t kStep = kVectorBytes / 2;
  const Reals factor = Reals{} + float(coef);
  const auto rounded = [](Reals x) {  // from_float<BFloat16>, before its shift
    const Pairs bits = (Pairs)x, nan = (Pairs)(x != x);
    return (nan & (bits | 0x00400000u)) | (~nan & (bits + 0x7fffu + ((bits >> 16) & 1u)));
  };
  int64_t i = 0;
  for (const bool coarse = below_float(coef); !coarse && i + kStep <= length; i += kStep) {
    const Pairs pairs = load<Pairs>(data + i);
    const Pairs even = rounded((Reals)(pairs << 16) * factor);
    const Pairs odd = rounded((Reals)(pairs & 0xffff0000u) * factor);
    const Pairs both = (even >> 16) | (odd & 0xffff0000u);
    __builtin_memcpy(data + i, &both, sizeof(both));
  }
  for (; i < length; ++i) data[i] = scaled(data[i], coef);
}

#if defined(__F16C__)
template <>
void scale_real<Float16>(Float16* data, int64_t length, double coef) {
  const __m256 factor = _mm256_set1_ps(float(coef));
  int64_t i = 0;
  for (const bool coarse = below_float(coef); !coarse && i + 8 <= length; i += 8) {
    const __m256 product = _mm256_mul_ps(_mm256_cvtph_ps(load<__m128i>(data + i)), factor);
    const __m128i half = _mm256_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(data + i, &half, sizeof(half));
  }
  for (; i < length; ++i) data[i] = scaled(data[i], coef);
}
#endif

void scale_chunk(void* data, DType dtype, int64_t length, double coef) {
  switch (dtype) {
    case DType::kFloat32: return scale_real(static_cast<float*>(data), length, coef);
    case DType::kBFloat16: return scale_real(static_cast<BFloat16*>(data), length, coef);
    case DType::kFloat16: return scale_real(static_cast<Float16*>(data), length, coef);
    case DType::kFloat64: return scale_real(static_cast<double*>(data), length, coef);
    // A real coefficient: both parts alike.
    case DType::kComplex64: return scale_real(static_cast<float*>(data), 2 * length, coef);
    case DType::kComplex128: return scale_real(static_cast<double*>(data), 2 * length, coef);
  }
}

/// Blocks in which nothing lies outside are not written: no memory traffic. Elements are compared in
/// vector lanes of their own width, which is why flags are not bools.
template <class T, class Outside, class Clamp>
void clamp_blocks(T* data, int64_t length, const Outside& outside, const Clamp& clamp) {
  constexpr int64_t kBlock = 256;
  for (int64_t begin = 0; begin < length; begin += kBlock) {
    const int64_t end = begin + kBlock < length ? begin + kBlock : length;
    decltype(outside(T())) any = 0;
    for (int64_t i = begin; i < end; ++i) any |= outside(data[i]);
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) data[i] = clamp(data[i]);
  }
}

template <class Flag, class Real>
void clamp_real(Real* data, int64_t length, Real limit) {
  clamp_blocks(
      data, length, [=](Real x) { return Flag(fabs(x) > limit); }, [=](Real x) { return clamped(x, limit); });
}

/// Numbers of 16 bits are in the order of their bits, without the sign: no conversion.
template <class T>
void clamp_16_bits(T* data, int64_t length, float limit) {
  if (!(limit > 0))  // both limits are of one sign then, or 0: not what the bits below are for
    return clamp_blocks(
        data, length, [=](T x) { return int16_t(fabs(to_float(x)) > limit); },
        [=](T x) { return fabs(to_float(x)) > limit ? from_float<T>(clamped(to_float(x), limit)) : x; });
  const int16_t inf = int16_t(from_float<T>(float(infinity())).bits);
  const int16_t edge = int16_t(from_float<T>(limit).bits);
  const int16_t largest = to_float(T{uint16_t(edge)}) > limit ? edge - 1 : edge;  // that stays
  const auto outside = [=](T x) {
    const int16_t magnitude = int16_t(x.bits & 0x7fff);
    return int16_t((magnitude > largest) & (magnitude <= inf));  // NaN stays
  };
  clamp_blocks(data, length, outside, [=](T x) {
    return outside(x) ? T{uint16_t((x.bits & 0x8000) | uint16_t(edge))} : x;
  });
}

void clamp_chunk(void* data, DType dtype, int64_t length, double limit) {
  switch (dtype) {
    case DType::kFloat32: return clamp_real<uint32_t>(static_cast<float*>(data), length, float(limit));
    case DType::kBFloat16: return clamp_16_bits(static_cast<BFloat16*>(data), length, float(limit));
    case DType::kFloat16: return clamp_16_bits(static_cast<Float16*>(data), length, float(limit));
    case DType::kFloat64: return clamp_real<uint64_t>(static_cast<double*>(data), length, limit);
    case DType::kComplex64:
    case DType::kComplex128: break;  // no order on complex numbers; refused before
  }
}

}  // namespace
}  // namespace gradkern::cpu
