// One kernel reads every tensor once and writes all rows and the total.
//
// A warp sums its span of the list. It writes the rows of tensors that lie within the span. A tensor that began before
// the span (head) or continues after it (tail) is combined with the parts of other spans: within a block through
// shared memory, between blocks through records in the workspace, by the last of its blocks to arrive. The last block
// of the grid combines the totals of all blocks.
#include "cuda/on_table.h"
#include "cuda/results.h"
#include "cuda/segment.h"
#include "cuda/usable.h"

namespace gradkern::cuda {
namespace {

constexpr const char* kOperation = "measure";

/// The records that blocks leave for each other, in the workspace.
template <Pass kPass>
struct Records {
  Sums<kPass>* head;   ///< [blocks]
  Sums<kPass>* tail;   ///< [blocks]
  Sums<kPass>* total;  ///< [blocks]
};

template <Pass kPass>
struct MeasureParams {
  TensorTable table;
  Spans spans;
  Records<kPass> records;
  Reporting reporting;
  int64_t numel;
  bool any_empty, any_repeat;
};

/// A tensor that is not within one span, with its units in the list, [begin, end).
struct Straddler {
  static constexpr uint32_t kNone = 0xffffffffu;
  uint32_t tensor = kNone, begin = 0, end = 0;
};

/// The records that the warps of a block leave for each other, in shared memory.
template <Pass kPass>
struct Pieces {
  Sums<kPass> head[kWarps], tail[kWarps], total[kWarps];
  Straddler head_of[kWarps], tail_of[kWarps];
  Straddler block_head, block_tail;  ///< those that other blocks share
  bool last_block;
};

// Out of line, because it is called in three places.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_row(const MeasureParams<kPass>& p, uint32_t tensor, const Sums<kPass> s) {
  const TensorTable& t = p.table;
  const int64_t numel = numel_of(t.first_unit[tensor + 1] - t.first_unit[tensor], t.last_unit[tensor]);
  store_row(p.reporting, tensor, partial_of<kPass>(p.reporting.order, s, numel));
}

/// Sums a warp's span into the warp's pieces.
template <Pass kPass>
__device__ __forceinline__ void add_span(const MeasureParams<kPass>& p, uint32_t span, Pieces<kPass>& pieces) {
  const NormOrder& order = p.reporting.order;
  const uint32_t warp = threadIdx.x / kWarpSize, begin = p.spans.begin(span), end = p.spans.begin(span + 1);
  const bool writes = threadIdx.x % kWarpSize == 0;
  if (writes) {
    pieces.total[warp] = nothing<kPass>(order);
    pieces.head_of[warp] = pieces.tail_of[warp] = Straddler();
  }
  for_each_segment<false>(p.table, begin, end, [&](const Segment& segment) {
    const Sums<kPass> s = add_segment<kPass>(order, segment);
    if (!writes) return;
    pieces.total[warp] = combine<kPass>(order, pieces.total[warp], s);
    const Straddler here{segment.tensor, segment.first_unit, segment.first_unit + segment.units};
    if (here.begin >= begin && here.end <= end) {
      finish_row<kPass>(p, segment.tensor, s);
    } else if (here.begin < begin) {
      pieces.head[warp] = s;
      pieces.head_of[warp] = here;
    } else {
      pieces.tail[warp] = s;
      pieces.tail_of[warp] = here;
    }
  });
}

/// Combines the straddlers of a block, in its first warp: one lane for each span. Those that other blocks share go into
/// the block's records.
template <Pass kPass>
__device__ __forceinline__ void join_straddlers(const MeasureParams<kPass>& p, uint32_t block_end, Pieces<kPass>& pieces) {
  const NormOrder& order = p.reporting.order;
  const uint32_t lane = threadIdx.x % kWarpSize, own = lane < kWarps ? lane : kWarps - 1;
  const Straddler head_of = pieces.head_of[own], tail_of = pieces.tail_of[own];
  const uint32_t head_tensor = lane < kWarps ? head_of.tensor : Straddler::kNone;
  // Heads of one tensor are in adjacent lanes. After the step of 2^k, a lane has the sum of 2^(k+1) of them from its own.
  Sums<kPass> head = pieces.head[own];
#pragma unroll 1
  for (int step = 1; step < int(kWarps); step *= 2) {
    const Sums<kPass> other = shuffle_down(head, step);
    const uint32_t other_tensor = __shfl_down_sync(kFullMask, head_tensor, step);
    const bool same = lane + uint32_t(step) < kWarps && head_tensor != Straddler::kNone && other_tensor == head_tensor;
    if (same) head = combine<kPass>(order, head, other);
  }
  const Sums<kPass> next_head = shuffle_down(head, 1);
  const uint32_t next_tensor = __shfl_down_sync(kFullMask, head_tensor, 1);
  if (lane == 0) {
    pieces.block_head = head_of;
    pieces.block_tail = Straddler();
    if (head_of.tensor != Straddler::kNone) p.records.head[blockIdx.x] = head;
  }
  __syncwarp();
  if (lane >= kWarps || tail_of.tensor == Straddler::kNone) return;
  Sums<kPass> whole = pieces.tail[lane];
  if (lane + 1 < kWarps && next_tensor == tail_of.tensor) whole = combine<kPass>(order, whole, next_head);
  if (tail_of.end <= block_end) {
    finish_row<kPass>(p, tail_of.tensor, whole);
  } else {
    p.records.tail[blockIdx.x] = whole;
    pieces.block_tail = tail_of;
  }
}

/// The block's total, in lane 0 of the calling warp.
template <Pass kPass>
__device__ __forceinline__ Sums<kPass> block_total(const NormOrder& order, const Pieces<kPass>& pieces) {
  const uint32_t lane = threadIdx.x % kWarpSize;
  return warp_combine<kPass>(order, lane < kWarps ? pieces.total[lane] : nothing<kPass>(order));
}

/// Combines record(block) of blocks [begin, end). The result is in lane 0. The next record is loaded while one is added.
template <Pass kPass, class Record>
__device__ __forceinline__ Sums<kPass> combine_records(const NormOrder& order, uint32_t begin, uint32_t end, const Record& record) {
  Sums<kPass> s = nothing<kPass>(order), next = s;
  uint32_t at = begin + threadIdx.x % kWarpSize;
  if (at < end) next = *record(at);
#pragma unroll 1
  while (at < end) {
    const Sums<kPass> own = next;
    at += kWarpSize;
    if (at < end) next = *record(at);
    s = combine<kPass>(order, s, own);
  }
  return warp_combine<kPass>(order, s);
}

/// Finishes a tensor of several blocks, in a warp of the last of them to arrive.
template <Pass kPass>
__device__ __forceinline__ void finish_straddler(const MeasureParams<kPass>& p, const Straddler straddler) {
  if (straddler.tensor == Straddler::kNone) return;
  const uint32_t first = p.spans.of_unit(straddler.begin) / kWarps, last = p.spans.of_unit(straddler.end - 1) / kWarps;
  if (!arrives_last(p.table.arrived + first, last - first + 1)) return;
  const Sums<kPass> s = combine_records<kPass>(p.reporting.order, first, last + 1, [&](uint32_t block) {
    return global(block == first ? p.records.tail + block : p.records.head + block);
  });
  if (threadIdx.x % kWarpSize == 0) finish_row<kPass>(p, straddler.tensor, s);
}

/// Finishes the total, in one warp of each block. True in that of the last block to arrive.
template <Pass kPass>
__device__ __forceinline__ bool finish_total(const MeasureParams<kPass>& p, const Pieces<kPass>& pieces) {
  const NormOrder& order = p.reporting.order;
  Sums<kPass> s = block_total<kPass>(order, pieces);
  if (gridDim.x > 1) {
    if (threadIdx.x % kWarpSize == 0) p.records.total[blockIdx.x] = s;
    if (!arrives_last(p.table.arrived + gridDim.x, gridDim.x)) return false;
    s = combine_records<kPass>(order, 0, gridDim.x, [&](uint32_t block) { return global(p.records.total + block); });
  }
  if (threadIdx.x % kWarpSize == 0) store_total(p.reporting, partial_of<kPass>(order, s, p.numel), p.table.tensors);
  return true;
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads, has_sums(kPass) ? 1 : kBlocksPerMultiprocessor)
    measure_kernel(const __grid_constant__ MeasureParams<kPass> p) {
  GRADKERN_SHARED(Pieces<kPass>, pieces);
  const uint32_t warp = threadIdx.x / kWarpSize;
  if (p.any_empty) store_empty_rows(p.reporting, p.table);
  add_span<kPass>(p, blockIdx.x * kWarps + warp, pieces);
  let_next_kernel_start();
  __syncthreads();
  if (warp == 0) join_straddlers<kPass>(p, p.spans.begin((blockIdx.x + 1) * kWarps), pieces);
  __syncthreads();
  if (warp < 2) finish_straddler<kPass>(p, warp == 0 ? pieces.block_head : pieces.block_tail);
  if (p.any_repeat) __syncthreads();  // this block's rows must be written before it arrives at the total
  if (warp == 2) {
    const bool last = finish_total<kPass>(p, pieces);
    if (p.any_repeat && threadIdx.x % kWarpSize == 0) pieces.last_block = last;
  }
  if (!p.any_repeat) return;
  __syncthreads();
  if (pieces.last_block) repeat_rows(p.reporting.results, p.table);
}

struct CombineParams {
  const Partial* totals;
  uint32_t count;
  Reporting reporting;
};

/// One thread, in order: there are only a few devices.
__global__ void combine_kernel(const __grid_constant__ CombineParams p) {
  Partial s = empty_partial(p.reporting.order);
  for (uint32_t i = 0; i < p.count; ++i) s = combine(p.reporting.order, s, p.totals[i]);
  store_total(p.reporting, s, 0);
}

// ------------------------------------------------------------------------------- launchers

Pass pass_for(const MeasureOptions& options, bool is_double) {
  const NormKind kind = options.order.kind;
  if (kind == NormKind::kPower || kind == NormKind::kNegInf) return Pass::kPower;
  if (kind == NormKind::kOne || kind == NormKind::kZero || options.count_zeros) return Pass::kSums;
  return is_double ? Pass::kWide : Pass::kPlain;
}

size_t record_bytes(Pass pass) {
  return pass == Pass::kPower ? sizeof(Sums<Pass::kPower>) : has_sums(pass) ? sizeof(Sums<Pass::kSums>) : sizeof(Sums<Pass::kWide>);
}

template <class Launch>
Reporting reporting_of(const Launch& launch, const NormOrder& order) {
  return {launch.results, order, launch.max_norm, launch.inv_scale < 0 ? -launch.inv_scale : launch.inv_scale, launch.on_nonfinite};
}

template <Pass kPass>
void launch_pass(const MeasureLaunch& launch, const ListPlan& plan, const TensorTable& table, uint32_t blocks) {
  auto* records = static_cast<Sums<kPass>*>(launch.workspace);
  const MeasureParams<kPass> p{table,
                               spans_of(plan.units, blocks),
                               {records, records + blocks, records + 2 * blocks},
                               reporting_of(launch, launch.options.order),
                               plan.numel,
                               plan.any_empty,
                               launch.list.first != nullptr};
  launch_kernel(measure_kernel<kPass>, blocks, kThreads, launch.list.stream, p, "cudaLaunchKernel(measure_kernel)", kOperation);
}

}  // namespace

