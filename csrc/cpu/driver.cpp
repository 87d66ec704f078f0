#include "cpu/driver.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "core/prefetch.h"
#include "cpu/floating_point_mode.h"

namespace gradkern::cpu {
namespace {

/// With fewer elements, a further thread costs more than it saves.
constexpr int64_t kElementsPerThread = 1 << 15;

int threads_for(const ChunkPlan& plan, const ThreadPool& pool) {
  const int64_t useful = 1 + plan.numel() / kElementsPerThread;
  const int64_t limit = useful < plan.chunks() ? useful : plan.chunks();
  return int(limit < pool.threads ? limit : pool.threads);
}

char* address(const ChunkPlan& plan, const Chunk& chunk) {
  const TensorRef& t = plan.tensor(chunk.tensor);
  return static_cast<char*>(t.data) + chunk.begin * itemsize(t.dtype);
}

enum class Order { kForward, kBackward };

/// Scaling begins with the chunks that were measured last, which may still be in a cache.
constexpr Order kAfterMeasuring = Order::kBackward;

/// A chunk of the plan. Can move to the chunks after or before it.
class Position {
 public:
  Position(const ChunkPlan& plan, int64_t chunk) : plan_(plan), chunk_(chunk), tensor_(plan.find(chunk)) {}

  void move(int64_t step) {
    chunk_ += step;
    while (chunk_ >= plan_.first_chunk(tensor_ + 1)) ++tensor_;  // also over empty tensors
    while (chunk_ < plan_.first_chunk(tensor_)) --tensor_;
  }
  Chunk chunk() const { return plan_.at(tensor_, chunk_); }
  int64_t index() const { return chunk_; }

 private:
  const ChunkPlan& plan_;
  int64_t chunk_, tensor_;
};

/// Prefetches the beginnings of the next chunks, up to kPrefetchBytes ahead of the current one. The kernel of a
/// longer chunk prefetches the next one itself, line by line, because so many prefetches at once would delay its reads.
class PrefetchAhead {
 public:
  PrefetchAhead(const ChunkPlan& plan, const Position& first, int64_t left, int64_t step)
      : plan_(plan), at_(first), left_(left), step_(step) {}

  /// Called before each chunk, including the first. Returns what the chunk's kernel has to prefetch.
  Following step(const Chunk& chunk) {
    Following following;
    bool by_kernel = bytes(chunk) >= 2 * kPrefetchBytes;
    ahead_ -= asked(chunk);  // the first chunk was not prefetched; this only makes the distance a little shorter
    for (; ahead_ < kPrefetchBytes && left_ > 0; --left_) {
      at_.move(step_);
      const Chunk next = at_.chunk();
      if (by_kernel) following = {address(plan_, next), asked(next)};
      else prefetch(address(plan_, next), asked(next));
      by_kernel = false;
      ahead_ += asked(next);
    }
    return following;
  }

 private:
  int64_t bytes(const Chunk& chunk) const { return chunk.length * itemsize(plan_.tensor(chunk.tensor).dtype); }
  int64_t asked(const Chunk& chunk) const { return std::min(bytes(chunk), kPrefetchBytes); }

  const ChunkPlan& plan_;
  Position at_;
  int64_t left_, step_, ahead_ = 0;
};

/// Calls body(chunk, index, following) for every chunk, in the given floating-point mode. Threads take runs of
/// chunks when they are free, because chunks differ in size and cores in speed. The result does not depend on
/// which thread takes which run.
template <class Body>
void for_each_chunk(const ChunkPlan& plan, const ThreadPool& pool, FloatingPointMode mode, Order order,
                    const Body& body) {
  const int64_t chunks = plan.chunks();
  if (chunks == 0) return;
  const int threads = threads_for(plan, pool);
  const int64_t run = threads == 1 ? chunks : 1 + chunks / (int64_t(threads) * 32);
  const int64_t step = order == Order::kForward ? 1 : -1;
  std::atomic<int64_t> next{0};
  auto work = [&] {
    ScopedFloatingPointMode scope(mode);
    for (int64_t taken; (taken = next.fetch_add(run, std::memory_order_relaxed)) < chunks;) {
      const int64_t count = std::min(run, chunks - taken);
      Position at(plan, step > 0 ? taken : chunks - 1 - taken);
      PrefetchAhead ahead(plan, at, count - 1, step);
      for (int64_t left = count; left > 0; --left) {
        const Chunk chunk = at.chunk();
        const Following following = ahead.step(chunk);
        body(chunk, at.index(), following);
        if (left > 1) at.move(step);
      }
    }
  };
  if (threads == 1) return work();
  using Work = decltype(work);
  pool.run(threads, [](void* context, int32_t) { (*static_cast<Work*>(context))(); }, &work);
}

void apply_to(const ChunkPlan& plan, const Chunk& chunk, const ClipDecision& decision, Following following) {
  const DType dtype = plan.tensor(chunk.tensor).dtype;
  void* const data = address(plan, chunk);
  if (decision.action == ClipAction::kZero) std::memset(data, 0, size_t(chunk.length * itemsize(dtype)));
  if (decision.action == ClipAction::kScale) chunk_kernels().scale(data, dtype, chunk.length, decision.coef, following);
}

/// The results of the chunks of tensors with more than one. A tensor of one chunk needs no entry, which
/// saves most of the memory of a call with many small tensors.
class SplitPartials {
 public:
  explicit SplitPartials(const ChunkPlan& plan) : plan_(plan), partials_(size_t(plan.split_chunks())) {
    first_.reserve(plan.split_tensors().size());
    int64_t chunks = 0;
    for (int64_t t : plan.split_tensors()) {
      first_.push_back(chunks);
      chunks += plan.first_chunk(t + 1) - plan.first_chunk(t);
    }
  }

