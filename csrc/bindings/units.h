// Adaptive gradient clipping: from lists of weights and gradients to csrc/cpu/units.h.
#pragma once

#include <vector>

#include "bindings/gradients.h"
#include "core/policies.h"

namespace gradkern {

/// Enters gradient i and its weights into units[i], if `target` has anything of it. False where a unit of a tensor
/// does not lie in one piece of memory.
bool enter_units(const GradList& weights, const GradList& grads, const Prepared& target, size_t i,
                 std::vector<UnitsRef>& units);

/// Limits the units of the list. Sets ratios[i] to the ratio of the L2 norms of gradient i after and before, and
/// changed[i] to whether it was written.
void limit_units(const std::vector<UnitsRef>& units, double clip_factor, double eps, double* ratios, uint8_t* changed);

/// The ratios of every gradient's L2 norms after and before, float64 [N]. Undefined, and nothing written, where the
/// gradients are not on the CPU or a unit of a tensor does not lie in one piece of memory.
at::Tensor clip_units(const CallSite& site, const GradList& weights, const GradList& grads, double clip_factor,
                      double eps);

}  // namespace gradkern
