// A build without CUDA kernels: CUDA gradients are torch's own operations' (is_native() says so).
// Here arrive only those of compiled graphs, whose operators ask nobody: an error, not a read of
// device memory by the CPU.
#include "bindings/cuda_backend.h"
#include "bindings/cuda_stream.h"

namespace gradkern {

KnownStreams::KnownStreams(const GradList&) {}
KnownStreams::~KnownStreams() {}

namespace cuda_backend {
namespace {

[[noreturn]] void missing(const CallSite& site) {
  TORCH_CHECK(false, "[", site.operation, "] this build of gradkern has no CUDA kernels. Rebuild it ",
              "where nvcc is installed: GRADKERN_CUDA=1 pip install ",
              "--force-reinstall --no-deps PATH_TO_CHECKOUT (or there: make -B build)");
}

}  // namespace

bool available() { return false; }
Measurement measure(const CallSite& site, const GradList&, const MeasureRequest&) { missing(site); }
ClipResult clip(const CallSite& site, const GradList&, const ClipRequest&) { missing(site); }
void clip_with_norm(const CallSite& site, const GradList&, double, const at::Tensor&) { missing(site); }
void scale(const CallSite& site, const GradList&, const at::Tensor&, const at::Tensor&) { missing(site); }
PackedPartials packed_partials(const CallSite& site, const GradList&, double, bool, bool) { missing(site); }
void clip_value(const CallSite& site, const GradList&, double) { missing(site); }
void policy_step(const PolicyStep&, at::Device) { missing({"policy_step_", "state"}); }

}  // namespace cuda_backend
}  // namespace gradkern
