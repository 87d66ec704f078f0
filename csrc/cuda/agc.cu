// Adaptive gradient clipping. Every unit (a row here, to tell it from the units of work) of the gradients and of the
// weights is a tensor of its own in a table that a kernel writes; the kernels that measure and scale lists do the rest:
//
//   write_rows_kernel   the table, out of one entry a tensor in its arguments
//   measure_kernel      the norms of all rows, first of the gradients and then of the weights
//   row_factor_kernel   a factor for each row of the gradients, and what its norm becomes
//   measure_kernel      the norms of whole gradients before and after, as the norms of their rows' norms
//   scale_kernel        the rows of the gradients, where a factor is not 1
#include <algorithm>
#include <vector>

#include "cuda/on_table.h"
#include "cuda/usable.h"
#include "cuda/vector_io.h"

namespace gradkern::cuda {
namespace {

constexpr const char* kOperation = "agc";
constexpr unsigned kRowThreads = 256;
constexpr uint32_t kBlocksPerTensor = 8;  ///< of write_rows_kernel: an embedding may have 10^5 rows

/// The position of a tensor's rows in the table, and the units of work of the first row.
struct Entry {
  UnitsRef tensor;
  uint32_t begin, grad_unit, weights_unit;
};

/// TensorTable::first_tensor of a grid, to write.
struct SpanStarts {
  uint32_t* first_tensor;
  Spans spans;
  uint32_t blocks;

  /// For the spans that begin in units [begin, end), which are those of `row`.
  __device__ __forceinline__ void write_row(uint32_t row, uint32_t begin, uint32_t end) const {
    uint32_t span = spans.of_unit(begin);
    if (spans.begin(span) < begin) ++span;
    for (; spans.begin(span) < end; ++span) global(first_tensor)[span] = row;
  }
  /// For the spans that have no unit, and the end of the others, in one block.
  __device__ __forceinline__ void write_rest(uint32_t rows) const {
    const uint32_t count = blocks * kWarps;
    for (uint32_t span = (spans.units ? count : spans.longer) + threadIdx.x; span <= count; span += kRowThreads)
      global(first_tensor)[span] = rows - 1;
  }
};

/// The table to write: rows of all gradients, then of all weights.
struct RowTable {
  uint64_t* data;
  uint32_t* first_unit;
  uint32_t* last_unit;
  uint32_t* arrived;
  SpanStarts all, grads;  ///< for the grids that measure all rows and that scale those of the gradients
  uint32_t rows, units;   ///< rows: of the gradients
};

struct WriteRowsParams {
  static constexpr uint32_t kMost = (4096 - sizeof(RowTable)) / sizeof(Entry);  ///< in arguments that every driver takes
  RowTable table;
  Entry entry[kMost];
};

/// Row i of a tensor, as number `at` + i of the table.
__device__ __forceinline__ void write_row(const RowTable& t, uint32_t at, uint32_t i, const void* data, int64_t length,
                                          DType dtype, uint32_t first_unit) {
  const uint64_t bytes = uint64_t(length) << itemsize_log2(dtype);
  const auto units = uint32_t((bytes + kUnitBytes - 1) >> kUnitLog2);
  const auto last = uint32_t(bytes - (uint64_t(units - 1) << kUnitLog2));
  global(t.data)[at + i] = reinterpret_cast<uint64_t>(data) + i * bytes;
  global(t.first_unit)[at + i] = first_unit + i * units;
  global(t.last_unit)[at + i] = last << 3 | uint32_t(dtype);
  const uint32_t begin = first_unit + i * units;
  t.all.write_row(at + i, begin, begin + units);
  if (at + i < t.rows) t.grads.write_row(at + i, begin, begin + units);
}

__global__ void __launch_bounds__(kRowThreads) write_rows_kernel(const __grid_constant__ WriteRowsParams p) {
  const Entry& e = p.entry[blockIdx.x / kBlocksPerTensor];
  const UnitsRef& t = e.tensor;
  const auto rows = uint32_t(t.rows);
  for (uint32_t i = blockIdx.x % kBlocksPerTensor * kRowThreads + threadIdx.x; i < rows; i += kBlocksPerTensor * kRowThreads) {
    write_row(p.table, e.begin, i, t.grad, t.length, t.grad_dtype, e.grad_unit);
    write_row(p.table, p.table.rows + e.begin, i, t.weights, t.length, t.weights_dtype, e.weights_unit);
  }
  if (blockIdx.x != 0) return;
  for (uint32_t i = threadIdx.x; i <= p.table.all.blocks; i += kRowThreads) global(p.table.arrived)[i] = 0;
  p.table.all.write_rest(2 * p.table.rows);
  p.table.grads.write_rest(p.table.rows);
  if (threadIdx.x == 0) global(p.table.first_unit)[2 * p.table.rows] = p.table.units;
}

struct RowFactorParams {
  const double* norms;  ///< [2 * rows]: of gradients, of weights
  double* factors;      ///< [rows]
  double* after;        ///< [rows]
  double clip_factor, eps;
  uint32_t rows;
};

__global__ void __launch_bounds__(kRowThreads) row_factor_kernel(const __grid_constant__ RowFactorParams p) {
  const uint32_t i = blockIdx.x * kRowThreads + threadIdx.x;
  if (i >= p.rows) return;
  const double norm = global(p.norms)[i];
  const double factor = unit_factor(global(p.norms)[p.rows + i], norm, p.clip_factor, p.eps);
  global(p.factors)[i] = factor;
  global(p.after)[i] = norm * factor;
}

// ------------------------------------------------------------------------------- launchers

/// The entries of a call, and the sizes of its parts.
struct Plan {
  std::vector<Entry> entries;
  int64_t rows = 0, grad_units = 0, units = 0;

