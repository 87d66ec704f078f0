#include "bindings/units.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <utility>
#include <vector>

#include "bindings/cuda_backend.h"
#include "bindings/library.h"
#include "bindings/thread_pool.h"

namespace gradkern {
namespace {

/// How many units a tensor has, by timm's convention: one each entry of its first dimension, or one in all. 0 where
/// they do not lie in memory one after the other.
int64_t units_of(const at::Tensor& t) {
  DType ignored;
  if (t.layout() != at::kStrided || !has_kernel_dtype(t.scalar_type(), ignored)) return 0;
  if (!t.is_non_overlapping_and_dense()) return 0;
  if (t.dim() <= 1 || t.size(0) == 1) return 1;
  return t.stride(0) * t.size(0) == t.numel() ? t.size(0) : 0;
}

at::Tensor clip_on_cpu(const Prepared& prepared, const GradList& grads, const std::vector<UnitsRef>& units,
                       double clip_factor, double eps) {
  const size_t count = units.size();
  at::Tensor norms = at::empty({2, int64_t(count)}, at::kDouble);
  double* const norm = norms.mutable_data_ptr<double>();
  std::vector<uint8_t> changed(count);
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_clip_units(as_plain(units.data()), int64_t(count), clip_factor, eps, &pool, norm,
                                        changed.data()));
  for (size_t i = 0; i < count; ++i) {
    const size_t first = size_t(prepared.first[i]);
    norm[i] = norm[first];
    norm[count + i] = norm[count + first];
    if (changed[first]) bump_version(grads[i]);
  }
  return norms;
}

at::Tensor clip_on_cuda(const Prepared& prepared, const GradList& grads, const std::vector<UnitsRef>& units,
                        at::Device device, double clip_factor, double eps) {
  const at::Tensor norms = cuda_backend::clip_units(units, device, clip_factor, eps);
  for (const at::Tensor& grad : grads)
    if (grad.defined()) bump_version(grad);
  // Row by row, because an index from the host would be a synchronization and cannot be captured.
  for (size_t i = 0; i < units.size() && prepared.any_duplicate; ++i)
    if (prepared.first[i] != int64_t(i)) norms.select(1, int64_t(i)).copy_(norms.select(1, prepared.first[i]));
  return norms;
}

}  // namespace

bool enter_units(const GradList& weights, const GradList& grads, const Prepared& target, size_t i,
                 std::vector<UnitsRef>& units) {
  if (target.refs[i].numel == 0) return true;
  const int64_t rows = units_of(grads[i]);
  if (!rows || rows != units_of(weights[i]) || weights[i].numel() != grads[i].numel()) return false;
  DType dtype = DType::kFloat32;
  has_kernel_dtype(weights[i].scalar_type(), dtype);
  units[i] = {target.refs[i].data, weights[i].const_data_ptr(), rows, grads[i].numel() / rows, target.refs[i].dtype,
              dtype};
  return true;
}

at::Tensor clip_units(const CallSite& site, const GradList& weights, const GradList& grads, double clip_factor,
                      double eps) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  const Prepared& target = in_place ? prepared : writable;
  if (!target.staged.empty()) return {};
  std::vector<UnitsRef> units(grads.size());
  at::Device device = at::kCPU;
  bool any = false;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) continue;
    if (!std::exchange(any, true)) device = grads[i].device();
    if (grads[i].device() != device || weights[i].device() != device) return {};
    if (!enter_units(weights, grads, target, i, units)) return {};
  }
  return device.is_cuda() ? clip_on_cuda(prepared, grads, units, device, clip_factor, eps)
                          : clip_on_cpu(prepared, grads, units, clip_factor, eps);
}

}  // namespace gradkern
