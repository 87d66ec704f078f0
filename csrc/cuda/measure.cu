// One read of all tensors: what every chunk contributes goes into the workspace.
#include <algorithm>

#include "cuda/block.h"
#include "cuda/usable.h"
#include "cuda/workspace.h"

namespace gradkern::cuda {
namespace {

struct MeasureHeader {
  ChunkSums* sums;
  ChunkExtras* extras;
  uint32_t* first_chunk;
  uint32_t* repeats;
  uint32_t* blocks_done;
  NormOrder order;
  uint32_t chunk_base, tensor_base;  ///< of this launch within the list
};

template <int kBytes>
using MeasureParams = TableParams<MeasureHeader, kBytes>;

/// Where the finishing kernel finds each tensor's chunks, which the tables of several launches
/// cannot tell it; and the counter it needs at zero, set here so that every call and every replay
/// of a graph starts from zero whatever happened to the one before.
template <class Params>
__device__ __forceinline__ void announce_tensors(const Params& p) {
  const MeasureHeader& h = p.header;
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  for (uint32_t i = thread; i <= p.tensors; i += gridDim.x * kThreads)
    h.first_chunk[h.tensor_base + i] = h.chunk_base + p.first_chunk[i];
  if (h.repeats)
    for (uint32_t i = thread; i < p.tensors; i += gridDim.x * kThreads)
      h.repeats[h.tensor_base + i] =
          p.first_chunk[i] == p.first_chunk[i + 1] ? uint32_t(p.data[i]) : 0;
  if (thread == 0) *h.blocks_done = 0;
}

__device__ __forceinline__ uint32_t numel_of(const ChunkView& view) {
  return view.bytes >> itemsize_log2(view.dtype);
}

template <class Params>
__device__ __forceinline__ void store_sums(const Params& p, uint32_t chunk, const ChunkView& view,
                                           const LaneSums& s) {
  p.header.sums[p.header.chunk_base + chunk] = {s.sq, s.max_bits, s.nonfinite, s.bin, numel_of(view)};
}

template <class Params>
__device__ __forceinline__ void store_extras(const Params& p, uint32_t chunk,
                                             const ChunkView& view, PowerSum power,
                                             uint32_t nonzero) {
  const int64_t zeros = int64_t(numel_of(view)) - nonzero;
  p.header.extras[p.header.chunk_base + chunk] = {power, zeros};
}

template <bool kSums, int kBytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    measure_kernel(const __grid_constant__ MeasureParams<kBytes> p) {
  GRADKERN_SHARED(BlockSums, shared);
  announce_tensors(p);
  uint32_t turn = 0;
  for (uint32_t chunk = blockIdx.x; chunk < p.chunks(); chunk += gridDim.x, turn ^= 1) {
    const ChunkView view = chunk_view(p, chunk);
    const LaneSums s = block_combine<kSums>(measure_lane<kSums>(view), shared, turn);
    if (threadIdx.x != 0) continue;
    store_sums(p, chunk, view, s);
    if (!kSums) continue;
    const double sum = p.header.order.kind == NormKind::kZero ? double(s.nonzero) : s.absolute;
    store_extras(p, chunk, view, {0, sum, 0}, s.nonzero);
  }
}

/// The orders -inf and any other p of this thread's elements: first the smallest magnitude, then
/// the powers relative to the dominant one (core/norm.h).
template <class T>
__device__ PowerSum measure_power(const ChunkView& chunk, const NormOrder& order) {
  const char* data = global_bytes(chunk);
  double smallest = infinity();
  uint64_t largest = 0;
  bool any = false;
  visit_elements<T>(data, chunk.bytes, [&](T x) {
    const double m = magnitude(x);
    const uint64_t bits = abs_bits(m);
    if (!(m >= smallest) && smallest == smallest) smallest = m;  // the first NaN stays
    largest = bits > largest ? bits : largest;
    any = true;
  });
  if (order.kind == NormKind::kNegInf) return {smallest, 0, 0};
  PowerSum sum;
  if (!any) return sum;
  const double top = largest > kInfBits ? quiet_nan() : bit_cast<double>(largest);
  sum.ref = order.p > 0 ? top : smallest;
  visit_elements<T>(data, chunk.bytes, [&](T x) {
    add_compensated(sum.hi, sum.lo, power_term(magnitude(x), sum.ref, order.p));
  });
  return sum;
}

__device__ PowerSum measure_power(const ChunkView& chunk, const NormOrder& order) {
  switch (chunk.dtype) {
    case DType::kFloat32: return measure_power<float>(chunk, order);
    case DType::kBFloat16: return measure_power<BFloat16>(chunk, order);
    case DType::kFloat16: return measure_power<Float16>(chunk, order);
    case DType::kFloat64: return measure_power<double>(chunk, order);
    case DType::kComplex64: return measure_power<Complex<float>>(chunk, order);
    case DType::kComplex128: return measure_power<Complex<double>>(chunk, order);
  }
  return {};
}

/// Correct, not fast: nobody clips by these orders in a training loop. A kernel of its own, so
/// that pow and hypot take no register from the others.
template <int kBytes>
__global__ void __launch_bounds__(kThreads)
    measure_power_kernel(const __grid_constant__ MeasureParams<kBytes> p) {
  GRADKERN_SHARED(BlockSums, shared);
  GRADKERN_SHARED(PerWarp<PowerSum>, shared_power);
  announce_tensors(p);
  for (uint32_t chunk = blockIdx.x; chunk < p.chunks(); chunk += gridDim.x) {
    const ChunkView view = chunk_view(p, chunk);
    const LaneSums s = block_combine<true>(measure_lane<true>(view), shared, 0);
    const NormOrder order = p.header.order;
    // Its barriers also keep the next chunk's sums from overwriting those that are still read.
    const PowerSum power = block_combine(order, measure_power(view, order), shared_power);
    if (threadIdx.x != 0) continue;
    store_sums(p, chunk, view, s);
    store_extras(p, chunk, view, power, s.nonzero);
  }
}

// ------------------------------------------------------------------------------- launchers

constexpr const char* kOperation = "measure";

template <Pass kPass, int kBytes>
void launch_one(const MeasureParams<kBytes>& p, cudaStream_t stream, int processors) {
  const unsigned blocks = grid_for(p.chunks(), processors);
  if constexpr (kPass == Pass::kPower)
    launch_kernel(measure_power_kernel<kBytes>, blocks, kThreads, stream, p,
                  "cudaLaunchKernel(measure_power_kernel)", kOperation);
  else
    launch_kernel(measure_kernel<kPass == Pass::kSums, kBytes>, blocks, kThreads, stream, p,
                  "cudaLaunchKernel(measure_kernel)", kOperation);
}

/// The launches over the list, the last one possibly with a smaller table. At least one: it also
/// resets the counter.
template <Pass kPass, int... kTableSizes>
void launch_chunks(const MeasureLaunch& launch, const Workspace& w, ChunkBytes chunk_bytes,
                   int processors) {
  const TensorList& list = launch.list;
  MeasureHeader header{w.sums,        w.extras,             w.first_chunk, w.repeats,
                       w.blocks_done, launch.options.order, 0,             0};
  const int64_t most = largest_table_tensors<MeasureHeader>(kOperation);
  int64_t done = 0;
  do {
    const int64_t next = std::min(list.count - done, most);
    with_smallest_table<MeasureHeader, kTableSizes...>(next, [&](auto& p) {
      p.header = header;
      const int64_t* first = list.first ? list.first + done : nullptr;
      done += fill_table(p, list.tensors + done, next, chunk_bytes, first);
      launch_one<kPass>(p, list.stream, processors);
      header.chunk_base += p.chunks();
      header.tensor_base = uint32_t(done);
    });
  } while (done < list.count);
}

/// Fewer table sizes where a launch's few microseconds matter less: every size is a kernel.
void launch_pass(const MeasureLaunch& launch, const Workspace& w, ChunkBytes chunk_bytes,
                 int processors) {
  switch (pass_for(launch.options)) {
    case Pass::kPlain:
      return launch_chunks<Pass::kPlain, 1024, kSmallTable, kHalfTable, kLargestTable>(
          launch, w, chunk_bytes, processors);
    case Pass::kSums:
      return launch_chunks<Pass::kSums, kSmallTable, kLargestTable>(launch, w, chunk_bytes, processors);
    case Pass::kPower:
      return launch_chunks<Pass::kPower, kSmallTable, kLargestTable>(launch, w, chunk_bytes, processors);
  }
}

}  // namespace

ListPlan plan_of(const TensorRef* tensors, int64_t count, const char* operation) {
  const ChunkBytes chunk_bytes = chunk_bytes_of(tensors, count);
  int64_t chunks = 0, most = 0;
  uint64_t pointers = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t own = chunks_of_tensor(tensors[i], chunk_bytes);
    chunks += own;
    most = own > most ? own : most;
    pointers |= own ? reinterpret_cast<uint64_t>(tensors[i].data) : 0;
  }
  require((pointers & 1u) == 0, "a tensor's data pointer is odd; expected one aligned to two bytes", operation);
  require(chunks < (int64_t(1) << 31), "the list has more than 2^31 chunks", operation);
  return {chunk_bytes, uint32_t(chunks), uint32_t(most)};
}

