#include "bindings/thread_pool.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>

namespace gradkern {
namespace {

std::atomic<bool> forked_child{false};

// From the moment the extension is loaded: torch's threads may be running, and the fork may come,
// before gradkern computes anything.
[[maybe_unused]] const int watching_forks =
    pthread_atfork(nullptr, nullptr, [] { forked_child.store(true, std::memory_order_relaxed); });

}  // namespace

cpu::ThreadPool intraop_pool() {
  cpu::ThreadPool pool;
  if (forked_child.load(std::memory_order_relaxed) || at::in_parallel_region()) return pool;
  pool.threads = at::get_num_threads();
  pool.run = [](int count, const std::function<void(int)>& body) {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(int(i));
    });
  };
  return pool;
}

}  // namespace gradkern
