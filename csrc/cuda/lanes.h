// What one thread gathers about its elements of a chunk: one struct per kind of element type.
//
// Error bound, beside the one in core/norm.h (u = 2^-53):
//   - float32, bfloat16, float16, complex64: squares are exact. A chunk is at most 2^20 bytes, so
//     that a thread adds at most 2^11 terms to each of its two sums, and a block's tree adds 9
//     more roundings: the chunk is off by at most 2^-41 relative, the norm by 2^-42 before its
//     one rounding to float32. Together less than 0.50001 ulp.
//   - The same in pairs of float32 (narrow_lanes.h; v = 2^-24): at most 2^10 terms a sum. Of each, an
//     error of at most v goes to `lo`, whose own additions err by 2^20 v^2 = 2^-28 at most. The norm is
//     off by 2^-29 before its rounding. Together less than 0.54 ulp.
//   - float64, complex128: a chunk is at most 2^18 bytes, 2^7 elements a thread. Squares carry u
//     (complex128's sums of two 2u), the additions and the tree at most 2^7 + 9: 139 u on the
//     sum, 70 u on the norm with the root's own, 7.8e-15 against the contract's 1e-14.
// Across chunks core/norm.h's TwoSum takes over.
//
// A lane reads fast and checks afterwards, from its largest magnitude, whether that was right:
// non-finite elements, and for the wide types squares near the ends of float64's range, send it
// over its own elements once more. That is rare and the chunk is in the cache then.
#pragma once

#include "cuda/narrow_lanes.h"

namespace gradkern::cuda {

/// What complex64 and float64 gather. The largest: of |z|^2, or of |x|.
template <bool kSums>
struct WideSums {
  double sq[2] = {0, 0}, absolute[2] = {0, 0};
  uint64_t largest = 0;
  uint32_t nonzero = 0;

  template <class Magnitude>
  __device__ __forceinline__ void add(int slot, double square, uint64_t bits, const Magnitude& magnitude) {
    sq[slot] += square;
    largest = bits > largest ? bits : largest;
    if (kSums) {
      absolute[slot] += magnitude();
      nonzero += bits != 0;
    }
  }

  __device__ __forceinline__ LaneSums sums() const {
    LaneSums out;
    out.sq = sq[0] + sq[1];
    out.absolute = absolute[0] + absolute[1];
    out.nonzero = nonzero;
    return out;
  }
};

/// complex64: squares of |z| are within float64's range, their maximum gives the largest |z|.
template <bool kSums>
struct Complex64Lane : WideSums<kSums> {
  __device__ __forceinline__ void take(const uint4& v) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const double s = scaled_square(element<Complex<float>>(v, i), 1.0);
      this->add(i, s, abs_bits(s), [s] { return sqrt(s); });
    }
  }

  __device__ __forceinline__ LaneSums finish(const char* data, uint32_t bytes) const {
    LaneSums out = this->sums();
    out.max_bits = abs_bits(sqrt(bit_cast<double>(this->largest)));
    if (this->largest >= kInfBits) out.nonfinite = count_nonfinite<Complex<float>>(data, bytes);
    return out;
  }
};

template <bool kSums>
struct DoubleLane : WideSums<kSums> {
  __device__ __forceinline__ void take(const uint4& v) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const double x = element<double>(v, i);
      this->add(i, x * x, abs_bits(x), [x] { return fabs(x); });
    }
  }

  __device__ __forceinline__ LaneSums finish(const char* data, uint32_t bytes) const {
    LaneSums out = this->sums();
    out.max_bits = this->largest;
    const double x = bit_cast<double>(this->largest);
    if (bin_of(x) != 0) finish_scaled<double, kSums>(data, bytes, x, out);
    return out;
  }
};

/// complex128: the sum of squares |z|^2 is right, and so is its maximum, where it lies in
/// [2^-800, 2^960]; everywhere else |z| is computed by hypot in a second reading.
template <bool kSums>
struct Complex128Lane {
  double sq = 0, absolute = 0;
  uint64_t largest_sq = 0, parts = 0;
  uint32_t nonzero = 0;

  __device__ __forceinline__ void take(const uint4& v) {
    const Complex<double> z = element<Complex<double>>(v, 0);
    const double s = scaled_square(z, 1.0);
    const uint64_t bits = abs_bits(s), part_bits = abs_bits(z.re) | abs_bits(z.im);
    sq += s;
    largest_sq = bits > largest_sq ? bits : largest_sq;
    parts |= part_bits;
    if (kSums) {
      absolute += sqrt(s);
      nonzero += part_bits != 0;
    }
  }

  __device__ __forceinline__ LaneSums finish(const char* data, uint32_t bytes) const {
    LaneSums out;
    out.sq = sq;
    out.absolute = absolute;
    out.nonzero = nonzero;
    const double s = bit_cast<double>(largest_sq);
    out.max_bits = abs_bits(sqrt(s));
    if (parts == 0 || (s >= 0x1p-800 && s <= 0x1p+960)) return out;
    uint64_t largest = 0;
    visit_elements<Complex<double>>(data, bytes, [&](Complex<double> z) {
      const uint64_t bits = abs_bits(magnitude(z));
      largest = bits > largest ? bits : largest;
    });
    out.max_bits = largest;
    finish_scaled<Complex<double>, kSums>(data, bytes, bit_cast<double>(largest), out);
    return out;
  }
};

template <class Lane>
__device__ __forceinline__ LaneSums measure_with(const char* data, uint32_t bytes) {
  Lane lane;
  read_chunk(data, bytes, [&](const uint4& v) { lane.take(v); });
  return lane.finish(data, bytes);
}

/// This thread's part of a chunk, the type decided here.
template <bool kSums>
__device__ __forceinline__ LaneSums measure_lane(const ChunkView& chunk) {
  const char* data = global_bytes(chunk);
  switch (chunk.dtype) {
    case DType::kFloat32: return measure_with<NarrowLane<float, kSums>>(data, chunk.bytes);
    case DType::kBFloat16: return measure_with<NarrowLane<BFloat16, kSums>>(data, chunk.bytes);
    case DType::kFloat16: return measure_with<NarrowLane<Float16, kSums>>(data, chunk.bytes);
    case DType::kFloat64: return measure_with<DoubleLane<kSums>>(data, chunk.bytes);
    case DType::kComplex64: return measure_with<Complex64Lane<kSums>>(data, chunk.bytes);
    case DType::kComplex128: return measure_with<Complex128Lane<kSums>>(data, chunk.bytes);
  }
  return {};
}

}  // namespace gradkern::cuda
