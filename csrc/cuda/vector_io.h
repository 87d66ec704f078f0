// Reading and writing one chunk by a block, 16 bytes at a time, whatever the type of the elements.
//
// Vector v of a chunk always belongs to thread v % kThreads, in ascending order, whether or not
// the pointer is aligned: the same bits come out for every alignment.
#pragma once

#include <cuda_runtime.h>

#include "cuda/table.h"

namespace gradkern::cuda {

constexpr uint32_t kVectorBytes = 16;
constexpr uint32_t kLoadsInFlight = 4;
constexpr uint32_t kBatch = kThreads * kLoadsInFlight;  ///< vectors a block reads at a time

__device__ __forceinline__ uint4 zero_vector() { return make_uint4(0, 0, 0, 0); }

/// Read once and never written by the same kernel: past L1. Volatile keeps a batch of loads
/// together, ahead of the arithmetic on the first of them.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
#else
  return *from;
#endif
}

/// Not `nc`, which is for memory that the kernel does not write.
__device__ __forceinline__ uint4 load_to_write(const uint4* from) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
#else
  return *from;
#endif
}

/// 32-bit word i of a vector; i must be a compile-time constant after unrolling.
__device__ __forceinline__ uint32_t& word(uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/// The first `bytes` bytes (even, at most 16) of a vector at any even address, the rest zero.
__device__ __forceinline__ uint4 load_part(const char* from, uint32_t bytes) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(from);
  uint4 v = zero_vector();
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (2u * i < bytes) word(v, i / 2) |= uint32_t(halves[i]) << (16 * (i % 2));
  return v;
}

__device__ __forceinline__ void store_part(char* to, uint4 v, uint32_t bytes) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(to);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (2u * i < bytes) halves[i] = uint16_t(word(v, i / 2) >> (16 * (i % 2)));
}

