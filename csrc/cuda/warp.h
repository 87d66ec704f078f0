// Communication between the lanes of a warp and between the blocks of a grid.
#pragma once

#include "core/portable.h"
#include "cuda/tensor_table.h"

namespace gradkern::cuda {

// Shared memory of a block; the tests' model of a GPU has its own (csrc/tests/cuda_shim).
#if !defined(GRADKERN_SHARED)
#define GRADKERN_SHARED(type, name) __shared__ type name
#endif

/// The value of the lane `step` above, moved as 32-bit words.
template <class T>
__device__ __forceinline__ T shuffle_down(const T& value, int step) {
  static_assert(sizeof(T) % 4 == 0);
  struct Words {
    uint32_t word[sizeof(T) / 4];
  };
  Words words = bit_cast<Words>(value);
#pragma unroll
  for (int i = 0; i < int(sizeof(T) / 4); ++i) words.word[i] = __shfl_down_sync(kFullMask, words.word[i], step);
  return bit_cast<T>(words);
}

// Reductions over all lanes, with the result in every lane. Sums are trees of a fixed order.

// Where the compiler cannot show that a warp is together, it adds a second, longer sequence for the case that it is not. So
// what is long is out of line.
inline __device__ GRADKERN_NOINLINE double warp_sum(double x) {
#pragma unroll
  for (int lanes = 1; lanes < int(kWarpSize); lanes *= 2) x += __shfl_xor_sync(kFullMask, x, lanes);
  return x;
}
__device__ __forceinline__ uint32_t warp_sum(uint32_t x) { return __reduce_add_sync(kFullMask, x); }
/// By sums of 27 bits, of which 32 fit into a word.
inline __device__ GRADKERN_NOINLINE uint64_t warp_sum(uint64_t x) {
  constexpr uint32_t kBits = 27, kMask = (1u << kBits) - 1;
  const uint64_t low = warp_sum(uint32_t(x) & kMask), middle = warp_sum(uint32_t(x >> kBits) & kMask);
  return low + (middle << kBits) + (uint64_t(warp_sum(uint32_t(x >> 2 * kBits))) << 2 * kBits);
}
__device__ __forceinline__ uint32_t warp_max(uint32_t x) { return __reduce_max_sync(kFullMask, x); }
__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
  const auto high = uint32_t(x >> 32), highest = warp_max(high);
  return uint64_t(highest) << 32 | warp_max(high == highest ? uint32_t(x) : 0u);
}

/// Whether this block is the last of `blocks` to arrive at a counter; called by one thread of each. If so, the writes of
/// the other blocks before their arrival are visible to this thread, and after a __syncthreads() to its block. A block's
/// writes must be those of this thread or precede a __syncthreads() that it has passed. The last block sets the counter to
/// zero, for the next kernel in stream order.
///
/// By the PTX memory model (ISA, "Memory Consistency Model"): let w be a write of any thread of block B before B
/// arrived, and r a read of it by a thread of the last block L.
///   1. w precedes the fence of B's arriving thread in causality order, in program order or through B's barrier.
///   2. That fence and the atomicAdd after it are a release pattern; L's atomicAdd and the fence after it are an acquire
///      pattern. L's atomicAdd is the last of the modification order, so that it observes B's through the chain of
///      read-modify-writes between them. Both are morally strong (device scope, atomic): B's fence synchronises with L's.
///   3. L's fence precedes r through L's barrier.
/// Causality order is transitive, so that w precedes r. Fences in the writing threads, before the block's barrier, would
/// not be enough: the atomicAdd is that of another thread, which needs a fence after the barrier.
__device__ __forceinline__ bool arrives_last(uint32_t* counter, uint32_t blocks) {
  __threadfence();
  const bool last = atomicAdd(counter, 1u) == blocks - 1;
  if (last) {
    atomicExch(counter, 0u);
    __threadfence();
  }
  return last;
}

// Programmatic dependent launch: blocks of the next kernel may start when blocks of this one are about to end. Both
// functions do nothing without it, and before sm_90.

__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Waits until all writes of the previous kernel are visible.
__device__ __forceinline__ void wait_for_kernel_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace gradkern::cuda
