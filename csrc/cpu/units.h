// Adaptive gradient clipping, unit by unit (core/policies.h, unit_factor). Torch-free.
#pragma once

#include <cstdint>

#include "core/policies.h"
#include "cpu/driver.h"

namespace gradkern::cpu {

struct UnitLimits {
  double clip_factor, eps;
};

struct UnitResults {
  double* norms;     ///< [2 * count]: L2 norms of the gradients before, then after
  uint8_t* changed;  ///< [count]: whether a gradient was written to
};

/// Scales every unit of the list: one pass over the weights, one over the gradients, and a write where a factor
/// is not 1. The same bits for any number of threads.
void clip_units(const UnitsRef* list, int64_t count, UnitLimits limits, const ThreadPool& pool, UnitResults out);

}  // namespace gradkern::cpu
