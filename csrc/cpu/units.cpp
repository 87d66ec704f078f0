#include "cpu/units.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/chunk_plan.h"
#include "core/policies.h"
#include "core/prefetch.h"
#include "cpu/floating_point_mode.h"

namespace gradkern::cpu {
namespace {

/// Consecutive units of one tensor, the work that a thread takes at a time.
struct Block {
  int64_t tensor, begin, end;
};

/// The measurement of a block's gradient, and its sum of squares after clipping.
struct BlockResult {
  Partial before;
  ScaledSum after;
  bool changed = false;
};

/// Blocks of about kChunkElements elements, so that gradients are in a cache when they are scaled. The cut
/// depends on the sizes only.
std::vector<Block> blocks_of(const UnitsRef* list, int64_t count) {
  std::vector<Block> blocks;
  for (int64_t t = 0; t < count; ++t) {
    if (list[t].length == 0) continue;
    const int64_t step = std::max<int64_t>(1, kChunkElements / list[t].length);
    for (int64_t begin = 0; begin < list[t].rows; begin += step)
      blocks.push_back({t, begin, std::min(begin + step, list[t].rows)});
  }
  return blocks;
}

Partial measured(const ChunkKernels& kernels, const UnitsRef& t, int64_t row, const MeasureOptions& options) {
  const int64_t size = itemsize(t.grad_dtype);
  const char* const at = static_cast<const char*>(t.grad) + row * t.length * size;
  Partial sum = empty_partial(options.order);
  for (int64_t begin = 0; begin < t.length; begin += kChunkElements) {
    Partial part = empty_partial(options.order);
    part.numel = std::min(kChunkElements, t.length - begin);
    kernels.measure(at + begin * size, t.grad_dtype, part.numel, options, {}, part);
    sum = begin ? combine(options.order, sum, part) : part;
  }
  return sum;
}

ScaledSum squares_of(const ChunkKernels& kernels, const void* data, DType dtype, int64_t row, int64_t length) {
  const char* at = static_cast<const char*>(data) + row * length * itemsize(dtype);
  if (length <= kChunkElements && !is_double(dtype)) return {kernels.squares(at, dtype, length)};
  const MeasureOptions options{norm_order(2.0), false};
  ScaledSum sum;
  for (int64_t begin = 0; begin < length; begin += kChunkElements) {
    Partial part = empty_partial(options.order);
    const int64_t here = std::min(kChunkElements, length - begin);
    const char* const chunk = at + begin * itemsize(dtype);
    if (is_double(dtype)) kernels.measure(chunk, dtype, here, options, {}, part);
    else part.sq.hi = kernels.squares(chunk, dtype, here);
    sum = combine(sum, part.sq);
  }
  return sum;
}

/// Prefetches what lies kPrefetchBytes ahead of a unit that is too short to do so itself.
void prefetch_ahead(const void* data, DType dtype, int64_t row, int64_t length) {
  const int64_t bytes = length * itemsize(dtype);
  if (bytes < kPrefetchBytes) prefetch(static_cast<const char*>(data) + row * bytes + kPrefetchBytes, bytes);
}

/// Prefetches the beginning of a block.
void prefetch_block(const UnitsRef& t, const Block& block) {
  const auto begin = [&](const void* data, DType dtype) {
    const int64_t bytes = t.length * itemsize(dtype);
    prefetch(static_cast<const char*>(data) + block.begin * bytes, std::min(kPrefetchBytes, (block.end - block.begin) * bytes));
  };
  begin(t.grad, t.grad_dtype);
  begin(t.weights, t.weights_dtype);
}

ScaledSum times_square(ScaledSum sum, double factor) {
  const double square = factor * factor;
  return {sum.hi * square, sum.lo * square, sum.bin};
}

/// A thread's buffers for the units of its block.
struct UnitScratch {
  std::vector<double> factors;
  std::vector<ScaledSum> grads;
};

/// Computes the factors of a block's units into `units`.
BlockResult decide(const UnitsRef& t, const Block& block, UnitLimits limits, const MeasureOptions& options,
                   UnitScratch& units) {
  ScopedFloatingPointMode exact(FloatingPointMode::exact());
  const ChunkKernels& kernels = chunk_kernels();
  const size_t count = size_t(block.end - block.begin);
  units.factors.resize(count);
  units.grads.resize(count);
  BlockResult out{empty_partial(options.order), {}};
  for (size_t i = 0; i < count; ++i) {
    const int64_t row = block.begin + int64_t(i);
    prefetch_ahead(t.grad, t.grad_dtype, row, t.length);
    prefetch_ahead(t.weights, t.weights_dtype, row, t.length);
    const Partial grad = measured(kernels, t, row, options);
    const double weights = finish(squares_of(kernels, t.weights, t.weights_dtype, row, t.length));
    units.grads[i] = grad.sq;
    units.factors[i] = unit_factor(weights, finish(grad.sq), limits.clip_factor, limits.eps);
    out.changed |= units.factors[i] != 1.0;
    out.before = combine(options.order, out.before, grad);
  }
  if (!out.changed) out.after = out.before.sq;
  for (size_t i = 0; out.changed && i < count; ++i)
    out.after = combine(out.after, times_square(units.grads[i], units.factors[i]));
  return out;
}

void scale(const UnitsRef& t, const Block& block, const double* factors) {
  const int64_t bytes = t.length * itemsize(t.grad_dtype);
  for (int64_t row = block.begin; row < block.end; ++row) {
    const double factor = factors[row - block.begin];
    char* const data = static_cast<char*>(t.grad) + row * bytes;
    if (factor != 1.0) chunk_kernels().scale(data, t.grad_dtype, t.length, factor, {});
  }
}

/// One thread per kChunkElements elements, as in the other passes.
int threads_for(const UnitsRef* list, int64_t count, size_t blocks, const ThreadPool& pool) {
  int64_t useful = 1;
  for (int64_t t = 0; t < count; ++t) useful += list[t].rows * list[t].length / kChunkElements;
  return int(std::min({useful, int64_t(blocks), int64_t(pool.threads)}));
}

/// Calls body(index of the block, a thread's buffers) for all blocks, under the caller's floating-point mode.
template <class Body>
void for_each_block(const UnitsRef* list, int64_t count, const std::vector<Block>& blocks, const ThreadPool& pool,
                    const Body& body) {
  std::atomic<size_t> next{0};
  const FloatingPointMode callers = FloatingPointMode::current();
  auto work = [&] {
    ScopedFloatingPointMode scope(callers);
    UnitScratch units;
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks.size();) body(i, units);
  };
  using Work = decltype(work);
  const int threads = threads_for(list, count, blocks.size(), pool);
  if (threads <= 1) work();
  else pool.run(threads, [](void* context, int32_t) { (*static_cast<Work*>(context))(); }, &work);
}

/// Combines the blocks of each tensor, in order, into the results. Writes per_tensor[t] if tensor t has units.
void report(const std::vector<Block>& blocks, const std::vector<BlockResult>& results, int64_t count,
            const NormOrder& order, Partial* per_tensor, UnitResults out) {
  ScopedFloatingPointMode exact(FloatingPointMode::exact());
  std::vector<BlockResult> whole(static_cast<size_t>(count), BlockResult{empty_partial(order), {}});
  for (size_t i = 0; i < blocks.size(); ++i) {
    BlockResult& sum = whole[size_t(blocks[i].tensor)];
    sum = {combine(order, sum.before, results[i].before), combine(sum.after, results[i].after),
           sum.changed || results[i].changed};
  }
  for (size_t t = 0; t < whole.size(); ++t) {
    if (per_tensor && whole[t].before.numel) per_tensor[t] = whole[t].before;
    out.norms[t] = finish(whole[t].before.sq);
    out.norms[whole.size() + t] = whole[t].changed ? finish(whole[t].after) : out.norms[t];
    out.changed[t] = whole[t].changed;
  }
}

/// The number of units of the tensors before each.
std::vector<int64_t> units_before(const UnitsRef* list, int64_t count) {
  std::vector<int64_t> before(size_t(count) + 1);
  for (int64_t t = 0; t < count; ++t) before[size_t(t) + 1] = before[size_t(t)] + list[t].rows;
  return before;
}

}  // namespace

