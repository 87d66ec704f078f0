// Adaptive gradient clipping: from lists of weights and gradients to csrc/cpu/units.h and csrc/cuda/agc.cu.
#pragma once

#include <vector>

#include "bindings/gradients.h"
#include "core/policies.h"

namespace gradkern {

/// Enters gradient i and its weights into units[i], if `target` has anything of it. False where a unit of a tensor
/// does not lie in one piece of memory.
bool enter_units(const GradList& weights, const GradList& grads, const Prepared& target, size_t i,
                 std::vector<UnitsRef>& units);

/// The L2 norms of every gradient before and after, float64 [2, N] on the gradients' device. Undefined, and nothing
/// written, if a unit of a tensor does not lie in one piece of memory or tensors lie on several devices.
at::Tensor clip_units(const CallSite& site, const GradList& weights, const GradList& grads, double clip_factor,
                      double eps);

}  // namespace gradkern
