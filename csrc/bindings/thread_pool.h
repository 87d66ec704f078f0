// torch's intra-op thread pool for the library.
#pragma once

#include <algorithm>
#include <atomic>

#include "library/kernels.h"

namespace gradkern {

/// A pool of torch.get_num_threads() threads. Of one thread inside a parallel region, and in a forked child, in which
/// OpenMP's threads no longer exist.
gradkern_pool intraop_pool();

/// The number of positions that a walk over a list takes at a time, so that their cache misses overlap. By the time the
/// last is requested, the first has arrived.
constexpr int64_t kRun = 64;
constexpr int64_t kSpan = 512;  ///< that of a pipelined walk, which fills and empties its pipeline once a run

/// Calls body(begin, end) for runs of at most kLength of the positions [0, count), on several threads if there are many.
/// `body` must not need the GIL, which the caller holds. Its exceptions are rethrown.
template <int64_t kLength = kRun, class Body>
void for_each_run(int64_t count, const Body& body) {
  constexpr int64_t kPerThread = 512;  // with fewer positions, a further thread costs more than it saves
  const gradkern_pool pool = intraop_pool();
  const int32_t threads = int32_t(std::min<int64_t>(pool.threads, 1 + count / kPerThread));
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(kLength, std::memory_order_relaxed)) < count;)
      body(begin, std::min(begin + kLength, count));
  };
  if (threads <= 1) return work();
  using Work = decltype(work);
  pool.parallel_for(threads, [](void* context, int32_t) { (*static_cast<Work*>(context))(); }, &work);
}

}  // namespace gradkern
