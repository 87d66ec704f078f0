// Test only: runs a kernel's blocks.
#pragma once

#include "warp.h"

namespace ptx {

/// Memory of finished warps, for the next.
using Pool = std::vector<std::unique_ptr<WarpMemory>>;

/// The order of execution: blocks one after the other, or with a seed some of them at once, whose warps take turns at random.
struct Order {
  uint64_t seed = 0;
};

/// Counts the 16-byte vectors that lanes have loaded from global memory.
extern uint64_t vectors_loaded;

void run_grid(const Launch& launch, const Order& order, Pool& pool);

}  // namespace ptx
