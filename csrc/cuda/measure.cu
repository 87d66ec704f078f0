// One kernel reads every tensor once and writes all rows and the total.
//
// A warp sums its span of the list. It writes the rows of tensors that end within the span. One that began before the span
// (head) or reaches its end (tail) is left for later: the block's warps first combine their parts through shared memory.
// The parts of several blocks, and the totals of all, are records in the workspace. The last block to arrive combines them,
// in all its warps.
#include "cuda/on_table.h"
#include "cuda/results.h"
#include "cuda/segment.h"
#include "cuda/usable.h"

namespace gradkern::cuda {
namespace {

constexpr const char* kOperation = "measure";

/// The kinds of records that warps and blocks leave for each other.
enum Kind : uint32_t { kHead, kTail, kTotal, kKinds };

template <Pass kPass>
struct MeasureParams {
  TensorTable table;
  Spans spans;
  Sums<kPass>* records[kKinds];  ///< [blocks], in the workspace
  Reporting reporting;
  int64_t numel;
  bool any_empty, any_repeat;
};

/// A tensor at an end of a span, with its units in the list, [begin, end).
struct Edge {
  static constexpr uint32_t kNone = 0xffffffffu;
  uint32_t tensor = kNone, begin = 0, end = 0;
};

/// Records of several blocks that the last of them to arrive combines: to the row of a tensor or to the total.
template <Pass kPass>
struct Job {
  static constexpr uint32_t kWhole = 0xffffffffu;  ///< in place of a tensor: the whole list
  RecordRange<kPass> records;
  uint32_t tensor = kWhole;

  __device__ __forceinline__ bool any() const { return records.begin != records.end; }
  __device__ __forceinline__ void clear() { records.begin = records.end = 0; }
};

/// What the warps of a block leave for each other, in shared memory.
template <Pass kPass>
struct Pieces {
  Sums<kPass> record[kKinds][kWarps];  ///< of each warp's span; then of its share of a job's records
  Edge edge[kTotal][kWarps];           ///< heads and tails
  Job<kPass> job[kKinds];
};
static_assert(kWarps > kKinds, "three warps leave the block's records, at least one writes its rows");

/// Writes the row of a tensor, or the total, in one thread. Out of line, because it is called in several places.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish(const MeasureParams<kPass>& p, uint32_t tensor, const Sums<kPass> sums) {
  const TensorTable& t = p.table;
  const Reporting& reporting = p.reporting;
  const bool whole = tensor == Job<kPass>::kWhole;
  const uint32_t units = whole ? 0 : t.first_unit[tensor + 1] - t.first_unit[tensor];
  const int64_t numel = whole ? p.numel : units == 0 ? 0 : numel_of(units, t.last_unit[tensor]);
  const Partial s = partial_of<kPass>(reporting.order, sums, numel);
  const double l2 = l2_norm(s.sq), norm = scaled_norm<kPass>(reporting.order, s, l2, reporting.inv_scale);
  if (whole) store_total(reporting, norm, s);
  else store_row(reporting, tensor, norm, l2, s);
  // The packed rows of the list come before that of the total.
  const bool rows = reporting.results.packed_rows, packed = whole ? reporting.results.packed_sums != nullptr : rows;
  if (packed) store_packed(reporting, reporting.order, !whole ? tensor : rows ? t.tensors : 0, s);
}

/// Writes the rows of empty tensors, in all threads of the grid.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_empty_rows(const MeasureParams<kPass>& p) {
  const TensorTable& t = p.table;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < t.tensors; i += gridDim.x * kThreads)
    if (t.first_unit[i] == t.first_unit[i + 1]) finish<kPass>(p, i, nothing<kPass>(p.reporting.order));
}

