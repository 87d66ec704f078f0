// Fixed-width vectors of the instruction set this translation unit is compiled for. GCC's and
// Clang's vector extensions: the same source for SSE2, AVX2, AVX-512 and NEON.
#pragma once

#include "core/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gradkern::cpu {
namespace {  // one copy per instruction set, never shared between them

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kWidth = kVectorBytes / 8;  ///< float64 lanes of one register
constexpr int kLanes = 32;                ///< accumulators a chunk is summed in, for every width
constexpr int kRegisters = kLanes / kWidth;

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
template <class T, int N>
using Vec = typename VectorOf<T, N>::type;

using F64 = Vec<double, kWidth>;

template <class V, class T>
GRADKERN_HD V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));  // any alignment
  return v;
}

/// A block of kLanes elements as float64, in registers.
using Block = F64[kRegisters];

// Intrinsics, because GCC 12 splits its generic conversions into halves (measured: three times
// slower). All conversions are exact.
#if defined(__AVX512F__)
using Floats = __m256;
GRADKERN_HD F64 widen(Floats x) { return (F64)_mm512_cvtps_pd(x); }
GRADKERN_HD Floats load_floats(const float* from) { return load<__m256>(from); }
GRADKERN_HD Floats load_floats(const Float16* from) { return _mm256_cvtph_ps(load<__m128i>(from)); }
#elif defined(__AVX2__)
using Floats = __m128;
GRADKERN_HD F64 widen(Floats x) { return (F64)_mm256_cvtps_pd(x); }
GRADKERN_HD Floats load_floats(const float* from) { return load<__m128>(from); }
GRADKERN_HD Floats load_floats(const Float16* from) {
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
#else
using Floats = Vec<float, kWidth>;
GRADKERN_HD F64 widen(Floats x) { return F64{double(x[0]), double(x[1])}; }
GRADKERN_HD Floats load_floats(const float* from) { return load<Floats>(from); }
GRADKERN_HD Floats load_floats(const Float16* from) {
  return Floats{to_float(from[0]), to_float(from[1])};
}
#endif

/// load_block's registers hold the elements of a block in order, except those of 16-bit brain floats:
/// a shift and a mask that split them into even and odd elements are cheaper than widening.
template <class T>
GRADKERN_HD void load_block(const T* from, Block& to) {
#pragma GCC unroll 16
  for (int r = 0; r < kRegisters; ++r) to[r] = widen(load_floats(from + r * kWidth));
}
template <>
GRADKERN_HD void load_block<BFloat16>(const BFloat16* from, Block& to) {
  using Pairs = Vec<uint32_t, kWidth>;
#pragma GCC unroll 16
  for (int r = 0; r < kRegisters; r += 2) {
    const Pairs pairs = load<Pairs>(from + r * kWidth);
    to[r] = widen((Floats)(pairs << 16));
    to[r + 1] = widen((Floats)(pairs & 0xffff0000u));
  }
}
template <>
GRADKERN_HD void load_block<double>(const double* from, Block& to) {
#pragma GCC unroll 16
  for (int r = 0; r < kRegisters; ++r) to[r] = load<F64>(from + r * kWidth);
}

/// Brings what was summed over blocks of T into the order of the elements.
template <class T>
GRADKERN_HD void in_element_order(Block&) {}
template <>
GRADKERN_HD void in_element_order<BFloat16>(Block& sums) {
  Vec<int64_t, kWidth> first, second;
#pragma GCC unroll 8
  for (int i = 0; i < kWidth; ++i) {
    first[i] = i / 2 + i % 2 * kWidth;
    second[i] = first[i] + kWidth / 2;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRegisters; r += 2) {
    const F64 even = sums[r], odd = sums[r + 1];
    sums[r] = __builtin_shuffle(even, odd, first);
    sums[r + 1] = __builtin_shuffle(even, odd, second);
  }
}

/// Integer view of a type: bits of |x| order as |x| does, with NaN above inf.
template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Int = int32_t;
  static constexpr Int kMagnitude = 0x7fffffff, kInf = 0x7f800000;
};
template <>
struct Bits<BFloat16> {
  using Int = int16_t;
  static constexpr Int kMagnitude = 0x7fff, kInf = 0x7f80;
};
template <>
struct Bits<Float16> {
  using Int = int16_t;
  static constexpr Int kMagnitude = 0x7fff, kInf = 0x7c00;
};
template <>
struct Bits<double> {
  using Int = int64_t;
  static constexpr Int kMagnitude = 0x7fffffffffffffff, kInf = 0x7ff0000000000000;
};

}  // namespace
}  // namespace gradkern::cpu
