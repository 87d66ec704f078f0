// arrives_last() of csrc/cuda/warp.h under Relacy, which runs every interleaving of a few threads by the memory model of
// C++11 and reports a read that is not ordered after its write. scripts/litmus.py compiles and runs it.
//
// PTX's model is C++11's here: __threadfence() is a fence at device scope (fence.acq_rel or stronger), the atomics are
// relaxed, __syncthreads() and __syncwarp() synchronise those that pass them. A block is two threads: one that has
// written a record and one that counts the block; a thread's records are plain memory.
#include <relacy/relacy.hpp>

// What scripts/litmus.py removes in turn.
#if !defined(FENCE_BEFORE)
#define FENCE_BEFORE rl::atomic_thread_fence(rl::mo_acq_rel, $)
#endif
#if !defined(FENCE_AFTER)
#define FENCE_AFTER rl::atomic_thread_fence(rl::mo_acq_rel, $)
#endif
#if !defined(BLOCK_BARRIER)
#define BLOCK_BARRIER(block) wait_for_writer(block)
#endif
#if !defined(RESET)
#define RESET counter.exchange(0, rl::mo_relaxed, $)
#endif

#if !defined(BLOCKS)
#define BLOCKS 2
#endif

namespace {

constexpr unsigned kBlocks = BLOCKS;

struct LastBlock : rl::test_suite<LastBlock, 2 * kBlocks> {
  rl::atomic<unsigned> counter, written[kBlocks];
  rl::var<int> record[kBlocks];
  rl::var<int> finished;

  void before() {
    counter.store(0, rl::mo_relaxed, $);
    finished($) = 0;
    for (unsigned block = 0; block < kBlocks; ++block) written[block].store(0, rl::mo_relaxed, $);
  }

  void wait_for_writer(unsigned block) {
    rl::backoff wait;
    while (!written[block].load(rl::mo_acquire, $)) wait.yield($);
  }

  void thread(unsigned index) {
    const unsigned block = index / 2;
    if (index % 2 == 0) {
      record[block]($) = int(block) + 1;
      written[block].store(1, rl::mo_release, $);
      return;
    }
    BLOCK_BARRIER(block);
    FENCE_BEFORE;
    const bool last = counter.fetch_add(1, rl::mo_relaxed, $) == kBlocks - 1;
    if (last) RESET;
    FENCE_AFTER;
    if (!last) return;
    unsigned sum = 0;
    for (unsigned other = 0; other < kBlocks; ++other) sum += unsigned(record[other]($));
    RL_ASSERT(sum == kBlocks * (kBlocks + 1) / 2);
    finished($) = 1;
  }

  void after() {
    RL_ASSERT(finished($) == 1);
    RL_ASSERT(counter.load(rl::mo_relaxed, $) == 0);  // as the next kernel has to find it
  }
};

}  // namespace

int main() {
  rl::test_params params;
  params.search_type = kBlocks == 2 ? rl::sched_full : rl::sched_bound;  // three: with few switches of threads
  return rl::simulate<LastBlock>(params) ? 0 : 1;
}