ListPlan plan_of(const TensorRef* tensors, int64_t count, const char* operation) {
  int64_t units = 0, numel = 0;
  uint64_t pointers = 0;
  bool any_empty = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t own = units_of(tensors[i]);
    units += own;
    numel += tensors[i].numel;
    any_empty |= own == 0;
    pointers |= own ? reinterpret_cast<uint64_t>(tensors[i].data) : 0;
  }
  require((pointers & 1u) == 0, "a tensor's data pointer is odd; expected one aligned to two bytes", operation);
  require(units < (int64_t(1) << 31), "the list has more than 16 TiB", operation);
  require(count < (int64_t(1) << 31), "the list has more than 2^31 tensors", operation);
  return {uint32_t(units), any_empty, numel};
}

size_t records_bytes(uint32_t units, int device, const MeasureOptions& options) {
  return 3 * size_t(blocks_for(units, multiprocessors(device, kOperation))) * record_bytes(pass_for(options, false));
}

size_t measure_workspace_bytes(const TensorList& list, const MeasureOptions& options) {
  const ListPlan plan = list.planned("measure_workspace_bytes");
  return records_bytes(plan.units, list.device, options) + table_workspace_bytes(list);
}

void launch_measure_on(const MeasureLaunch& launch, const ListPlan& plan, const TensorTable& table, uint32_t blocks) {
  switch (pass_for(launch.options, launch.results.is_double)) {
    case Pass::kPlain: return launch_pass<Pass::kPlain>(launch, plan, table, blocks);
    case Pass::kWide: return launch_pass<Pass::kWide>(launch, plan, table, blocks);
    case Pass::kSums: return launch_pass<Pass::kSums>(launch, plan, table, blocks);
    case Pass::kPower: return launch_pass<Pass::kPower>(launch, plan, table, blocks);
  }
}

