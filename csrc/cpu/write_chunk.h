// The kernels that write: scaling by the clip coefficient, and clamping. Plain loops where the compiler
// vectorizes them well.
#pragma once

#include "core/clip.h"
#include "cpu/chunk_kernels.h"
#include "cpu/prefetches.h"
#include "cpu/vectors.h"

namespace gradkern::cpu {
namespace {

/// Calls body(i) for i = 0, kStep, 2 * kStep … while i + kStep <= length, with prefetches. Returns the index of
/// the first element that is left.
template <int64_t kStep, class T, class Body>
GRADKERN_HD int64_t for_each_step(T* data, int64_t length, Following following, const Body& body) {
  constexpr int64_t kPerLine = kCacheLine / int64_t(sizeof(T)), kTurn = kStep > kPerLine ? kStep : kPerLine;
  static_assert(kTurn % kStep == 0);
  Prefetches<T, kTurn> prefetches(data, length / kTurn * kTurn, data + length, following);
  int64_t i = 0;
  while (prefetches.next_part(i))
    for (; i < prefetches.until; i += kTurn) {
      prefetches.at(i);
      for (int64_t j = 0; j < kTurn; j += kStep) body(i + j);
    }
  for (; i + kStep <= length; i += kStep) body(i);
  return i;
}

template <class T>
void scale_real(T* data, int64_t length, double coef, Following following);

template <>
void scale_real<float>(float* data, int64_t length, double coef, Following following) {
  const F64 factor = F64{} + coef;
  int64_t i = for_each_step<kVectorBytes / 4>(data, length, following, [=](int64_t at) __attribute__((always_inline)) {
    F64 x[2];
    widen_floats(load<Floats>(data + at), x);
    const Floats product = narrow_floats(x[0] * factor, x[1] * factor);
    __builtin_memcpy(data + at, &product, sizeof(product));
  });
  for (; i < length; ++i) data[i] = scaled(data[i], coef);
}

template <>
void scale_real<double>(double* data, int64_t length, double coef, Following following) {
  int64_t i = for_each_step<kWidth>(data, length, following, [=](int64_t at) __attribute__((always_inline)) {
    const F64 product = load<F64>(data + at) * coef;
    __builtin_memcpy(data + at, &product, sizeof(product));
  });
  for (; i < length; ++i) data[i] = scaled(data[i], coef);
}

using Pairs = Vec<uint32_t, kVectorBytes / 4>;
using Reals = Vec<float, kVectorBytes / 4>;

GRADKERN_HD bool any_nan(Reals a, Reals b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q)) != 0;
#else
  const Pairs nan = (Pairs)(a != a) | (Pairs)(b != b);
  return nan[0] | nan[1] | nan[2] | nan[3];
#endif
}

/// from_float<BFloat16> without its last shift.
template <bool kNan>
GRADKERN_HD Pairs rounded(Reals x) {
  const Pairs bits = (Pairs)x, up = bits + 0x7fffu + ((bits >> 16) & 1u);
  if (!kNan) return up;
  const Pairs nan = (Pairs)(x != x);
  return (nan & (bits | 0x00400000u)) | (~nan & up);
}

template <bool kNan>
GRADKERN_HD Pairs rounded(Reals even, Reals odd) {
  return (rounded<kNan>(even) >> 16) | (rounded<kNan>(odd) & 0xffff0000u);
}

/// bfloat16, two at a time. 32 bits hold an even and an odd element. Each becomes a float32 when the other is
/// shifted out or masked. The result has the bits of scaled().
template <>
void scale_real<BFloat16>(BFloat16* data, int64_t length, double coef, Following following) {
  constexpr int64_t kStep = kVectorBytes / 2;
  const Reals factor = Reals{} + float(coef);
  const auto step = [=](int64_t i) __attribute__((always_inline)) {
    const Pairs pairs = load<Pairs>(data + i);
    const Reals even = (Reals)(pairs << 16) * factor, odd = (Reals)(pairs & 0xffff0000u) * factor;
    const Pairs both = __builtin_expect(any_nan(even, odd), 0) ? rounded<true>(even, odd) : rounded<false>(even, odd);
    __builtin_memcpy(data + i, &both, sizeof(both));
  };
  int64_t i = below_float(coef) ? 0 : for_each_step<kStep>(data, length, following, step);
  for (; i < length; ++i) data[i] = scaled(data[i], coef);
}

#if !defined(__F16C__)
template <>
void scale_real<Float16>(Float16* data, int64_t length, double coef, Following) {
  for (int64_t i = 0; i < length; ++i) data[i] = scaled(data[i], coef);
}
#else
template <>
void scale_real<Float16>(Float16* data, int64_t length, double coef, Following following) {
  const __m256 factor = _mm256_set1_ps(float(coef));
  const auto step = [=](int64_t i) __attribute__((always_inline)) {
    const __m256 product = _mm256_mul_ps(_mm256_cvtph_ps(load<__m128i>(data + i)), factor);
    const __m128i half = _mm256_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(data + i, &half, sizeof(half));
  };
  int64_t i = below_float(coef) ? 0 : for_each_step<8>(data, length, following, step);
  for (; i < length; ++i) data[i] = scaled(data[i], coef);
}
#endif

void scale_chunk(void* data, DType dtype, int64_t length, double coef, Following following) {
  switch (dtype) {
    case DType::kFloat32: return scale_real(static_cast<float*>(data), length, coef, following);
    case DType::kBFloat16: return scale_real(static_cast<BFloat16*>(data), length, coef, following);
    case DType::kFloat16: return scale_real(static_cast<Float16*>(data), length, coef, following);
    case DType::kFloat64: return scale_real(static_cast<double*>(data), length, coef, following);
    // The coefficient is real: both parts are scaled alike.
    case DType::kComplex64: return scale_real(static_cast<float*>(data), 2 * length, coef, following);
    case DType::kComplex128: return scale_real(static_cast<double*>(data), 2 * length, coef, following);
  }
}

/// Blocks without an element outside the limits are not written. Flags are integers of the elements' width, so
/// that the compiler compares in vector lanes of that width.
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

/// 16-bit magnitudes have the order of their bits and are compared without conversion.
template <class T>
void clamp_16_bits(T* data, int64_t length, float limit) {
  if (!(limit > 0))  // the comparison of bits below needs a positive limit
    return clamp_blocks(
        data, length, [=](T x) { return int16_t(fabs(to_float(x)) > limit); },
        [=](T x) { return fabs(to_float(x)) > limit ? from_float<T>(clamped(to_float(x), limit)) : x; });
  const int16_t inf = int16_t(from_float<T>(float(infinity())).bits);
  const int16_t edge = int16_t(from_float<T>(limit).bits);
  const int16_t largest = to_float(T{uint16_t(edge)}) > limit ? edge - 1 : edge;  // the largest magnitude that is kept
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
    case DType::kComplex128: break;  // complex numbers have no order; the callers refuse them
  }
}

}  // namespace
}  // namespace gradkern::cpu
