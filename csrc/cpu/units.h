// Adaptive gradient clipping of units (unit_factor() in core/policies.h). Without torch.
#pragma once

#include <cstdint>

#include "core/policies.h"
#include "cpu/driver.h"

namespace gradkern::cpu {

struct UnitLimits {
  double clip_factor, eps;
};

/// For each gradient: the ratio of its L2 norm after clipping to that before, and whether it was written.
struct UnitResults {
  double* ratios;
  uint8_t* changed;
};

/// Clips every unit of the list. Reads weights and gradients once and writes the units whose factor is not 1.
/// The bits do not depend on the number of threads.
void clip_units(const UnitsRef* list, int64_t count, UnitLimits limits, const ThreadPool& pool, UnitResults out);

}  // namespace gradkern::cpu