/// Sums a warp's span into the warp's pieces. The row of its last tensor is left for later, so that the block's total need
/// not wait for it.
template <Pass kPass>
__device__ __forceinline__ void add_span(const MeasureParams<kPass>& p, uint32_t span, Pieces<kPass>& pieces) {
  const NormOrder& order = p.reporting.order;
  const uint32_t warp = threadIdx.x / kWarpSize, begin = p.spans.begin(span), end = p.spans.begin(span + 1);
  const bool writes = threadIdx.x % kWarpSize == 0;
  if (writes) {
    pieces.record[kTotal][warp] = nothing<kPass>(order);
    pieces.edge[kHead][warp] = pieces.edge[kTail][warp] = Edge();
    if (warp < kKinds) pieces.job[warp].clear();
  }
  for_each_segment<false>(p.table, p.spans, span, [&](const Segment& segment) {
    const Sums<kPass> s = add_segment<kPass>(order, segment);
    if (!writes) return;
    pieces.record[kTotal][warp] = combine<kPass>(order, pieces.record[kTotal][warp], s);
    const Edge here{segment.tensor, segment.first_unit, segment.first_unit + segment.units};
    if (here.begin >= begin && here.end < end) return finish<kPass>(p, here.tensor, s);
    const Kind kind = here.begin < begin ? kHead : kTail;
    pieces.record[kind][warp] = s;
    pieces.edge[kind][warp] = here;
  });
}

/// Leaves a block's record for the last block to arrive at a counter, which takes the job. In one thread.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void leave_record(const MeasureParams<kPass>& p, Kind kind, const Sums<kPass> s, uint32_t counter,
                                               const Job<kPass> job, Pieces<kPass>& pieces) {
  global(p.records[kind])[blockIdx.x] = s;
  if (arrives_last(p.table.arrived + counter, job.records.end - job.records.begin)) pieces.job[kind] = job;
}

/// Finishes the head or tail of a warp's span, in any one warp: combines the tensor's part in the span and those in the spans
/// that follow. If other blocks have parts, too, the block leaves a record.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_edge(const MeasureParams<kPass>& p, Kind kind, uint32_t warp, Pieces<kPass>& pieces) {
  const Edge of = pieces.edge[kind][warp];
  const uint32_t lane = threadIdx.x % kWarpSize;
  if (of.tensor == Edge::kNone) return;
  const bool same = lane > warp && lane < kWarps && pieces.edge[kHead][lane].tensor == of.tensor;
  const uint32_t end = warp + 1 + uint32_t(__popc(__ballot_sync(kFullMask, same)));
  const RecordRange<kPass> own{pieces.record[kind] + warp, pieces.record[kHead], warp, end};
  const Sums<kPass> s = combine_records<kPass>(p.reporting.order, own, warp + lane, kWarpSize);
  if (lane != 0) return;
  const uint32_t first = p.spans.of_unit(of.begin) / kWarps, last = p.spans.of_unit(of.end - 1) / kWarps;
  if (first == last) return finish<kPass>(p, of.tensor, s);
  const RecordRange<kPass> all{p.records[kTail] + first, p.records[kHead], first, last + 1};
  leave_record<kPass>(p, first == blockIdx.x ? kTail : kHead, s, first, {all, of.tensor}, pieces);
}

/// Finishes the block's total in a warp.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void finish_total(const MeasureParams<kPass>& p, Pieces<kPass>& pieces) {
  const uint32_t first = blockIdx.x * kWarps, lane = threadIdx.x % kWarpSize;
  const uint32_t warps = p.spans.units != 0 || first + kWarps <= p.spans.longer ? kWarps : p.spans.longer - first;
  const Sums<kPass>* own = pieces.record[kTotal];
  const Sums<kPass> s = combine_records<kPass>(p.reporting.order, {own, own, 0, warps}, lane, kWarpSize);
  if (lane != 0) return;
  if (gridDim.x == 1 && !p.any_repeat) return finish<kPass>(p, Job<kPass>::kWhole, s);
  const Sums<kPass>* all = p.records[kTotal];
  leave_record<kPass>(p, kTotal, s, gridDim.x, {{all, all, 0, gridDim.x}}, pieces);
}

