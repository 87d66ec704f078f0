// One step of an adaptive policy (core/policies.h): one call, no synchronisation.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace gradkern {

/// Decides on `total` (0-d, float32 or float64) and, for "adagc", `norms` ([N]); updates `state` (float64 [S]),
/// which is on their device. Returns what core/policies.h calls the result, float64, there.
/// Raises ValueError where a name, a shape, a type or a device is not as expected; nothing has changed then.
at::Tensor policy_step(const std::string& kind, const at::Tensor& total, const at::Tensor& state,
                       const std::vector<double>& constants, const at::Tensor& norms);

}  // namespace gradkern
