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

/// The same in two calls, for a decision on all gradients in between. measure_units() also measures the gradients as
/// measure() of driver.h does, into per_tensor[t] for each tensor with units, and leaves the factor of every unit, tensor
/// after tensor, in `factors`. `out.changed` tells which gradients scale_units() writes.
void measure_units(const UnitsRef* list, const UnitLimits* limits, int64_t count, const MeasureOptions& options,
                   const ThreadPool& pool, Partial* per_tensor, double* factors, UnitResults out);
void scale_units(const UnitsRef* list, int64_t count, const double* factors, const uint8_t* changed,
                 const ThreadPool& pool);

}  // namespace gradkern::cpu
