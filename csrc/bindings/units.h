// Adaptive gradient clipping: from lists of weights and gradients to csrc/cpu/units.h.
#pragma once

#include "bindings/gradients.h"

namespace gradkern {

/// The ratios of every gradient's L2 norms after and before, float64 [N]. Undefined, and nothing written, where the
/// gradients are not on the CPU or a unit of a tensor does not lie in one piece of memory.
at::Tensor clip_units(const CallSite& site, const GradList& weights, const GradList& grads, double clip_factor,
                      double eps);

}  // namespace gradkern
