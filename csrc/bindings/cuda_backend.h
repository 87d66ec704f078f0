// The functions of engine.h for gradients on CUDA devices.
#pragma once

#include "bindings/engine.h"
#include "bindings/shards.h"
#include "core/policies.h"

namespace gradkern::cuda_backend {

/// Whether the kernels of this build run on a CUDA device, determined once per device. If they do not, the first call
/// warns. Needs the GIL.
bool usable(at::Device device);

/// The reason why they do not, or an empty string.
std::string why_unusable(at::Device device);

/// Whether the first gradient of the list is on a CUDA device.
inline bool handles(const GradList& grads) {
  for (const at::Tensor& g : grads)
    if (g.defined()) return g.is_cuda();
  return false;
}

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request);
ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request);
void clip_with_norm(const CallSite& site, const GradList& grads, double max_norm,
                    const at::Tensor& total_norm);
void scale(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero);
/// See shards.h. All gradients are on one device, as is the result.
PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor);
void clip_value(const CallSite& site, const GradList& grads, double limit);
/// See units.h: the norms, float64 [2, N] on the device. Does not bump versions.
at::Tensor clip_units(const std::vector<UnitsRef>& units, at::Device device, double clip_factor, double eps);
void policy_step(const PolicyStep& step, at::Device device);

}  // namespace gradkern::cuda_backend
