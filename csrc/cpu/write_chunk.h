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

template <class T>
struct Arithmetic {
  using Real = float;
};
template <>
struct Arithmetic<double> {
  using Real = double;
};

template <class T>
GRADKERN_HD T clamp_one(T x, float limit) { return from_float<T>(clamped(to_float(x), limit)); }
GRADKERN_HD double clamp_one(double x, double limit) { return clamped(x, limit); }

template <class T>
bool clamp_real(T* data, int64_t length, double limit) {
  using Real = typename Arithmetic<T>::Real;
  const Real bound = Real(limit);
  constexpr int64_t kBlock = 256;
  bool changed = false;
  for (int64_t begin = 0; begin < length; begin += kBlock) {
    const int64_t end = begin + kBlock < length ? begin + kBlock : length;
    bool outside = false;
    for (int64_t i = begin; i < end; ++i) {
      const Real x = Real(double_of(data[i]));
      outside |= (x > bound) | (x < -bound);
    }
    if (!outside) continue;  // no write, no memory traffic
    changed = true;
    for (int64_t i = begin; i < end; ++i) data[i] = clamp_one(data[i], bound);
  }
  return changed;
}

bool clamp_chunk(void* data, DType dtype, int64_t length, double limit) {
  switch (dtype) {
    case DType::kFloat32: return clamp_real(static_cast<float*>(data), length, limit);
    case DType::kBFloat16: return clamp_real(static_cast<BFloat16*>(data), length, limit);
    case DType::kFloat16: return clamp_real(static_cast<Float16*>(data), length, limit);
    case DType::kFloat64: return clamp_real(static_cast<double*>(data), length, limit);
    case DType::kComplex64:
    case DType::kComplex128: break;  // no order on complex numbers; refused before
  }
  return false;
}

}  // namespace
}  // namespace gradkern::cpu