  explicit Plan(const AgcLaunch& launch) {
    for (int64_t i = 0; i < launch.count; ++i) {
      const UnitsRef& t = launch.list[i];
      if (t.rows == 0 || t.length == 0) continue;
      entries.push_back({t, uint32_t(rows), uint32_t(grad_units), uint32_t(units)});
      rows += t.rows;
      grad_units += t.rows * units_of({t.grad, t.length, t.grad_dtype});
      units += t.rows * units_of({nullptr, t.length, t.weights_dtype});
      const uint64_t address = reinterpret_cast<uint64_t>(t.grad) | reinterpret_cast<uint64_t>(t.weights);
      require((address & 1u) == 0, "a tensor's data pointer is odd; expected one aligned to two bytes", kOperation);
    }
    for (Entry& e : entries) e.weights_unit += uint32_t(grad_units);
    units += grad_units;
    require(units < (int64_t(1) << 31), "the list has more than 16 TiB, or 2^31 units", kOperation);
  }
};

/// Divides a workspace into parts. It may be null, to compute the required size.
class Parts {
 public:
  explicit Parts(void* base) : base_(reinterpret_cast<uint64_t>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const uint64_t at = base_ + used_;
    used_ += (uint64_t(count) * sizeof(T) + 15) / 16 * 16;
    return reinterpret_cast<T*>(at);
  }
  size_t used() const { return used_; }

 private:
  uint64_t base_, used_ = 0;
};

struct Workspace {
  double *norms, *factors, *after;
  RowTable table;
  std::vector<TensorRef> whole;  ///< every gradient as the row of its rows' norms: before, then after
  char *records, *rest;          ///< for the first measurement and for the second
  size_t bytes;                  ///< without `rest`

  Workspace(const AgcLaunch& launch, const Plan& plan) {
    Parts parts(launch.workspace);
    const auto units = uint32_t(plan.units);
    norms = parts.take<double>(2 * plan.rows);
    factors = parts.take<double>(plan.rows);
    after = parts.take<double>(plan.rows);
    table.data = parts.take<uint64_t>(2 * plan.rows);
    table.first_unit = parts.take<uint32_t>(2 * plan.rows + 1);
    table.last_unit = parts.take<uint32_t>(2 * plan.rows);
    table.all = starts(launch, parts, units);
    table.grads = starts(launch, parts, uint32_t(plan.grad_units));
    table.arrived = parts.take<uint32_t>(table.all.blocks + 1);
    table.rows = uint32_t(plan.rows);
    table.units = units;
    records = parts.take<char>(int64_t(records_bytes(units, launch.device, {norm_order(2.0)})));
    rest = parts.take<char>(0);
    bytes = parts.used();
    add_whole(launch, norms);
    add_whole(launch, after);
  }

