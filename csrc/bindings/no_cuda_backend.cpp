// A build without CUDA kernels: CUDA gradients are torch's own operations' (is_native() says so),
// and none of these is reached.
#include "bindings/cuda_backend.h"

namespace gradkern::cuda_backend {
namespace {

[[noreturn]] void missing(const CallSite& site) {
  TORCH_CHECK(false, "[", site.operation, "] this build of gradkern has no CUDA kernels. Rebuild it ",
              "where nvcc is installed: GRADKERN_CUDA=1 pip install --no-build-isolation ",
              "--force-reinstall --no-deps gradkern");
}

}  // namespace

bool available() { return false; }
bool handles(const GradList&) { return false; }
Measurement measure(const CallSite& site, const GradList&, const MeasureRequest&) { missing(site); }
ClipResult clip(const CallSite& site, const GradList&, const ClipRequest&) { missing(site); }
void clip_with_norm(const CallSite& site, const GradList&, double, const at::Tensor&) { missing(site); }
void clip_value(const CallSite& site, const GradList&, double) { missing(site); }

}  // namespace gradkern::cuda_backend
