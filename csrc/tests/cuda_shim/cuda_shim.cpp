// Fibers for the threads of a block: see cuda_runtime.h beside this.
#include <cuda_runtime.h>

#include "context.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_shim {

Schedule schedule;
int multiprocessors = 3;
int launches = 0;
cudaError_t next_error = cudaSuccess, load_error = cudaSuccess;
int driver_version = CUDART_VERSION;
int loaded = 0;
size_t largest_params = 0;
const float* watched = nullptr;
std::vector<float> seen;

namespace {

constexpr size_t kStackBytes = size_t(192) << 10;  // a kernel's arguments alone take up to 32 KB
constexpr unsigned kWarp = 32;

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  bool finished = false;
  unsigned barriers = 0;           // it has arrived at so many
  unsigned exchanges = 0;          // warp operations, likewise
  const unsigned* waits_for = nullptr;  // runs again when *waits_for >= target
  unsigned target = 0;
};

/// Values of one warp operation; two of them, because a lane may be one operation ahead of the
/// slowest but never two.
struct Warp {
  uint64_t values[2][kWarp];
  unsigned arrived[2];
};

Context scheduler;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
unsigned block_arrived;
const std::function<void()>* current_body;

void to_scheduler(Fiber& f) { switch_context(f.context, scheduler); }

void entry() {
  Fiber& f = fibers[threadIdx.x];
  (*current_body)();
  f.finished = true;
  to_scheduler(f);
}

void resume(unsigned i) {
  threadIdx.x = i;
  switch_context(scheduler, fibers[i].context);
}

void wait_until(Fiber& f, const unsigned* counter, unsigned target) {
  if (*counter >= target) return;
  f.waits_for = counter;
  f.target = target;
  to_scheduler(f);
  f.waits_for = nullptr;
}

bool ready(const Fiber& f) { return !f.finished && (!f.waits_for || *f.waits_for >= f.target); }

[[noreturn]] void deadlock() {
  std::fprintf(stderr, "cuda_shim: block %u waits for ever: a barrier or a warp operation that "
                       "not all threads reach\n", blockIdx.x);
  std::abort();
}

}  // namespace

void block_barrier() {
  Fiber& f = fibers[threadIdx.x];
  ++block_arrived;
  wait_until(f, &block_arrived, ++f.barriers * blockDim.x);
}

const uint64_t* warp_exchange(uint64_t value) {
  Fiber& f = fibers[threadIdx.x];
  Warp& warp = warps[threadIdx.x / kWarp];
  const unsigned turn = f.exchanges % 2, round = f.exchanges / 2;
  ++f.exchanges;
  warp.values[turn][threadIdx.x % kWarp] = value;
  ++warp.arrived[turn];
  wait_until(f, &warp.arrived[turn], (round + 1) * kWarp);
  return warp.values[turn];
}

void run_block(unsigned threads, const std::function<void()>& body) {
  if (fibers.size() < threads) fibers.resize(threads);
  warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  block_arrived = 0;
  current_body = &body;
  for (unsigned i = 0; i < threads; ++i) {
    if (!fibers[i].stack) fibers[i].stack.reset(new char[kStackBytes]);
    start_context(fibers[i].context, fibers[i].stack.get(), kStackBytes, entry);
    fibers[i].finished = false;
    fibers[i].barriers = fibers[i].exchanges = 0;
    fibers[i].waits_for = nullptr;
  }
  for (unsigned finished = 0; finished < threads;) {
    bool progress = false;
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned i = schedule.threads_backwards ? threads - 1 - k : k;
      if (!ready(fibers[i])) continue;
      resume(i);
      progress = true;
      finished += fibers[i].finished;
    }
    if (!progress) deadlock();
  }
}

void run_grid(dim3 grid, dim3 block, const std::function<void()>& body) {
  ++launches;
  gridDim = grid;
  blockDim = block;
  for (unsigned k = 0; k < grid.x; ++k) {
    blockIdx.x = schedule.blocks_backwards ? grid.x - 1 - k : k;
    run_block(block.x, body);
  }
}

}  // namespace cuda_shim
