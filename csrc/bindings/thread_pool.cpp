#include "bindings/thread_pool.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>

namespace gradkern {
namespace {

std::atomic<bool> forked_child{false};

// Registered when the extension is loaded, because torch's threads may run, and the process may fork, before the first
// call.
[[maybe_unused]] const int watching_forks =
    pthread_atfork(nullptr, nullptr, [] { forked_child.store(true, std::memory_order_relaxed); });

}  // namespace

gradkern_pool intraop_pool() {
  if (forked_child.load(std::memory_order_relaxed) || at::in_parallel_region()) return {1, nullptr};
  return {at::get_num_threads(), [](int32_t count, void (*body)(void*, int32_t), void* context) {
            at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(context, int32_t(i));
            });
          }};
}

}  // namespace gradkern