size_t measure_workspace_bytes(const TensorList& list, const MeasureOptions& options) {
  const uint32_t chunks = list.planned("measure_workspace_bytes").chunks;
  const bool extras = pass_for(options) != Pass::kPlain;
  return layout_workspace(nullptr, list.count, chunks, extras, list.first != nullptr).bytes;
}

bool is_capturing(int device, cudaStream_t stream) {
  DeviceGuard guard(device, "is_capturing");
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing", "is_capturing");
  return status != cudaStreamCaptureStatusNone;
}

void launch_measure(const MeasureLaunch& launch) {
  const TensorList& list = launch.list;
  const ListPlan plan = list.planned(kOperation);
  const bool extras = pass_for(launch.options) != Pass::kPlain;
  const Workspace w = layout_workspace(launch.workspace, list.count, plan.chunks, extras,
                                       list.first != nullptr);
  require(launch.workspace && w.bytes <= launch.workspace_bytes,
          "the workspace is smaller than measure_workspace_bytes() asks for", kOperation);
  DeviceGuard guard(list.device, kOperation);
  const int processors = multiprocessors(list.device, kOperation);
  launch_pass(launch, w, plan.chunk_bytes, processors);
  launch_finish(launch, w, plan.most_of_a_tensor > kChunksForWarp, processors);
}

cudaError_t load_measure_kernels(bool large_tables) {
  const cudaError_t small = load_kernels(measure_kernel<false, 1024>, measure_kernel<false, kSmallTable>,
                                         measure_kernel<true, kSmallTable>, measure_power_kernel<kSmallTable>);
  if (small != cudaSuccess || !large_tables) return small;
  return load_kernels(measure_kernel<false, kHalfTable>, measure_kernel<false, kLargestTable>,
                      measure_kernel<true, kLargestTable>, measure_power_kernel<kLargestTable>);
}

}  // namespace gradkern::cuda
