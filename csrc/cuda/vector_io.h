// Reads and writes one unit of a tensor in a warp, 16 bytes at a time, for all element types.
//
// A unit is read in batches of four vectors per lane. Vector v of a unit belongs to lane v % 32 for every alignment of
// the pointer, so that results do not depend on the alignment.
#pragma once

#include <cuda_runtime.h>

#include "cuda/tensor_table.h"

namespace gradkern::cuda {

constexpr uint32_t kVectorBytes = 16;
constexpr uint32_t kRowBytes = kVectorBytes * kWarpSize;  ///< what a warp reads with one instruction
constexpr int kRows = 4;  ///< of a batch: the number of loads that a lane has in flight
constexpr uint32_t kBatchBytes = kRows * kRowBytes;

/// A lane's part of a batch, or of one of its rows, padded with zeros.
template <int kCount>
struct VectorRows {
  uint4 row[kCount];
};
using Vectors = VectorRows<kRows>;

__device__ __forceinline__ uint4 zero_vector() { return make_uint4(0, 0, 0, 0); }

/// Loads memory that the kernel reads once and does not write, bypassing L1. `volatile` keeps the loads of a batch
/// together, before the arithmetic on the first of them.
__device__ __forceinline__ uint4 load_once(const char* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
#else
  return *reinterpret_cast<const uint4*>(from);
#endif
}

/// The same without `nc`, which is only for memory that the kernel does not write.
__device__ __forceinline__ uint4 load_to_write(const char* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
#else
  return *reinterpret_cast<const uint4*>(from);
#endif
}

__device__ __forceinline__ void store_vector(char* to, const uint4& v) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
  *reinterpret_cast<uint4*>(to) = v;
#endif
}

/// 32-bit word i of a vector; i must be a compile-time constant after unrolling.
__device__ __forceinline__ uint32_t& word(uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/// Tells the compiler that the memory is global, so that it uses LDG and STG instead of the generic LD and ST.
template <class T>
__device__ __forceinline__ T* global(T* at) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(at));
#endif
  return at;
}

// Out of line, because only the ends of tensors need it.

/// The first `bytes` bytes (even, at most 16) of a vector at any even address, the rest zero.
inline __device__ GRADKERN_NOINLINE uint4 load_part(const char* from, uint32_t bytes) {
  const uint16_t* halves = global(reinterpret_cast<const uint16_t*>(from));
  uint4 v = zero_vector();
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (2u * i < bytes) word(v, i / 2) |= uint32_t(halves[i]) << (16 * (i % 2));
  return v;
}

__device__ __forceinline__ void store_half(char* to, uint16_t half) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(half) : "memory");
#else
  *reinterpret_cast<uint16_t*>(to) = half;
#endif
}

inline __device__ GRADKERN_NOINLINE void store_part(char* to, uint4 v, uint32_t bytes) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (2u * i < bytes) store_half(to + 2 * i, uint16_t(word(v, i / 2) >> (16 * (i % 2))));
}

/// A whole vector at an even address, from the two aligned vectors that contain it.
__device__ __forceinline__ uint4 load_across(const char* from) {
  const uint64_t address = reinterpret_cast<uint64_t>(from);
  const char* aligned = from - (address & 15u);
  const uint4 a = load_once(aligned), b = load_once(aligned + kVectorBytes);
  const bool two = address & 8u, one = address & 4u;
  uint32_t w[6], x[5];
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const uint32_t low = i < 4 ? word(a, i) : word(b, i - 4), high = i < 2 ? word(a, i + 2) : word(b, i - 2);
    w[i] = two ? high : low;
  }
#pragma unroll
  for (int i = 0; i < 5; ++i) x[i] = one ? w[i + 1] : w[i];
  const auto shifted = [&](int i) {
    return uint32_t((uint64_t(x[i + 1]) << 32 | x[i]) >> (address & 2u) * 8);  // SHF, a funnel shift
  };
  return make_uint4(shifted(0), shifted(1), shifted(2), shifted(3));
}

__device__ __forceinline__ bool is_aligned(const char* data) {
  return (reinterpret_cast<uint64_t>(data) & (kVectorBytes - 1)) == 0;
}

__device__ __forceinline__ uint32_t lane_offset() { return threadIdx.x % kWarpSize * kVectorBytes; }

/// The number of bytes of the vector at `offset` that lie within `bytes`.
__device__ __forceinline__ uint32_t valid_bytes(uint32_t bytes, uint32_t offset) {
  return bytes <= offset ? 0 : bytes - offset < kVectorBytes ? bytes - offset : kVectorBytes;
}

/// One vector of a misaligned or incomplete unit. load_across() is used only if both aligned vectors lie within the unit.
inline __device__ GRADKERN_NOINLINE uint4 load_carefully(const char* unit, uint32_t offset, uint32_t bytes) {
  if (offset != 0 && offset + 2 * kVectorBytes <= bytes) return load_across(unit + offset);
  return load_part(unit + offset, valid_bytes(bytes, offset));
}