/// Finishes the edges of the block's spans and its total, side by side. Of the edges, the first and the last take longest,
/// because they may be those of tensors of several blocks.
template <Pass kPass>
__device__ __forceinline__ void finish_spans(const MeasureParams<kPass>& p, uint32_t warp, Pieces<kPass>& pieces) {
  if (warp == kTotal) {
    if (!p.any_repeat) finish_total<kPass>(p, pieces);
    return;
  }
  const Kind kind = warp == kHead ? kHead : kTail;
  uint32_t of = warp == kHead ? 0 : warp == kTail ? kWarps - 1 : warp - kKinds;
#pragma unroll 1
  do {
    finish_edge<kPass>(p, kind, of, pieces);
    of += kWarps - kKinds;
  } while (warp >= kKinds && of < kWarps - 1);
}

/// Does the jobs that the block has taken, in all its warps.
template <Pass kPass>
__device__ GRADKERN_NOINLINE void do_jobs(const MeasureParams<kPass>& p, Pieces<kPass>& pieces) {
  const NormOrder order = p.reporting.order;
  const uint32_t warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  __syncthreads();  // now every record of the block has been combined
#pragma unroll 1
  for (uint32_t kind = 0; kind < kKinds; ++kind) {
    const RecordRange<kPass> records = pieces.job[kind].records;
    if (records.begin + warp * kWarpSize >= records.end) continue;
    const Sums<kPass> s = combine_records<kPass>(order, records, records.begin + threadIdx.x, kThreads);
    if (lane == 0) pieces.record[kind][warp] = s;
  }
  __syncthreads();
  if (warp >= kKinds || !pieces.job[warp].any()) return;
  const Job<kPass>& job = pieces.job[warp];
  const uint32_t shares = (job.records.end - job.records.begin + kWarpSize - 1) / kWarpSize;
  const Sums<kPass>* own = pieces.record[warp];
  const Sums<kPass> s = combine_records<kPass>(order, {own, own, 0, shares < kWarps ? shares : kWarps}, lane, kWarpSize);
  if (lane == 0) finish<kPass>(p, job.tensor, s);
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads, has_counts(kPass) ? 1 : kBlocksPerMultiprocessor)
    measure_kernel(const __grid_constant__ MeasureParams<kPass> p) {
  GRADKERN_SHARED(Pieces<kPass>, pieces);
  const uint32_t warp = threadIdx.x / kWarpSize;
  if (p.any_empty) finish_empty_rows<kPass>(p);
  add_span<kPass>(p, blockIdx.x * kWarps + warp, pieces);
  let_next_kernel_start();
  __syncthreads();
  finish_spans<kPass>(p, warp, pieces);
  do_jobs<kPass>(p, pieces);
  if (!p.any_repeat) return;
  __syncthreads();  // this block's rows must be written before it arrives at the total
  if (warp == kTotal) {
    if (threadIdx.x % kWarpSize == 0) pieces.job[kHead].clear(), pieces.job[kTail].clear();
    finish_total<kPass>(p, pieces);
  }
  do_jobs<kPass>(p, pieces);
  if (pieces.job[kTotal].any()) repeat_rows(p.reporting.results, p.table);
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
  store_total(p.reporting, scaled_norm<Pass::kPower>(p.reporting.order, s, l2_norm(s.sq), p.reporting.inv_scale), s);
  if (p.reporting.results.packed_sums) store_packed(p.reporting, p.reporting.order, 0, s);
}

// ------------------------------------------------------------------------------- launchers

Pass pass_for(const MeasureOptions& options, bool is_double) {
  const NormKind kind = options.order.kind;
  if (kind == NormKind::kPower || kind == NormKind::kNegInf) return Pass::kPower;
  if (kind == NormKind::kOne || kind == NormKind::kZero || options.count_zeros) return Pass::kSums;
  return is_double ? Pass::kWide : Pass::kPlain;
}

size_t record_bytes(Pass pass) {
  return pass == Pass::kPower ? sizeof(Sums<Pass::kPower>) : pass == Pass::kSums ? sizeof(Sums<Pass::kSums>) : sizeof(Sums<Pass::kWide>);
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