void clip_units(const UnitsRef* list, int64_t count, UnitLimits limits, const ThreadPool& pool, UnitResults out) {
  const std::vector<Block> blocks = blocks_of(list, count);
  std::vector<BlockResult> results(blocks.size());
  const MeasureOptions options{norm_order(2.0), false};
  for_each_block(list, count, blocks, pool, [&](size_t i, UnitScratch& units) {
    const UnitsRef& t = list[blocks[i].tensor];
    if (i + 1 < blocks.size()) prefetch_block(list[blocks[i + 1].tensor], blocks[i + 1]);
    results[i] = decide(t, blocks[i], limits, options, units);
    if (results[i].changed) scale(t, blocks[i], units.factors.data());
  });
  report(blocks, results, count, options.order, nullptr, out);
}

void measure_units(const UnitsRef* list, const UnitLimits* limits, int64_t count, const MeasureOptions& options,
                   const ThreadPool& pool, Partial* per_tensor, double* factors, UnitResults out) {
  const std::vector<Block> blocks = blocks_of(list, count);
  const std::vector<int64_t> before = units_before(list, count);
  std::vector<BlockResult> results(blocks.size());
  for_each_block(list, count, blocks, pool, [&](size_t i, UnitScratch& units) {
    const Block& block = blocks[i];
    if (i + 1 < blocks.size()) prefetch_block(list[blocks[i + 1].tensor], blocks[i + 1]);
    results[i] = decide(list[block.tensor], block, limits[block.tensor], options, units);
    std::copy(units.factors.begin(), units.factors.end(), factors + before[size_t(block.tensor)] + block.begin);
  });
  report(blocks, results, count, options.order, per_tensor, out);
}

void scale_units(const UnitsRef* list, int64_t count, const double* factors, const uint8_t* changed,
                 const ThreadPool& pool) {
  const std::vector<Block> blocks = blocks_of(list, count);
  const std::vector<int64_t> before = units_before(list, count);
  for_each_block(list, count, blocks, pool, [&](size_t i, UnitScratch&) {
    const Block& block = blocks[i];
    if (changed[block.tensor]) scale(list[block.tensor], block, factors + before[size_t(block.tensor)] + block.begin);
  });
}

}  // namespace gradkern::cpu
