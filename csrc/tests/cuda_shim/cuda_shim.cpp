// Fibers for the threads of a block: see cuda_runtime.h beside this.
#include <cuda_runtime.h>

#include <setjmp.h>
#include <ucontext.h>

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
cudaError_t next_error = cudaSuccess;

namespace {

constexpr size_t kStackBytes = size_t(256) << 10;
constexpr unsigned kWarp = 32;

// swapcontext makes two system calls a switch; after the first switch a jump does the same
// without. AddressSanitizer follows swapcontext only.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kJump = false;
#else
constexpr bool kJump = true;
#endif

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  std::unique_ptr<char[]> stack;
  bool started = false, finished = false;
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

ucontext_t scheduler;
jmp_buf scheduler_jump;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
unsigned block_arrived;
const std::function<void()>* current_body;

void to_scheduler(Fiber& f) {
  if (!kJump) swapcontext(&f.context, &scheduler);
  else if (!_setjmp(f.jump)) _longjmp(scheduler_jump, 1);
}

void entry() {
  Fiber& f = fibers[threadIdx.x];
  (*current_body)();
  f.finished = true;
  to_scheduler(f);
}

void resume(unsigned i) {
  Fiber& f = fibers[i];
  threadIdx.x = i;
  if (kJump && _setjmp(scheduler_jump)) return;
  if (kJump && f.started) _longjmp(f.jump, 1);
  if (!f.started) {
    f.started = true;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  swapcontext(&scheduler, &f.context);
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
    fibers[i].started = fibers[i].finished = false;
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
