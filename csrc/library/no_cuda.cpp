// The functions gradkern_cuda_* of a build without CUDA kernels.
#include <stdexcept>

#include "library/guarded.h"
#include "library/kernels.h"

namespace {

int32_t missing() {
  return gradkern::library::guarded([] {
    throw std::runtime_error(
        "this build of gradkern has no CUDA kernels. Rebuild it where nvcc is installed: GRADKERN_CUDA=1 pip install "
        "--force-reinstall --no-deps PATH_TO_CHECKOUT (or there: make -B build)");
  });
}

}  // namespace

int32_t gradkern_cuda_usable(int32_t) { return missing(); }
int32_t gradkern_cuda_plan_list(const gradkern_list*, gradkern_cuda_plan*) { return missing(); }
int32_t gradkern_cuda_measure_workspace_bytes(const gradkern_list*, const gradkern_measure*,
                                              const gradkern_cuda_place*, size_t*) {
  return missing();
}
int32_t gradkern_cuda_write_workspace_bytes(const gradkern_list*, const gradkern_cuda_place*, size_t*) {
  return missing();
}
int32_t gradkern_cuda_measure(const gradkern_list*, const gradkern_measure*, const gradkern_cuda_place*) {
  return missing();
}
int32_t gradkern_cuda_combine(const void*, int64_t, const gradkern_measure*, const gradkern_cuda_place*) {
  return missing();
}
int32_t gradkern_cuda_scale(const gradkern_list*, const gradkern_scale*, const gradkern_cuda_place*) {
  return missing();
}
int32_t gradkern_cuda_clip(const gradkern_list*, const gradkern_measure*, const gradkern_scale*,
                           const gradkern_cuda_place*) {
  return missing();
}
int32_t gradkern_cuda_clamp(const gradkern_list*, double, const gradkern_cuda_place*) { return missing(); }
int32_t gradkern_cuda_policy_step(const gradkern_policy_step*, const gradkern_cuda_place*) { return missing(); }
int32_t gradkern_cuda_units_workspace_bytes(const gradkern_units*, int64_t, const gradkern_cuda_place*, size_t*) {
  return missing();
}
int32_t gradkern_cuda_clip_units(const gradkern_units*, int64_t, double, double, const gradkern_cuda_place*, double*) {
  return missing();
}
int32_t gradkern_cuda_is_capturing(const gradkern_cuda_place*, int32_t*) { return missing(); }
