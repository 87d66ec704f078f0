// Fibers for the threads of a block: see cuda_runtime.h beside this.
#include <cuda_runtime.h>

#include "context.h"
#include "race_model.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <utility>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_shim {

Schedule schedule;
int multiprocessors = 3;
int launches = 0;
cudaError_t next_error = cudaSuccess, load_error = cudaSuccess;
int driver_version = CUDART_VERSION, device = 0;
int loaded = 0;
size_t largest_params = 0;
int ptx_version = 90;
bool capturing = false, copies_pending = false, deferred = false, skip_kernels = false;
int copies = 0, allocations = 0, early_launches = 0;
size_t copied = 0;
RunKernel run_kernel = nullptr;

namespace {

constexpr size_t kStackBytes = size_t(race::kOn ? 96 : 192) << 10;  // a kernel's arguments alone take up to 32 KB
constexpr unsigned kWarp = 32;

struct Fiber {
  Context context;
  void* clock = nullptr;
  race::Fences fences;
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

/// A block's shared memory, in which a variable gets its place at its first use, and the tokens of its barrier.
struct SharedMemory {
  static constexpr size_t kBytes = 48 << 10;
  static constexpr size_t kTokens = 2;
  std::unique_ptr<char[]> memory;
  struct Variable {
    const void* key;
    size_t at;
  };
  race::List<Variable, 8> variables;
  size_t used = 0;
};

Context scheduler;
void* scheduler_clock;
SharedMemory shared;
// Kept until the grid is done: reused by a later block, an address would look like a race with the earlier one.
std::vector<std::unique_ptr<char[]>> used_memory;
std::vector<void*> used_clocks;
struct Atomic {
  const void* location;
  race::Tokens writers;
};
race::List<Atomic, 16> atomics;  // of this grid
std::vector<std::vector<Fiber>> retired;  // with the clocks of their fences
char launch_token, end_token;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
unsigned block_arrived;
const std::function<void()>* current_body;

void to_scheduler(Fiber& f) {
  race::switch_to(scheduler_clock);
  switch_context(f.context, scheduler);
}

void entry() {
  Fiber& f = fibers[threadIdx.x];
  race::acquire(&launch_token);
  (*current_body)();
  race::release(&end_token);
  f.finished = true;
  to_scheduler(f);
}

void resume(unsigned i) {
  threadIdx.x = i;
  race::switch_to(fibers[i].clock);
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
  // Two alternating tokens: a thread that continues must not be ordered after the others' next barrier.
  char* token = shared.memory.get() + SharedMemory::kBytes + f.barriers % 2;
  race::release(token);
  wait_until(f, &block_arrived, ++f.barriers * blockDim.x);
  race::acquire(token);
}

void fence() {
  if (race::kOn) fibers[threadIdx.x].fences.fence();
}

void note_atomic(const void* location) {
  if (!race::kOn) return;
  Atomic* found = nullptr;
  for (Atomic& a : atomics) found = a.location == location ? &a : found;
  if (!found) found = &atomics.add({location, {}});
  fibers[threadIdx.x].fences.atomic(found->writers);
}

void* shared_memory(const void* variable, size_t bytes) {
  for (const SharedMemory::Variable& v : shared.variables)
    if (v.key == variable) return shared.memory.get() + v.at;
  const size_t at = shared.used;
  shared.used += (bytes + 15) / 16 * 16;
  if (shared.used > SharedMemory::kBytes) std::abort();
  shared.variables.add({variable, at});
  return shared.memory.get() + at;
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

void retire_block(unsigned threads) {
  used_memory.push_back(std::move(shared.memory));
  for (unsigned i = 0; i < threads; ++i) {
    used_memory.push_back(std::move(fibers[i].stack));
    used_clocks.push_back(fibers[i].clock);
  }
  retired.push_back(std::move(fibers));
  fibers.clear();
}

void run_block(unsigned threads, const std::function<void()>& body) {
  if (fibers.size() < threads) fibers.resize(threads);
  warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  block_arrived = 0;
  current_body = &body;
  scheduler_clock = race::current();
  shared = SharedMemory();
  shared.memory.reset(new char[SharedMemory::kBytes + SharedMemory::kTokens]);
  for (unsigned i = 0; i < threads; ++i) {
    if (!fibers[i].stack) fibers[i].stack.reset(new char[kStackBytes]);
    start_context(fibers[i].context, fibers[i].stack.get(), kStackBytes, entry);
    fibers[i].finished = false;
    fibers[i].barriers = fibers[i].exchanges = 0;
    fibers[i].waits_for = nullptr;
    fibers[i].clock = race::create();
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
  if (race::kOn) retire_block(threads);
}

namespace {
auto& kept_work = *new std::map<cudaStream_t, Work>;
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  if (deferred) kept_work[stream].push_back(std::move(work));
  else work();
}

Work take_work(cudaStream_t stream) { return std::exchange(kept_work[stream], {}); }

void run(const Work& work) {
  for (const auto& one : work) one();
}

void run_grid(dim3 grid, dim3 block, const std::function<void()>& body) {
  race::release(&launch_token);
  gridDim = grid;
  blockDim = block;
  for (unsigned k = 0; k < grid.x; ++k) {
    blockIdx.x = schedule.blocks_backwards ? grid.x - 1 - k : k;
    run_block(block.x, body);
  }
  race::acquire(&end_token);
  for (void* clock : used_clocks) race::destroy(clock);
  used_clocks.clear();
  atomics.size = 0;
  retired.clear();
  used_memory.clear();
}

}  // namespace cuda_shim

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  static auto& all = *new std::vector<std::unique_ptr<char[]>>;
  all.emplace_back(new char[bytes]);
  ++cuda_shim::allocations;
  return *memory = all.back().get(), cudaSuccess;
}
