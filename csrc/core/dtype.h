// The element types a gradient can have, and exact conversions of the 16-bit ones.
#pragma once

#include "core/portable.h"

namespace gradkern {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kComplex64, kComplex128 };

/// log2 of the bytes of an element. A table of four bits per type, because it is used several times for
/// each tensor of lists of thousands.
GRADKERN_HD constexpr uint32_t itemsize_log2(DType dtype) { return 0x433112u >> 4 * uint32_t(dtype) & 15u; }
GRADKERN_HD constexpr int64_t itemsize(DType dtype) { return int64_t(1) << itemsize_log2(dtype); }

static_assert(itemsize(DType::kFloat32) == 4 && itemsize(DType::kBFloat16) == 2 &&
              itemsize(DType::kFloat16) == 2 && itemsize(DType::kFloat64) == 8 &&
              itemsize(DType::kComplex64) == 8 && itemsize(DType::kComplex128) == 16);

/// Whether results that involve this type are reported in float64.
GRADKERN_HD constexpr bool is_double(DType dtype) {
  return dtype == DType::kFloat64 || dtype == DType::kComplex128;
}

GRADKERN_HD constexpr bool is_complex(DType dtype) {
  return dtype == DType::kComplex64 || dtype == DType::kComplex128;
}

/// One gradient as the kernels see it: `numel` elements, dense in memory, in memory order.
struct TensorRef {
  void* data = nullptr;
  int64_t numel = 0;
  DType dtype = DType::kFloat32;
};

// The storage of the 16-bit types; arithmetic happens in float or double only.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
template <class Real>
struct Complex {
  Real re, im;
};

GRADKERN_HD float to_float(float x) { return x; }

GRADKERN_HD float to_float(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

GRADKERN_HD float to_float(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Subnormals are integers times 2^-24. Conversion from the integer is independent of flush-to-zero.
  const uint32_t subnormal = bit_cast<uint32_t>(float(magnitude) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  const uint32_t bits =
      magnitude < 0x0400u ? subnormal : (magnitude < 0x7c00u ? normal : special);
  return bit_cast<float>(sign | bits);
}

/// Exact, from any real element type.
GRADKERN_HD double double_of(double x) { return x; }
template <class T>
GRADKERN_HD double double_of(T x) { return double(to_float(x)); }

template <class T>
GRADKERN_HD T from_float(float x);

template <>
GRADKERN_HD float from_float<float>(float x) { return x; }

/// Rounds to nearest, ties to even. NaN stays NaN.
template <>
GRADKERN_HD BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {uint16_t(nan ? (bits >> 16) | 0x0040u : rounded)};
}

/// Rounds to nearest, ties to even. Above 65504 after rounding: inf. NaN stays NaN.
template <>
GRADKERN_HD Float16 from_float<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal halves: drop 13 bits with ties to even. Subnormal halves: adding 0.5 leaves exactly
  // the ten bits of the result at the end of the float's significand, rounded by the adder.
  const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal =
      bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return {uint16_t(sign | (magnitude >= 0x477ff000u ? overflow : finite))};
}

}  // namespace gradkern
