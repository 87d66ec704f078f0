// Test only: the AVX-512 intrinsics of csrc/cpu for processors that lack them, as Intel's manual describes them. The
// compiler makes two AVX2 registers of every other operation on 64 bytes. What this cannot show: the compiler's AVX-512 code.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#error "compile it for AVX2"
#endif
#define __AVX512F__ 1

namespace avx512_model {

/// Low or high half of 64 bytes.
template <class Half, class Whole>
inline Half half(const Whole& whole, int part) {
  Half out;
  std::memcpy(&out, reinterpret_cast<const char*>(&whole) + 32 * part, sizeof(out));
  return out;
}
template <class Whole, class Half>
inline Whole whole(const Half& low, const Half& high) {
  Whole out;
  std::memcpy(&out, &low, sizeof(low));
  std::memcpy(reinterpret_cast<char*>(&out) + 32, &high, sizeof(high));
  return out;
}

inline __m512i maskz_loadu_epi8(uint64_t mask, const void* from) {
  unsigned char bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = mask >> i & 1 ? static_cast<const unsigned char*>(from)[i] : 0;
  __m512i out;
  std::memcpy(&out, bytes, sizeof(out));
  return out;
}
inline __m512d cvtps_pd(__m256 x) {
  return whole<__m512d>(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
}
inline __m256 cvtpd_ps(__m512d x) {
  return _mm256_set_m128(_mm256_cvtpd_ps(half<__m256d>(x, 1)), _mm256_cvtpd_ps(half<__m256d>(x, 0)));
}
inline __m512 cvtph_ps(__m256i x) {
  return whole<__m512>(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
/// The upper half is undefined: here NaN.
inline __m512 castps256_ps512(__m256 x) { return whole<__m512>(x, _mm256_castsi256_ps(_mm256_set1_epi32(-1))); }
inline __m512 insertf32x8(__m512 a, __m256 b, int part) {
  return part ? whole<__m512>(half<__m256>(a, 0), b) : whole<__m512>(b, half<__m256>(a, 1));
}
template <int kPredicate>
inline uint16_t cmp_ps_mask(__m512 a, __m512 b) {
  const auto of = [&](int part) {
    return _mm256_movemask_ps(_mm256_cmp_ps(half<__m256>(a, part), half<__m256>(b, part), kPredicate));
  };
  return uint16_t(of(1) << 8 | of(0));
}

}  // namespace avx512_model

// Over the compiler's own, which some compilers have as macros.
#undef _mm512_extractf32x8_ps
#undef _mm512_extracti64x4_epi64
#undef _mm512_insertf32x8
#undef _mm512_cmp_ps_mask
#define _mm512_maskz_loadu_epi8 avx512_model::maskz_loadu_epi8
#define _mm512_cvtps_pd avx512_model::cvtps_pd
#define _mm512_cvtpd_ps avx512_model::cvtpd_ps
#define _mm512_cvtph_ps avx512_model::cvtph_ps
#define _mm512_castps256_ps512 avx512_model::castps256_ps512
#define _mm512_castps512_ps256(x) avx512_model::half<__m256>(x, 0)
#define _mm512_castsi512_si256(x) avx512_model::half<__m256i>(x, 0)
#define _mm512_extractf32x8_ps(x, part) avx512_model::half<__m256>(x, part)
#define _mm512_extracti64x4_epi64(x, part) avx512_model::half<__m256i>(x, part)
#define _mm512_insertf32x8 avx512_model::insertf32x8
#define _mm512_cmp_ps_mask(a, b, predicate) avx512_model::cmp_ps_mask<predicate>(a, b)
