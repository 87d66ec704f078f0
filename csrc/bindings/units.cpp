#include "bindings/units.h"

#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>

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
  if (!t.is_cpu() || t.layout() != at::kStrided || !has_kernel_dtype(t.scalar_type(), ignored)) return 0;
  if (!t.is_non_overlapping_and_dense()) return 0;
  if (t.dim() <= 1 || t.size(0) == 1) return 1;
  return t.stride(0) * t.size(0) == t.numel() ? t.size(0) : 0;
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

void limit_units(const std::vector<UnitsRef>& units, double clip_factor, double eps, double* ratios,
                 uint8_t* changed) {
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_clip_units(as_plain(units.data()), int64_t(units.size()), clip_factor, eps, &pool, ratios,
                                        changed));
}

at::Tensor clip_units(const CallSite& site, const GradList& weights, const GradList& grads, double clip_factor,
                      double eps) {
  if (cuda_backend::handles(grads)) return {};
  at::NoGradGuard no_grad;
  const size_t count = grads.size();
  const Prepared& prepared = prepare(site, grads);
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  const Prepared& target = in_place ? prepared : writable;
  std::vector<UnitsRef> units(count);
  if (!target.staged.empty()) return {};
  for (size_t i = 0; i < count; ++i)
    if (!enter_units(weights, grads, target, i, units)) return {};
  at::Tensor ratios = at::ones({int64_t(count)}, at::kDouble);
  double* const ratio = ratios.mutable_data_ptr<double>();
  std::vector<uint8_t> changed(count);
  limit_units(units, clip_factor, eps, ratio, changed.data());
  for (size_t i = 0; i < count; ++i) {
    ratio[i] = ratio[size_t(prepared.first[i])];
    if (changed[size_t(prepared.first[i])]) bump_version(grads[i]);
  }
  return ratios;
}

}  // namespace gradkern
