// Adaptive gradient clipping, unit by unit (core/policies.h, unit_factor). Torch-free.
#pragma once

#include <cstdint>

#include "core/policies.h"
#include "cpu/driver.h"

namespace gradkern::cpu {

struct UnitLimits {
  double clip_factor, eps;
};

/// Per gradient: the ratio of its L2 norms after and before, and whether it was written to.
struct UnitResults {
  double* ratios;
  uint8_t* changed;
};

/// Scales every unit of the list: one pass over the weights, one over the gradients, and a write where a factor
/// is not 1. The same bits for any number of threads.
void clip_units(const UnitsRef* list, int64_t count, UnitLimits limits, const ThreadPool& pool, UnitResults out);

}  // namespace gradkern::cpu