void launch_measure(const MeasureLaunch& launch) {
  const TensorList& list = launch.list;
  const ListPlan plan = list.planned(kOperation);
  DeviceGuard guard(list.device, kOperation);
  const size_t own = records_bytes(plan.units, list.device, launch.options);
  require(launch.workspace && own + table_workspace_bytes(list) <= launch.workspace_bytes,
          "the workspace is smaller than measure_workspace_bytes() asks for", kOperation);
  const TableOnDevice on_device(list, plan, static_cast<char*>(launch.workspace) + own, launch.workspace_bytes - own, kOperation);
  launch_measure_on(launch, plan, on_device.table, on_device.blocks);
}

void launch_combine(const CombineLaunch& launch) {
  DeviceGuard guard(launch.device, "combine");
  const CombineParams p{launch.totals, uint32_t(launch.count), reporting_of(launch, launch.order)};
  launch_kernel(combine_kernel, 1, 1, launch.stream, p, "cudaLaunchKernel(combine_kernel)", "combine");
}

cudaError_t load_measure_kernels() {
  return load_kernels(measure_kernel<Pass::kPlain>, measure_kernel<Pass::kWide>, measure_kernel<Pass::kSums>,
                      measure_kernel<Pass::kPower>, combine_kernel);
}

}  // namespace gradkern::cuda