  TensorList list(const AgcLaunch& launch) const {
    return {whole.data(), int64_t(whole.size()), nullptr, launch.device, launch.stream};
  }

 private:
  static SpanStarts starts(const AgcLaunch& launch, Parts& parts, uint32_t units) {
    const uint32_t blocks = blocks_for(units, multiprocessors(launch.device, kOperation));
    return {parts.take<uint32_t>(int64_t(blocks) * kWarps + 1), spans_of(units, blocks), blocks};
  }

  void add_whole(const AgcLaunch& launch, const double* row_norms) {
    uint64_t at = reinterpret_cast<uint64_t>(row_norms);
    for (int64_t i = 0; i < launch.count; ++i) {
      const int64_t rows = launch.list[i].length ? launch.list[i].rows : 0;
      whole.push_back({reinterpret_cast<void*>(at), rows, DType::kFloat64});
      at += uint64_t(rows) * sizeof(double);
    }
  }
};

void write_rows(const AgcLaunch& launch, const Plan& plan, const RowTable& table) {
  for (size_t done = 0; done < plan.entries.size(); done += WriteRowsParams::kMost) {
    const size_t count = std::min(plan.entries.size() - done, size_t(WriteRowsParams::kMost));
    WriteRowsParams p{table, {}};
    std::copy_n(plan.entries.begin() + int64_t(done), count, p.entry);
    launch_kernel(write_rows_kernel, uint32_t(count) * kBlocksPerTensor, kRowThreads, launch.stream, p,
                  "cudaLaunchKernel(write_rows_kernel)", kOperation);
  }
}

MeasureLaunch norms_of(const AgcLaunch& launch, double* norms, void* workspace) {
  MeasureLaunch measure;
  measure.list = {nullptr, 0, nullptr, launch.device, launch.stream};
  measure.options = {norm_order(2.0)};
  measure.results.is_double = true;
  measure.results.norm = measure.results.l2 = norms;
  measure.workspace = workspace;
  return measure;
}

}  // namespace

size_t agc_workspace_bytes(const AgcLaunch& launch) {
  DeviceGuard guard(launch.device, kOperation);
  const Workspace parts(launch, Plan(launch));
  return parts.bytes + measure_workspace_bytes(parts.list(launch), {norm_order(2.0)});
}

void launch_agc(const AgcLaunch& launch) {
  const Plan plan(launch);
  DeviceGuard guard(launch.device, kOperation);
  const Workspace parts(launch, plan);
  require(launch.workspace && parts.bytes <= launch.workspace_bytes,
          "the workspace is smaller than agc_workspace_bytes() asks for", kOperation);
  const RowTable& t = parts.table;
  if (t.rows) {
    write_rows(launch, plan, t);
    const TensorTable all{t.data, t.first_unit, t.last_unit, t.all.first_tensor, t.arrived, 2 * t.rows, t.units};
    launch_measure_on(norms_of(launch, parts.norms, parts.records), {t.units, false, true, 0}, all, t.all.blocks);
    const RowFactorParams p{parts.norms, parts.factors, parts.after, launch.clip_factor, launch.eps, t.rows};
    launch_kernel(row_factor_kernel, (t.rows + kRowThreads - 1) / kRowThreads, kRowThreads, launch.stream, p,
                  "cudaLaunchKernel(row_factor_kernel)", kOperation);
  }
  MeasureLaunch whole = norms_of(launch, launch.norms, parts.rest);
  whole.list = parts.list(launch);
  whole.workspace_bytes = launch.workspace_bytes - parts.bytes;
  launch_measure(whole);
  if (!t.rows) return;
  ScaleLaunch scale;
  scale.list = {nullptr, 0, nullptr, launch.device, launch.stream};
  scale.factor = parts.factors;
  scale.factor_per_tensor = true;
  const TensorTable grads{t.data, t.first_unit, t.last_unit, t.grads.first_tensor, t.arrived, t.rows, uint32_t(plan.grad_units)};
  launch_scale_on(scale, grads, t.grads.blocks);
}

cudaError_t load_agc_kernels() { return load_kernels(write_rows_kernel, row_factor_kernel); }

}  // namespace gradkern::cuda
