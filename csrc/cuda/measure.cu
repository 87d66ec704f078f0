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
  bool last_block;
};

// Out of line, because they are called in several places.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_row(const MeasureParams<kPass>& p, uint32_t tensor, const Sums<kPass> s) {
  const TensorTable& t = p.table;
  const uint32_t units = t.first_unit[tensor + 1] - t.first_unit[tensor];
  store_row<kPass>(p.reporting, tensor, s, units == 0 ? 0 : numel_of(units, t.last_unit[tensor]));
}

/// Writes the rows of empty tensors, in all threads of the grid.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_empty_rows(const MeasureParams<kPass>& p) {
  const TensorTable& t = p.table;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < t.tensors; i += gridDim.x * kThreads)
    if (t.first_unit[i] == t.first_unit[i + 1]) finish_row<kPass>(p, i, nothing<kPass>(p.reporting.order));
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

/// Combines the block's parts of a straddler: that of warp `begin`, which is `own[begin]`, and the heads of the warps after
/// it. If other blocks have parts too, the last of them to arrive finishes the row.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_straddler(const MeasureParams<kPass>& p, const Straddler& of, const Sums<kPass>* own,
                                                   uint32_t begin, const Pieces<kPass>& pieces) {
  const uint32_t tensor = of.tensor, lane = threadIdx.x % kWarpSize;
  if (tensor == Straddler::kNone) return;
  const bool same = lane > begin && lane < kWarps && pieces.head_of[lane].tensor == tensor;
  const uint32_t warps = 1 + uint32_t(__popc(__ballot_sync(kFullMask, same)));
  Sums<kPass> s = combine_records<kPass>(p.reporting.order, own + begin, pieces.head, begin, begin + warps);
  const uint32_t first = p.spans.of_unit(of.begin) / kWarps, last = p.spans.of_unit(of.end - 1) / kWarps;
  if (first != last) {
    const Records<kPass>& r = p.records;
    if (lane == 0) *global((first == blockIdx.x ? r.tail : r.head) + blockIdx.x) = s;
    if (!arrives_last(p.table.arrived + first, last - first + 1)) return;
    s = combine_records<kPass>(p.reporting.order, r.tail + first, r.head, first, last + 1);
  }
  if (lane == 0) finish_row<kPass>(p, tensor, s);
}

/// Finishes the total, in one warp of each block. True in that of the last block to arrive.
template <Pass kPass>
__device__ GRADKERN_NOINLINE bool finish_total(const MeasureParams<kPass>& p, const Pieces<kPass>& pieces) {
  const NormOrder order = p.reporting.order;
  const uint32_t first = blockIdx.x * kWarps, lane = threadIdx.x % kWarpSize;
  const uint32_t warps = p.spans.units != 0 || first + kWarps <= p.spans.longer ? kWarps : p.spans.longer - first;
  Sums<kPass> s = combine_records<kPass>(order, pieces.total, pieces.total, 0, warps);
  if (gridDim.x > 1) {
    if (lane == 0) *global(p.records.total + blockIdx.x) = s;
    if (!arrives_last(p.table.arrived + gridDim.x, gridDim.x)) return false;
    s = combine_records<kPass>(order, p.records.total, p.records.total, 0, gridDim.x);
  }
  if (lane == 0) store_total<kPass>(p.reporting, s, p.numel, p.table.tensors);
  return true;
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads, has_sums(kPass) ? 1 : kBlocksPerMultiprocessor)
    measure_kernel(const __grid_constant__ MeasureParams<kPass> p) {
  GRADKERN_SHARED(Pieces<kPass>, pieces);
  constexpr uint32_t kTotalWarp = 1;  // the first has two straddlers
  const uint32_t warp = threadIdx.x / kWarpSize;
  if (p.any_empty) finish_empty_rows<kPass>(p);
  add_span<kPass>(p, blockIdx.x * kWarps + warp, pieces);
  let_next_kernel_start();
  __syncthreads();
  if (warp == kTotalWarp && !p.any_repeat) finish_total<kPass>(p, pieces);
  if (warp == 0) finish_straddler<kPass>(p, pieces.head_of[0], pieces.head, 0, pieces);
  finish_straddler<kPass>(p, pieces.tail_of[warp], pieces.tail, warp, pieces);
  if (!p.any_repeat) return;
  __syncthreads();  // this block's rows must be written before it arrives at the total
  if (warp == kTotalWarp) {
    const bool last = finish_total<kPass>(p, pieces);
    if (threadIdx.x % kWarpSize == 0) pieces.last_block = last;
  }
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
  store_total(p.reporting, p.reporting.order, s, 0);
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
  bool any_empty = false, any_double = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t own = units_of(tensors[i]);
    units += own;
    numel += tensors[i].numel;
    any_empty |= own == 0;
    any_double |= is_double(tensors[i].dtype);
    pointers |= own ? reinterpret_cast<uint64_t>(tensors[i].data) : 0;
  }
  require((pointers & 1u) == 0, "a tensor's data pointer is odd; expected one aligned to two bytes", operation);
  require(units < (int64_t(1) << 31), "the list has more than 16 TiB", operation);
  require(count < (int64_t(1) << 31), "the list has more than 2^31 tensors", operation);
  return {uint32_t(units), any_empty, any_double, numel};
}

size_t records_bytes(uint32_t units, int device, const MeasureOptions& options) {
  return 3 * size_t(blocks_for(units, multiprocessors(device, kOperation))) * record_bytes(pass_for(options, false));
}

size_t measure_workspace_bytes(const TensorList& list, const MeasureOptions& options) {
  const ListPlan plan = list.planned("measure_workspace_bytes");
  return records_bytes(plan.units, list.device, options) + table_workspace_bytes(list);
}

void launch_measure_on(const MeasureLaunch& launch, const ListPlan& plan, const TensorTable& table, uint32_t blocks) {
  switch (pass_for(launch.options, launch.results.is_double || plan.any_double)) {
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
