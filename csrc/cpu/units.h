// Adaptive gradient clipping of units (unit_factor() in core/policies.h). Without torch.
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

/// Clips every unit of the list. Reads weights and gradients once and writes the units whose factor is not 1.
/// The bits do not depend on the number of threads.
void clip_units(const UnitsRef* list, int64_t count, UnitLimits limits, const ThreadPool& pool, UnitResults out);

}  // namespace gradkern::cpu
