// A sum of non-negative numbers whose bits depend neither on the order of the additions nor on how the
// terms are divided among threads.
//
// A term is an integer below 2^53 times a power of two. It is split into 32-bit digits at fixed powers of
// 2^32. Digits are added as 64-bit integers, which is exact in any order. Four digits are kept: the three
// that the largest term may occupy, and the next lower one. Lower digits are dropped, whether they were
// added before or after the largest term.
//
// Error bound: let the largest term have n bits. It is at least 2^(n - 1) units of the lowest of its three
// digits. Each term loses less than 2^-32 of such a unit, because the next lower digit is kept: 2^-(n + 31)
// of the largest term. Terms have 53 bits, so that each loses 2^-84 and 2^31 terms lose 2^-53 of the sum.
// A digit holds 2^32 terms without a carry. 2^32 terms of 8 KiB are 32 TiB.
#pragma once

#include "core/norm.h"

namespace gradkern {

struct ExactSum {
  static constexpr int kDigits = 4;
  static constexpr int32_t kNothing = -(1 << 20);  ///< a multiple of 32, like every bottom

  uint64_t digit[kDigits] = {0, 0, 0, 0};  ///< digit[i] counts 2^(bottom + 32 * i)
  int32_t bottom = kNothing;
};

/// Drops the digits below 2^bottom.
GRADKERN_HD void raise_bottom(ExactSum& s, int32_t bottom) {
  const int32_t up = bottom - s.bottom;
  if (up <= 0) return;
  const bool one = up & 32, two = up & 64, none = up >= 128;
  uint64_t digit[ExactSum::kDigits + 3] = {s.digit[0], s.digit[1], s.digit[2], s.digit[3], 0, 0, 0};
  for (int i = 0; i < ExactSum::kDigits + 1; ++i) digit[i] = two ? digit[i + 2] : digit[i];
  for (int i = 0; i < ExactSum::kDigits; ++i) s.digit[i] = none ? 0 : one ? digit[i + 1] : digit[i];
  s.bottom = bottom;
}

/// integer * 2^exponent, where integer < 2^53.
struct Term {
  uint64_t integer;
  int32_t exponent;
};

/// x * 2^(1200 * bin) (see ScaledSum), where x >= 0. Infinity counts as 2^1024.
GRADKERN_HD Term term_of(double x, int32_t bin = 0) {
  const uint64_t bits = bit_cast<uint64_t>(x), fraction = bits & 0x000fffffffffffffull;
  const auto field = int32_t(bits >> 52);
  const bool normal = field != 0;
  return {normal ? fraction | 0x0010000000000000ull : fraction, (normal ? field : 1) - 1075 + 1200 * bin};
}

/// s += term. The common case is a term whose lowest digit is digit 0 or 1. If it lies above, it is the
/// largest so far, and the kept digits move up. If it lies below, its low bits are dropped.
GRADKERN_HD void deposit(ExactSum& s, const Term& term) {
  uint64_t integer = term.integer;
  int32_t place = term.exponent - s.bottom;
  if (uint32_t(place) >= 64) {
    if (integer == 0) return;  // its exponent is not that of a term
    if (place >= 64) {
      raise_bottom(s, (term.exponent & ~31) - 32);
      place = term.exponent - s.bottom;
    } else {
      integer = place > -64 ? integer >> -place : 0;
      place = 0;
    }
  }
  const uint32_t shift = uint32_t(place) & 31u;
  const uint64_t low = integer << shift, high = (integer >> 32) << shift >> 32;
  const uint32_t first = uint32_t(low), second = uint32_t(low >> 32), third = uint32_t(high);
  const bool up = place >= 32;
  s.digit[0] += up ? 0u : first;
  s.digit[1] += up ? first : second;
  s.digit[2] += up ? second : third;
  s.digit[3] += up ? third : 0u;
}

GRADKERN_HD ExactSum combine(ExactSum a, ExactSum b) {
  if (a.bottom < b.bottom) {
    const ExactSum low = a;
    a = b;
    b = low;
  }
  raise_bottom(b, a.bottom);
  for (int i = 0; i < ExactSum::kDigits; ++i) a.digit[i] += b.digit[i];
  return a;
}

/// 2^exponent times x, where the result may leave the range of float64 at both ends.
GRADKERN_HD double times_power_of_two(double x, int32_t exponent) {
  for (int i = 0; i < 4; ++i) {
    const int32_t step = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent;
    x *= bit_cast<double>(uint64_t(1023 + step) << 52);
    exponent -= step;
  }
  return x;
}

/// The sum divided by 2^(1200 * bin), to twice the precision of float64.
GRADKERN_HD_LONG ScaledSum value_of(const ExactSum s, int32_t bin) {
  ScaledSum out;
  out.bin = bin;
  uint64_t carry = 0;
  double digit[ExactSum::kDigits];
  for (int i = 0; i < ExactSum::kDigits; ++i) {
    const uint64_t sum = s.digit[i] + carry;
    digit[i] = double(uint32_t(sum));
    carry = sum >> 32;
  }
  out.hi = double(carry) * 0x1p+128;
  double weight = 0x1p+96;
  for (int i = ExactSum::kDigits - 1; i >= 0; --i, weight *= 0x1p-32) add_compensated(out.hi, out.lo, digit[i] * weight);
  if (out.hi == 0) return out;
  const int32_t exponent = s.bottom - 1200 * bin;
  out.hi = times_power_of_two(out.hi, exponent);
  out.lo = times_power_of_two(out.lo, exponent);
  return out;
}

}  // namespace gradkern