  /// The results of the tensor's chunks, in order. Null if it has at most one.
  ChunkPartial* of(int64_t tensor) {
    if (plan_.first_chunk(tensor + 1) - plan_.first_chunk(tensor) <= 1) return nullptr;
    const std::vector<int64_t>& tensors = plan_.split_tensors();
    const auto at = std::lower_bound(tensors.begin(), tensors.end(), tensor) - tensors.begin();
    return partials_.data() + first_[size_t(at)];
  }

 private:
  const ChunkPlan& plan_;
  std::vector<int64_t> first_;
  std::vector<ChunkPartial> partials_;
};

}  // namespace

Partial measure(const ChunkPlan& plan, const MeasureOptions& options, const ThreadPool& pool,
                Partial* per_tensor) {
  const ChunkKernels& kernels = chunk_kernels();
  const Partial none = empty_partial(options.order);
  SplitPartials split(plan);
  for_each_chunk(plan, pool, FloatingPointMode::exact(), Order::kForward, [&](const Chunk& chunk, int64_t i, Following following) {
    const DType dtype = plan.tensor(chunk.tensor).dtype;
    if (ChunkPartial* const shared = split.of(chunk.tensor)) {
      Partial out = none;
      kernels.measure(address(plan, chunk), dtype, chunk.length, options, following, out);
      shared[i - plan.first_chunk(chunk.tensor)] = packed(out);
    } else {
      Partial& out = per_tensor[chunk.tensor];
      out = none;
      kernels.measure(address(plan, chunk), dtype, chunk.length, options, following, out);
      out.numel = chunk.length;
    }
  });

  ScopedFloatingPointMode scope(FloatingPointMode::exact());
  Partial total = none;
  for (int64_t t = 0; t < plan.tensors(); ++t) {
    const int64_t chunks = plan.first_chunk(t + 1) - plan.first_chunk(t);
    if (chunks != 1) per_tensor[t] = none;
    const ChunkPartial* const shared = split.of(t);
    for (int64_t i = 0; shared && i < chunks; ++i) {
      const int64_t length = plan.at(t, plan.first_chunk(t) + i).length;
      per_tensor[t] = combine(options.order, per_tensor[t], unpacked(shared[i], length));
    }
    total = combine(options.order, total, per_tensor[t]);
  }
  return total;
}

void apply(const ChunkPlan& plan, const ClipDecision& decision, const ThreadPool& pool) {
  if (decision.action == ClipAction::kNone) return;
  for_each_chunk(plan, pool, FloatingPointMode::current(), kAfterMeasuring,
                 [&](const Chunk& chunk, int64_t, Following following) { apply_to(plan, chunk, decision, following); });
}

void apply(const ChunkPlan& plan, const double* factors, const ThreadPool& pool) {
  for_each_chunk(plan, pool, FloatingPointMode::current(), kAfterMeasuring, [&](const Chunk& chunk, int64_t, Following following) {
    apply_to(plan, chunk, decide_factor(factors[chunk.tensor]), following);
  });
}

void clamp(const ChunkPlan& plan, double limit, const ThreadPool& pool) {
  const ChunkKernels& kernels = chunk_kernels();
  for_each_chunk(plan, pool, FloatingPointMode::current(), Order::kForward, [&](const Chunk& chunk, int64_t, Following) {
    kernels.clamp(address(plan, chunk), plan.tensor(chunk.tensor).dtype, chunk.length, limit);
  });
}

}  // namespace gradkern::cpu