/// The batch, or the rows of one, at `begin` of a unit of `bytes` bytes. Out of line, because all types share it.
template <int kCount>
__device__ GRADKERN_NOINLINE VectorRows<kCount> load_rows_carefully(const char* unit, uint32_t begin, uint32_t bytes) {
  VectorRows<kCount> v;
#pragma unroll
  for (int r = 0; r < kCount; ++r) {
    const uint32_t offset = begin + lane_offset() + uint32_t(r) * kRowBytes;
    const bool whole = is_aligned(unit) && offset + kVectorBytes <= bytes;
    v.row[r] = whole ? load_once(unit + offset) : load_carefully(unit, offset, bytes);
  }
  return v;
}

/// Calls visit(VectorRows<kStep>) for so many rows of a batch at a time, in a loop. The next rows are moved to the place of
/// the first, because registers have no index.
template <int kStep, int kCount, class Visit>
__device__ __forceinline__ void for_each_rows(VectorRows<kCount> v, const Visit& visit) {
#pragma unroll 1
  for (int row = 0; row < kCount; row += kStep) {
    VectorRows<kStep> first;
#pragma unroll
    for (int i = 0; i < kStep; ++i) first.row[i] = v.row[i];
    visit(first);
#pragma unroll
    for (int i = kStep; i < kCount; ++i) v.row[i - kStep] = v.row[i];
  }
}

/// A lane's part of a whole batch, `from` an aligned address in its first row.
__device__ __forceinline__ Vectors load_batch(const char* from) {
  Vectors v;
#pragma unroll
  for (int r = 0; r < kRows; ++r) v.row[r] = load_once(from + uint32_t(r) * kRowBytes);
  return v;
}

/// Rewrites a unit at any even address, one vector at a time, with change(uint4&). For rare cases.
template <class Change>
__device__ __forceinline__ void rewrite_unit_slowly(char* unit, uint32_t bytes, const Change& change) {
#pragma unroll 1
  for (uint32_t begin = lane_offset(); begin < bytes; begin += kRowBytes) {
    const uint32_t valid = valid_bytes(bytes, begin);
    uint4 v = load_part(unit + begin, valid);
    if (change(v)) store_part(unit + begin, v, valid);
  }
}

/// Rewrites `bytes` bytes (at most a unit) at an aligned address, including an incomplete vector at the end.
template <class Change>
__device__ __forceinline__ void rewrite_aligned(char* from, uint32_t bytes, const Change& change) {
  char* at = from + lane_offset();
#pragma unroll 1
  for (; bytes >= kBatchBytes; bytes -= kBatchBytes, at += kBatchBytes) {
    Vectors v;
#pragma unroll
    for (int r = 0; r < kRows; ++r) v.row[r] = load_to_write(at + uint32_t(r) * kRowBytes);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (change(v.row[r])) store_vector(at + uint32_t(r) * kRowBytes, v.row[r]);
  }
#pragma unroll 1
  for (uint32_t offset = lane_offset(); offset < bytes; offset += kRowBytes, at += kRowBytes) {
    const uint32_t valid = valid_bytes(bytes, offset);
    uint4 v = valid == kVectorBytes ? load_to_write(at) : load_part(at, valid);
    if (!change(v)) continue;
    if (valid == kVectorBytes) store_vector(at, v);
    else store_part(at, v, valid);
  }
}

/// Rewrites the elements of a unit, 16 bytes at a time. change(uint4&) is called once for the bytes of each element and
/// returns whether to write. Padding is not written. If the tensor is not aligned, its units begin at the first aligned
/// address, and the elements before that belong to the first unit.
template <class Real, class Change>
__device__ __forceinline__ void rewrite_unit(const Segment& s, uint32_t unit, const Change& change) {
  char* data = reinterpret_cast<char*>(s.data);
  const uint64_t begin = uint64_t(unit) << kUnitLog2;
  if (s.data % sizeof(Real) != 0) return rewrite_unit_slowly(data + begin, s.unit_bytes(unit), change);
  const uint32_t to_aligned = uint32_t(-s.data) % kVectorBytes;
  const uint64_t bytes = (uint64_t(s.units - 1) << kUnitLog2) + s.last_bytes;
  if (begin + to_aligned < bytes) {
    const uint64_t left = bytes - begin - to_aligned;
    rewrite_aligned(data + begin + to_aligned, left < kUnitBytes ? uint32_t(left) : kUnitBytes, change);
  }
  if (unit != 0 || to_aligned == 0 || threadIdx.x % kWarpSize != kWarpSize - 1) return;
  const uint32_t head = bytes < to_aligned ? uint32_t(bytes) : to_aligned;
  uint4 v = load_part(data, head);
  if (change(v)) store_part(data, v, head);
}

}  // namespace gradkern::cuda
