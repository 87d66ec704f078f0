// From chunks to tensors to the total and the clip coefficient, in one small launch.
#include "core/clip.h"
#include "core/packed.h"
#include "cuda/block.h"
#include "cuda/usable.h"
#include "cuda/workspace.h"

namespace gradkern::cuda {
namespace {

struct FinishParams {
  Workspace workspace;
  MeasureResults results;
  NormOrder order;
  double max_norm;
  double inv_scale;  ///< not negative
  OnNonfinite on_nonfinite;
  uint32_t tensors;
  bool any_large_tensor;
};

struct CombineParams {
  const Partial* totals;
  FinishParams finish;
};

__device__ __forceinline__ void store_real(void* to, int64_t i, double value, bool is_double) {
  if (!to) return;
  if (is_double) static_cast<double*>(to)[i] = value;
  else static_cast<float*>(to)[i] = float(value);
}

/// A norm of the gradients times inv_scale; a count does not scale.
__device__ __forceinline__ double scaled_norm(const FinishParams& p, const Partial& s) {
  const double norm = finish(p.order, s);
  return p.order.kind == NormKind::kZero ? norm : norm * p.inv_scale;
}

/// Row `row` of what is packed for other ranks.
__device__ __forceinline__ void store_packed(const FinishParams& p, uint32_t row, const Partial& s) {
  const MeasureResults& r = p.results;
  pack(p.order, s, r.packed_sums + int64_t(row) * kPackedSums, r.packed_keys + int64_t(row) * kPackedKeys);
}

__device__ void store_results(const FinishParams& p, uint32_t tensor, const Partial& s) {
  const MeasureResults& r = p.results;
  store_real(r.norm, tensor, scaled_norm(p, s), r.is_double);
  store_real(r.l2, tensor, finish(s.sq) * p.inv_scale, r.is_double);
  store_real(r.max_abs, tensor, max_abs(s) * p.inv_scale, r.is_double);
  if (r.nonfinite) r.nonfinite[tensor] = s.nonfinite;
  if (r.zeros) r.zeros[tensor] = s.zeros;
  if (r.packed_rows) store_packed(p, tensor, s);
}

__device__ void store_tensor(const FinishParams& p, uint32_t tensor, const Partial& s) {
  p.workspace.rows[tensor] = s;
  store_results(p, tensor, s);
}

__device__ void store_total(const FinishParams& p, const Partial& s) {
  const MeasureResults& r = p.results;
  const double total = decision_norm(scaled_norm(p, s), r.is_double);
  store_real(r.total_norm, 0, total, r.is_double);
  store_real(r.decision_norm, 0, total, true);
  const ClipDecision decision = decide_clip(p.max_norm, total, s.nonfinite, p.on_nonfinite);
  store_real(r.clip_coef, 0, decision.coef, r.is_double);
  if (r.total_nonfinite) *r.total_nonfinite = s.nonfinite;
  if (r.skip_step) *r.skip_step = s.nonfinite > 0;
  if (r.total) *r.total = s;
  if (r.packed_sums) store_packed(p, r.packed_rows ? p.tensors : 0, s);
}

/// How many loads are under way at once; a combination of power sums is long, and its code large.
template <bool kPower>
constexpr uint32_t kBatch = kPower ? 1 : 4;

template <bool kPower>
__device__ __forceinline__ Partial chunk_partial(const Workspace& w, uint32_t chunk) {
  const ChunkSums sums = w.sums[chunk];
  Partial s;
  s.sq = {sums.sq, 0, sums.bin};
  s.max_bits = sums.max_bits;
  s.nonfinite = sums.nonfinite;
  s.numel = sums.numel;
  if (w.extras) {
    const ChunkExtras extras = w.extras[chunk];
    if (kPower) s.power = extras.power;
    s.zeros = extras.zeros;
  }
  return s;
}

/// The order as far as combining asks for it: known to the compiler where there are no power sums, so that
/// nothing of theirs is left in the kernel that almost every call runs.
template <bool kPower>
__device__ __forceinline__ NormOrder combined_order(const FinishParams& p) {
  return kPower ? p.order : NormOrder{};
}

/// Lane `lane`'s share of load(0) … load(count - 1): every lanes-th, for coalesced loads. The order
/// of combination is fixed by count and lanes alone.
template <uint32_t kBatch, class Load>
__device__ __forceinline__ Partial combine_share(const NormOrder& order, uint32_t count,
                                                 uint32_t lane, uint32_t lanes,
                                                 const Load& load) {
  Partial s = empty_partial(order);
  // Combining branches on what was loaded: a batch is loaded before, so that its loads are waited for once.
  for (uint32_t i = lane; i < count; i += kBatch * lanes) {
    Partial batch[kBatch];
#pragma unroll
    for (uint32_t k = 0; k < kBatch; ++k) {
      const uint32_t at = i + k * lanes;
      batch[k] = load(at < count ? at : i);
    }
#pragma unroll
    for (uint32_t k = 0; k < kBatch; ++k)
      if (i + k * lanes < count) s = combine(order, s, batch[k]);
  }
  return s;
}

template <bool kPower>
__device__ void finish_small_tensors(const FinishParams& p) {
  const NormOrder order = combined_order<kPower>(p);
  const uint32_t lane = threadIdx.x % kWarpSize;
  const uint32_t warp = blockIdx.x * kWarps + threadIdx.x / kWarpSize;
  for (uint32_t tensor = warp; tensor < p.tensors; tensor += gridDim.x * kWarps) {
    const uint32_t first = p.workspace.first_chunk[tensor];
    const uint32_t chunks = p.workspace.first_chunk[tensor + 1] - first;
    if (chunks > kChunksForWarp) continue;
    Partial s = combine_share<kBatch<kPower>>(order, chunks, lane, kWarpSize, [&](uint32_t i) {
      return chunk_partial<kPower>(p.workspace, first + i);
    });
    if (chunks > 1) s = warp_combine<kWarpSize>(order, s);
    if (lane == 0) store_tensor(p, tensor, s);
  }
}

template <bool kPower>
__device__ void finish_large_tensors(const FinishParams& p, Partial* shared) {
  const NormOrder order = combined_order<kPower>(p);
  for (uint32_t tensor = blockIdx.x; tensor < p.tensors; tensor += gridDim.x) {
    const uint32_t first = p.workspace.first_chunk[tensor];
    const uint32_t chunks = p.workspace.first_chunk[tensor + 1] - first;
    if (chunks <= kChunksForWarp) continue;
    Partial s = combine_share<kBatch<kPower>>(order, chunks, threadIdx.x, kThreads, [&](uint32_t i) {
      return chunk_partial<kPower>(p.workspace, first + i);
    });
    s = block_combine(order, s, shared);
    if (threadIdx.x == 0) store_tensor(p, tensor, s);
  }
}

/// A tensor listed twice has its row twice, but is in the total once: its own Partial is empty.
__device__ void repeat_rows(const FinishParams& p) {
  for (uint32_t tensor = threadIdx.x; tensor < p.tensors; tensor += kThreads) {
    const uint32_t source = p.workspace.repeats[tensor];
    if (source != 0 && source - 1 != tensor) store_results(p, tensor, p.workspace.rows[source - 1]);
  }
}

/// Whether this block is the last of the grid to get here; what the others wrote is visible then.
///
/// By the PTX memory model (ISA, "Memory Consistency Model"): let w be a write of any thread of block B, and r a
/// read of it by any thread of the last block L.
///   1. w precedes thread 0's first fence in causality order: the barrier of B synchronises the two.
///   2. That fence and the atomicAdd after it are a release pattern; L's atomicAdd and the fence after it are an acquire
///      pattern. L's atomicAdd is the last of the modification order, so that it observes B's through the chain of
///      read-modify-writes between them. Both are morally strong (device scope, atomic): B's fence synchronises with L's.
///   3. L's fence precedes r by L's second barrier.
/// Causality order is transitive: w precedes r. Fences ahead of the first barrier, in the threads that write, would
/// not do: the atomicAdd that publishes is another thread's, and thread 0's own fence would come before the barrier.
__device__ bool last_block(uint32_t* blocks_done) {
  GRADKERN_SHARED(bool, last);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(blocks_done, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

template <bool kPower>
__global__ void __launch_bounds__(kThreads, 1) finish_kernel(const __grid_constant__ FinishParams p) {
  GRADKERN_SHARED(PerWarp<Partial>, shared);
  finish_small_tensors<kPower>(p);
  if (p.any_large_tensor) finish_large_tensors<kPower>(p, shared);
  if (!last_block(p.workspace.blocks_done)) return;
  const NormOrder order = combined_order<kPower>(p);
  Partial s = combine_share<kBatch<kPower>>(order, p.tensors, threadIdx.x, kThreads,
                                            [&](uint32_t i) { return p.workspace.rows[i]; });
  s = block_combine(order, s, shared);
  if (threadIdx.x == 0) store_total(p, s);
  if (p.workspace.repeats) repeat_rows(p);
}

/// A handful of devices: one thread does it, in order.
__global__ void combine_kernel(const __grid_constant__ CombineParams p) {
  const Partial s = combine_share<1>(p.finish.order, p.finish.tensors, 0, 1,
                                     [&](uint32_t i) { return p.totals[i]; });
  store_total(p.finish, s);
}

// ------------------------------------------------------------------------------- launchers

double absolute(double x) { return x < 0 ? -x : x; }

}  // namespace

void launch_finish(const MeasureLaunch& launch, const Workspace& workspace, bool any_large_tensor,
                   int multiprocessors) {
  const uint32_t tensors = uint32_t(launch.list.count);
  const FinishParams p{workspace,
                       launch.results,
                       launch.options.order,
                       launch.max_norm,
                       absolute(launch.inv_scale),
                       launch.on_nonfinite,
                       tensors,
                       any_large_tensor};
  const uint32_t wanted = any_large_tensor ? tensors : uint32_t(chunks_of(tensors, kWarps));
  const bool power = launch.options.order.kind != NormKind::kTwo && launch.options.order.kind != NormKind::kInf;
  const auto kernel = power ? finish_kernel<true> : finish_kernel<false>;
  launch_kernel(kernel, grid_for(wanted, multiprocessors), kThreads, launch.list.stream, p,
                "cudaLaunchKernel(finish_kernel)", "measure");
}

void launch_combine(const CombineLaunch& launch) {
  DeviceGuard guard(launch.device, "combine");
  CombineParams p{launch.totals, {}};
  p.finish.on_nonfinite = launch.on_nonfinite;
  p.finish.results = launch.results;
  p.finish.order = launch.order;
  p.finish.max_norm = launch.max_norm;
  p.finish.inv_scale = absolute(launch.inv_scale);
  p.finish.tensors = uint32_t(launch.count);
  launch_kernel(combine_kernel, 1, 1, launch.stream, p, "cudaLaunchKernel(combine_kernel)",
                "combine");
}

cudaError_t load_finish_kernels() {
  return load_kernels(finish_kernel<false>, finish_kernel<true>, combine_kernel);
}

}  // namespace gradkern::cuda
