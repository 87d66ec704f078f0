// The engine as operators of torch, for torch.compile and export. They take gradients and declare mutation. Their fake
// implementations are in gradkern/clipping/compiled.py.
#include <torch/library.h>

#include "bindings/engine.h"

namespace gradkern {
namespace {

GradList as_list(at::TensorList tensors) { return GradList(tensors); }

MeasureRequest request_of(double norm_type, bool for_decision) {
  MeasureRequest request;
  request.norm_type = norm_type;
  request.decision_norm = for_decision;
  return request;
}

at::Tensor total_norm_op(at::TensorList grads, double norm_type, bool for_decision) {
  const MeasureRequest request = request_of(norm_type, for_decision);
  const Measurement m = measure({"get_total_norm", "tensors"}, as_list(grads), request);
  return for_decision ? m.decision_norm : m.total_norm;
}

at::Tensor clip_op(at::TensorList grads, double max_norm, double norm_type, bool error_if_nonfinite,
                   bool for_decision) {
  ClipRequest request;
  request.measure = request_of(norm_type, for_decision);
  request.max_norm = max_norm;
  request.raise_if_nonfinite_norm = error_if_nonfinite;
  const Measurement m = clip({"clip_grad_norm_", "parameters"}, as_list(grads), request).measured;
  return for_decision ? m.decision_norm : m.total_norm;
}

void scale_op(at::TensorList grads, const at::Tensor& factor) {
  scale({"clip_grad_norm_", "parameters"}, as_list(grads), factor, {});
}

void clip_value_op(at::TensorList grads, double clip_value_limit) {
  clip_value({"clip_grad_value_", "parameters"}, as_list(grads), clip_value_limit);
}

}  // namespace
}  // namespace gradkern

// for_decision: return the norm that decisions use (decision_norm() of core/clip.h), in float64.
TORCH_LIBRARY(gradkern, m) {
  m.def("total_norm(Tensor[] grads, float norm_type, bool for_decision=False) -> Tensor");
  m.def("clip_(Tensor(a!)[] grads, float max_norm, float norm_type, bool error_if_nonfinite, "
        "bool for_decision=False) -> Tensor");
  m.def("scale_(Tensor(a!)[] grads, Tensor factor) -> ()");  // float64, [] or [N], on their device
  m.def("clip_value_(Tensor(a!)[] grads, float clip_value) -> ()");
}

namespace {
void implement(torch::Library& m) {
  m.impl("total_norm", gradkern::total_norm_op);
  m.impl("clip_", gradkern::clip_op);
  m.impl("scale_", gradkern::scale_op);
  m.impl("clip_value_", gradkern::clip_value_op);
}
}  // namespace

TORCH_LIBRARY_IMPL(gradkern, CPU, m) { implement(m); }
TORCH_LIBRARY_IMPL(gradkern, CUDA, m) { implement(m); }