/// A whole vector from an even address, out of the two aligned ones that it lies in.
__device__ __forceinline__ uint4 load_across(const char* from) {
  const uint64_t address = reinterpret_cast<uint64_t>(from);
  const uint4* aligned = reinterpret_cast<const uint4*>(from - (address & 15u));
  const uint4 a = aligned[0], b = aligned[1];
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

__device__ __forceinline__ bool is_aligned(const void* data) {
  return (reinterpret_cast<uint64_t>(data) & (kVectorBytes - 1)) == 0;
}

/// Whether vector v of a misaligned chunk lies across two aligned vectors of nothing but the chunk's bytes.
__device__ __forceinline__ bool is_inside(uint32_t v, uint32_t vectors) { return v != 0 && v + 1 < vectors; }

/// Calls take(vector) for every vector of this thread. The end of a chunk is padded with zeros,
/// and take may be called with a vector of nothing but padding.
template <class Take>
__device__ __forceinline__ void read_chunk(const char* data, uint32_t bytes, const Take& take) {
  const uint32_t vectors = bytes / kVectorBytes;
  uint32_t v = threadIdx.x;
  if (is_aligned(data)) {
    const uint4* from = reinterpret_cast<const uint4*>(data) + threadIdx.x;
    uint32_t begin = 0;
#pragma unroll 1
    for (; begin + kBatch <= vectors; begin += kBatch, from += kBatch) {
      uint4 x[kLoadsInFlight];
#pragma unroll
      for (uint32_t k = 0; k < kLoadsInFlight; ++k) x[k] = load_once(from + k * kThreads);
#pragma unroll
      for (uint32_t k = 0; k < kLoadsInFlight; ++k) take(x[k]);
    }
    if (begin + v < vectors) {
      uint4 x[kLoadsInFlight];
#pragma unroll
      for (uint32_t k = 0; k < kLoadsInFlight; ++k)
        x[k] = begin + v + k * kThreads < vectors ? load_once(from + k * kThreads) : zero_vector();
#pragma unroll
      for (uint32_t k = 0; k < kLoadsInFlight; ++k) take(x[k]);
    }
  } else {
#pragma unroll 1
    for (; v < vectors; v += kThreads) {
      const char* from = data + v * kVectorBytes;
      take(is_inside(v, vectors) ? load_across(from) : load_part(from, kVectorBytes));
    }
  }
  const uint32_t rest = bytes % kVectorBytes;
  if (rest != 0 && threadIdx.x == vectors % kThreads)
    take(load_part(data + vectors * kVectorBytes, rest));
}

/// The slow way to the same vectors: take(vector, valid bytes), one load at a time. For what is
/// rare, so that it does not take registers from what is not.
template <class Take>
__device__ __forceinline__ void read_chunk_again(const char* data, uint32_t bytes,
                                                 const Take& take) {
#pragma unroll 1
  for (uint32_t begin = threadIdx.x * kVectorBytes; begin < bytes;
       begin += kThreads * kVectorBytes) {
    const uint32_t left = bytes - begin;
    const uint32_t valid = left < kVectorBytes ? left : kVectorBytes;
    const bool whole = valid == kVectorBytes && is_aligned(data);
    take(whole ? load_once(reinterpret_cast<const uint4*>(data + begin)) : load_part(data + begin, valid), valid);
  }
}

/// The slow way: change(uint4&) on one vector at a time from the start on. For what is rare.
template <class Change>
__device__ __forceinline__ void rewrite_chunk_slowly(char* data, uint32_t bytes, const Change& change) {
#pragma unroll 1
  for (uint32_t begin = threadIdx.x * kVectorBytes; begin < bytes; begin += kThreads * kVectorBytes) {
    const uint32_t left = bytes - begin;
    const uint32_t valid = left < kVectorBytes ? left : kVectorBytes;
    uint4 v = load_part(data + begin, valid);
    if (change(v)) store_part(data + begin, v, valid);
  }
}

/// Replaces the elements of a chunk, 16 bytes at a time: change(uint4&) is called once for every element's bytes
/// and returns whether to write. What lies before the first aligned address and after the last one comes padded
/// with zeros; the padding is not written.
template <class Real, class Change>
__device__ __forceinline__ void rewrite_chunk(char* data, uint32_t bytes, const Change& change) {
  const uint64_t address = reinterpret_cast<uint64_t>(data);
  if (address % sizeof(Real) != 0) return rewrite_chunk_slowly(data, bytes, change);
  const uint32_t to_aligned = uint32_t(-address) % kVectorBytes, head = to_aligned < bytes ? to_aligned : bytes;
  const uint32_t vectors = (bytes - head) / kVectorBytes, rest = (bytes - head) % kVectorBytes;
  uint4* at = reinterpret_cast<uint4*>(data + head);
  uint32_t v = threadIdx.x;
#pragma unroll 1
  for (; v + 3 * kThreads < vectors; v += kBatch) {
    uint4 x[kLoadsInFlight];
#pragma unroll
    for (uint32_t k = 0; k < kLoadsInFlight; ++k) x[k] = load_to_write(at + v + k * kThreads);
#pragma unroll
    for (uint32_t k = 0; k < kLoadsInFlight; ++k)
      if (change(x[k])) at[v + k * kThreads] = x[k];
  }
#pragma unroll 1
  for (; v < vectors; v += kThreads) {
    uint4 x = load_to_write(at + v);
    if (change(x)) at[v] = x;
  }
  // The two ends: one warp's, beside the others' last vectors.
  if (threadIdx.x / 2 != kThreads / 2 - 1) return;
  const bool first = threadIdx.x % 2 == 0;
  const uint32_t part = first ? head : rest;
  if (part == 0) return;
  char* end = first ? data : reinterpret_cast<char*>(at + vectors);
  uint4 x = load_part(end, part);
  if (change(x)) store_part(end, x, part);
}

}  // namespace gradkern::cuda
