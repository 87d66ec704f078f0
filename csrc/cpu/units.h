// Adaptive gradient clipping, unit by unit (core/policies.h, unit_factor). Torch-free.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cpu/driver.h"

namespace gradkern::cpu {

/// A gradient and its weights in memory order, each `rows` units of `length` elements.
struct UnitsRef {
  void* grad = nullptr;
  const void* weights = nullptr;
  DType grad_dtype = DType::kFloat32, weights_dtype = DType::kFloat32;
  int64_t rows = 0, length = 0;
};

/// Scales every unit of the list: one pass over the weights, one over the gradients, and a write where a factor
/// is not 1. ratios[i] becomes the ratio of gradient i's L2 norms after and before, changed[i] whether it was
/// written to. The same bits for any number of threads.
void clip_units(const UnitsRef* list, int64_t count, double clip_factor, double eps, const ThreadPool& pool,
                double* ratios, bool* changed);

}  // namespace gradkern::cpu
