// Vectors of the instruction set that the translation unit is compiled for. The vector extensions of GCC and
// Clang give one source for SSE2, AVX2, AVX-512 and NEON.
#pragma once

#include <type_traits>

#include "core/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gradkern::cpu {
namespace {  // one copy per instruction set

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

/// kLanes sums, in registers.
using Block = F64[kRegisters];

/// A type as integers: the bits of |x| are ordered as |x|, with NaN above inf.
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

/// A register of elements as in memory, as integers of Bits<T>. kLanes elements fill kRaws registers.
template <class T>
constexpr int kPerRaw = kVectorBytes / int(sizeof(T));
template <class T>
constexpr int kRaws = kLanes / kPerRaw<T>;
template <class T>
using Raw = Vec<typename Bits<T>::Int, kPerRaw<T>>;

/// The first `count` < kPerRaw elements at `from`, padded with zeros. Does not read beyond them.
template <class T>
GRADKERN_HD Raw<T> load_first(const T* from, int64_t count) {
#if defined(__AVX512F__)
  return (Raw<T>)_mm512_maskz_loadu_epi8((1ull << count * sizeof(T)) - 1, from);
#elif defined(__AVX2__)
  alignas(32) static constexpr int32_t kUsed[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const int words = int(count * sizeof(T) / 4);
  const __m256i used = load<__m256i>(kUsed + 8 - words);
  const __m256i whole = _mm256_maskload_epi32(reinterpret_cast<const int*>(from), used);
  if (sizeof(T) > 2 || count % 2 == 0) return (Raw<T>)whole;
  uint16_t last;
  __builtin_memcpy(&last, from + count - 1, sizeof(last));
  const __m256i at = _mm256_cmpeq_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(words));
  return (Raw<T>)_mm256_or_si256(whole, _mm256_and_si256(at, _mm256_set1_epi32(last)));
#else
  Raw<T> padded = {};
  __builtin_memcpy(&padded, from, size_t(count) * sizeof(T));
  return padded;
#endif
}

/// Moves lane i + half to lane i.
template <class T>
GRADKERN_HD Raw<T> lanes_from(Raw<T> v, int half) {
  Raw<T> index = {};
#pragma GCC unroll 64
  for (int i = 0; i < half; ++i) index[i] = typename Bits<T>::Int(i + half);
  return __builtin_shuffle(v, index);
}

/// The elements of one register as float64.
template <class T>
constexpr int kWides = kPerRaw<T> / kWidth;
template <class T>
using Wide = F64[kWides<T>];

// Intrinsics, because GCC 12 splits its generic conversions into halves, which measured three times slower.
// All conversions are exact.
#if defined(__AVX512F__)
using Floats = __m512;
GRADKERN_HD void widen_floats(Floats x, F64* to) {
  to[0] = (F64)_mm512_cvtps_pd(_mm512_castps512_ps256(x));
  to[1] = (F64)_mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}
GRADKERN_HD Floats narrow_floats(F64 a, F64 b) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a)), _mm512_cvtpd_ps((__m512d)b), 1);
}
GRADKERN_HD Floats half_floats(Raw<Float16> raw, int part) {
  return _mm512_cvtph_ps(part ? _mm512_extracti64x4_epi64((__m512i)raw, 1) : _mm512_castsi512_si256((__m512i)raw));
}
#elif defined(__AVX2__)
using Floats = __m256;
GRADKERN_HD void widen_floats(Floats x, F64* to) {
  to[0] = (F64)_mm256_cvtps_pd(_mm256_castps256_ps128(x));
  to[1] = (F64)_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}
GRADKERN_HD Floats narrow_floats(F64 a, F64 b) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)a)), _mm256_cvtpd_ps((__m256d)b), 1);
}
GRADKERN_HD Floats half_floats(Raw<Float16> raw, int part) {
  return _mm256_cvtph_ps(part ? _mm256_extracti128_si256((__m256i)raw, 1) : _mm256_castsi256_si128((__m256i)raw));
}
#else
using Floats = Vec<float, kVectorBytes / 4>;
GRADKERN_HD void widen_floats(Floats x, F64* to) {
  to[0] = F64{double(x[0]), double(x[1])};
  to[1] = F64{double(x[2]), double(x[3])};
}
GRADKERN_HD Floats narrow_floats(F64 a, F64 b) {
  return Floats{float(a[0]), float(a[1]), float(b[0]), float(b[1])};
}
GRADKERN_HD Floats half_floats(Raw<Float16> raw, int part) {
  Floats x;
  for (int i = 0; i < 4; ++i) x[i] = to_float(Float16{uint16_t(raw[4 * part + i])});
  return x;
}
#endif

/// Converts a register to float64, in the order of the elements. bfloat16 is an exception: each half of the
/// register is split into even and odd elements, by a shift and a mask, which cost less than widening
/// 16-bit integers.
template <class T>
GRADKERN_HD void widen(Raw<T> raw, Wide<T>& to) {
  if constexpr (std::is_same_v<T, double>) {
    to[0] = (F64)raw;
  } else if constexpr (std::is_same_v<T, float>) {
    widen_floats((Floats)raw, to);
  } else if constexpr (std::is_same_v<T, Float16>) {
    widen_floats(half_floats(raw, 0), to);
    widen_floats(half_floats(raw, 1), to + 2);
  } else {
    using Pairs = Vec<uint32_t, kVectorBytes / 4>;
    F64 even[2], odd[2];
    widen_floats((Floats)((Pairs)raw << 16), even);
    widen_floats((Floats)((Pairs)raw & 0xffff0000u), odd);
    to[0] = even[0];
    to[1] = odd[0];
    to[2] = even[1];
    to[3] = odd[1];
  }
}

/// Brings sums of widened registers of T into the order of the elements.
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

}  // namespace
}  // namespace gradkern::cpu
