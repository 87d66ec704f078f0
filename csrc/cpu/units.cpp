#include "cpu/units.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/chunk_plan.h"
#include "core/policies.h"
#include "cpu/floating_point_mode.h"

namespace gradkern::cpu {
namespace {

/// Consecutive units of one tensor, the work that a thread takes at a time.
struct Block {
  int64_t tensor, begin, end;
};

/// The squares of a block's gradient before and after clipping.
struct BlockSquares {
  ScaledSum before, after;
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
BlockSquares decide(const UnitsRef& t, const Block& block, UnitLimits limits, UnitScratch& units) {
  ScopedFloatingPointMode exact(FloatingPointMode::exact());
  const ChunkKernels& kernels = chunk_kernels();
  const size_t count = size_t(block.end - block.begin);
  units.factors.resize(count);
  units.grads.resize(count);
  BlockSquares out;
  for (size_t i = 0; i < count; ++i) {
    const int64_t row = block.begin + int64_t(i);
    const ScaledSum grads = squares_of(kernels, t.grad, t.grad_dtype, row, t.length);
    const double weights = finish(squares_of(kernels, t.weights, t.weights_dtype, row, t.length));
    units.grads[i] = grads;
    units.factors[i] = unit_factor(weights, finish(grads), limits.clip_factor, limits.eps);
    out.changed |= units.factors[i] != 1.0;
    out.before = combine(out.before, grads);
  }
  if (!out.changed) out.after = out.before;
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

/// Combines the squares of the blocks of each tensor, in order, into the results.
void report(const std::vector<Block>& blocks, const std::vector<BlockSquares>& squares, int64_t count,
            UnitResults out) {
  ScopedFloatingPointMode exact(FloatingPointMode::exact());
  std::vector<BlockSquares> whole(static_cast<size_t>(count));
  for (size_t i = 0; i < blocks.size(); ++i) {
    BlockSquares& sum = whole[size_t(blocks[i].tensor)];
    sum = {combine(sum.before, squares[i].before), combine(sum.after, squares[i].after),
           sum.changed || squares[i].changed};
  }
  for (size_t t = 0; t < whole.size(); ++t) {
    out.norms[t] = finish(whole[t].before);
    out.norms[whole.size() + t] = whole[t].changed ? finish(whole[t].after) : out.norms[t];
    out.changed[t] = whole[t].changed;
  }
}

}  // namespace

void clip_units(const UnitsRef* list, int64_t count, UnitLimits limits, const ThreadPool& pool, UnitResults out) {
  const std::vector<Block> blocks = blocks_of(list, count);
  std::vector<BlockSquares> squares(blocks.size());
  std::atomic<size_t> next{0};
  const FloatingPointMode callers = FloatingPointMode::current();
  auto work = [&] {
    ScopedFloatingPointMode scope(callers);
    UnitScratch units;
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks.size();) {
      const UnitsRef& t = list[blocks[i].tensor];
      squares[i] = decide(t, blocks[i], limits, units);
      if (squares[i].changed) scale(t, blocks[i], units.factors.data());
    }
  };
  using Work = decltype(work);
  const int threads = threads_for(list, count, blocks.size(), pool);
  if (threads <= 1) work();
  else pool.run(threads, [](void* context, int32_t) { (*static_cast<Work*>(context))(); }, &work);
  report(blocks, squares, count, out);
}

}  // namespace gradkern::cpu
