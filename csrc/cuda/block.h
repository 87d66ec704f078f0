// Combining what the threads of a warp and of a block hold, in an order that never changes.
#pragma once

#include "cuda/lanes.h"

namespace gradkern::cuda {

// Shared memory of a block; the tests' model of a GPU has its own (csrc/tests/cuda_shim).
#if !defined(GRADKERN_SHARED)
#define GRADKERN_SHARED(type, name) __shared__ type name
#endif

constexpr uint32_t kWarpSize = 32;
constexpr uint32_t kWarps = kThreads / kWarpSize;

/// Room for one T a warp.
template <class T>
using PerWarp = T[kWarps];

constexpr unsigned kFullMask = 0xffffffffu;

template <int kWidth>
__device__ __forceinline__ uint32_t warp_max(uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(kFullMask, x, step);
    x = other > x ? other : x;
  }
  return x;
#else
  return __reduce_max_sync(kFullMask, x);  // lanes beyond kWidth hold nothing larger
#endif
}

template <int kWidth>
__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
  const uint32_t high = warp_max<kWidth>(uint32_t(x >> 32));
  const uint32_t low = warp_max<kWidth>(uint32_t(x >> 32) == high ? uint32_t(x) : 0u);
  return uint64_t(high) << 32 | low;
}

template <int kWidth, class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullMask, x, step);
  return x;
}

/// Lanes bring their sums to the largest bin among those that have a sum at all.
template <int kWidth>
__device__ __forceinline__ void warp_align_bins(LaneSums& s) {
  // A sum of zero must not lift the others into a bin in which they vanish.
  const uint32_t own = s.sq == 0 ? 0u : uint32_t(s.bin + 1);
  const uint32_t bin = warp_max<kWidth>(own);
  for (uint32_t b = own; b < bin; ++b) s.sq = s.sq * kBinDown * kBinDown;
  s.bin = int32_t(bin) - 1;
}

/// The first kWidth lanes of a warp hold the result; kWidth is a power of two, and lanes beyond
/// it hold a copy of lower ones or nothing.
template <int kWidth, bool kSums>
__device__ __forceinline__ LaneSums warp_combine(LaneSums s) {
  warp_align_bins<kWidth>(s);
  s.sq = warp_sum<kWidth>(s.sq);
  s.max_bits = warp_max<kWidth>(s.max_bits);
  s.nonfinite = warp_sum<kWidth>(s.nonfinite);
  if (kSums) {
    s.absolute = warp_sum<kWidth>(s.absolute);
    s.nonzero = warp_sum<kWidth>(s.nonzero);
  }
  return s;
}

/// Room for one LaneSums a warp, twice: a warp that is done with a chunk may write its result of
/// the next one while the first warp still reads, so that one barrier a chunk is enough.
struct BlockSums {
  LaneSums warps[2][kWarps];
};

/// The sums of the block, valid in its first warp. `turn` alternates between 0 and 1.
template <bool kSums>
__device__ __forceinline__ LaneSums block_combine(LaneSums s, BlockSums& shared, uint32_t turn) {
  s = warp_combine<kWarpSize, kSums>(s);
  const uint32_t warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (lane == 0) shared.warps[turn][warp] = s;
  __syncthreads();
  if (warp != 0) return s;
  return warp_combine<kWarps, kSums>(shared.warps[turn][lane % kWarps]);
}

__device__ __forceinline__ PowerSum shuffle_power(const PowerSum& s, int step) {
  return {__shfl_xor_sync(kFullMask, s.ref, step), __shfl_xor_sync(kFullMask, s.hi, step),
          __shfl_xor_sync(kFullMask, s.lo, step)};
}

/// PowerSums are combined lower lane first, so that every lane computes the same.
template <int kWidth>
__device__ __forceinline__ PowerSum warp_combine(const NormOrder& order, PowerSum s) {
#pragma unroll 1
  for (int step = 1; step < kWidth; step *= 2) {
    const PowerSum other = shuffle_power(s, step);
    const bool lower = (threadIdx.x & uint32_t(step)) == 0;
    s = lower ? combine(order, s, other) : combine(order, other, s);
  }
  return s;
}

/// The same for whole Partials, by a tree over neighbours: lane i holds what comes before lane
/// i + 1. Only lane 0's result is meant to be used.
template <int kWidth>
__device__ __forceinline__ Partial warp_combine(const NormOrder& order, Partial s) {
#pragma unroll 1
  for (int step = 1; step < kWidth; step *= 2) {
    Partial other;
    other.sq.hi = __shfl_down_sync(kFullMask, s.sq.hi, step);
    other.sq.lo = __shfl_down_sync(kFullMask, s.sq.lo, step);
    other.sq.bin = __shfl_down_sync(kFullMask, s.sq.bin, step);
    if (order.kind != NormKind::kTwo && order.kind != NormKind::kInf) {
      other.power.ref = __shfl_down_sync(kFullMask, s.power.ref, step);
      other.power.hi = __shfl_down_sync(kFullMask, s.power.hi, step);
      other.power.lo = __shfl_down_sync(kFullMask, s.power.lo, step);
    }
    other.max_bits = __shfl_down_sync(kFullMask, s.max_bits, step);
    other.nonfinite = __shfl_down_sync(kFullMask, s.nonfinite, step);
    other.zeros = __shfl_down_sync(kFullMask, s.zeros, step);
    other.numel = __shfl_down_sync(kFullMask, s.numel, step);
    s = combine(order, s, other);
  }
  return s;
}

/// Everything the block's threads hold, in thread 0; T is PowerSum or Partial, `shared` has room for
/// one a warp.
template <class T>
__device__ __forceinline__ T block_combine(const NormOrder& order, T s, T* shared) {
  s = warp_combine<kWarpSize>(order, s);
  const uint32_t warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (lane == 0) shared[warp] = s;
  __syncthreads();
  if (warp == 0) s = warp_combine<kWarps>(order, shared[lane % kWarps]);
  __syncthreads();
  return s;
}

}  // namespace gradkern::cuda
