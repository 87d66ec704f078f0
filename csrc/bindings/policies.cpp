#include "bindings/policies.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "bindings/cuda_backend.h"
#include "bindings/library.h"

namespace gradkern {
namespace {

struct NamedPolicy {
  const char* name;
  PolicyKind kind;
  size_t constants;
};
constexpr NamedPolicy kPolicies[] = {{"nothing", PolicyKind::kNothing, 0},
                                     {"global_norm", PolicyKind::kGlobalNorm, 1},
                                     {"autoclip", PolicyKind::kAutoClip, 2},
                                     {"zclip", PolicyKind::kZClip, 8},
                                     {"skip_outliers", PolicyKind::kSkipOutliers, 5},
                                     {"adagc", PolicyKind::kAdaGC, 4},
                                     {"value", PolicyKind::kNothing, 1},  // csrc/bindings/element_policies.h
                                     {"agc", PolicyKind::kNothing, 2}};

const NamedPolicy& policy_named(const CallSite& site, const std::string& name) {
  for (const NamedPolicy& policy : kPolicies)
    if (name == policy.name) return policy;
  TORCH_CHECK_VALUE(false, "[", site.operation, "] kind: expected nothing, global_norm, autoclip, zclip, ",
                    "skip_outliers, adagc, value or agc, got ", name);
}

void check_constants(const CallSite& site, const NamedPolicy& policy, const std::vector<double>& constants) {
  TORCH_CHECK_VALUE(constants.size() == policy.constants, "[", site.operation, "] constants: expected ",
                    policy.constants, " of them for ", policy.name, ", got ", constants.size());
  const bool windowed = policy.kind == PolicyKind::kAutoClip || policy.kind == PolicyKind::kSkipOutliers;
  TORCH_CHECK_VALUE(!windowed || (constants[1] >= 1 && constants[1] <= 1 << 24), "[", site.operation,
                    "] constants: expected a window of 1 to 2^24 norms, got ", constants[1]);
  const bool limited = policy.kind == PolicyKind::kGlobalNorm;
  TORCH_CHECK_VALUE(!limited || !(constants[0] < 0), "[", site.operation,
                    "] max_norm: expected a number that is not negative, got ", constants[0]);
}

bool is_real(const at::Tensor& t) { return t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble; }

void check_row(const char* name, const at::Tensor& row, const at::Tensor& total) {
  TORCH_CHECK_VALUE(row.dim() == 1 && is_real(row) && row.is_contiguous() && row.device() == total.device(),
                    "[policy_step_] ", name, ": expected a contiguous row of floats on ", total.device(),
                    ", got ", row.scalar_type(), " of shape ", row.sizes(), " on ", row.device());
}

}  // namespace

PolicyStep policy_step_of(const CallSite& site, const std::string& kind, const std::vector<double>& constants) {
  const NamedPolicy& policy = policy_named(site, kind);
  check_constants(site, policy, constants);
  PolicyStep step{};
  step.kind = policy.kind;
  std::copy(constants.begin(), constants.end(), step.constants);
  return step;
}

at::Tensor policy_step(const std::string& kind, const at::Tensor& total, const at::Tensor& state,
                       const std::vector<double>& constants, const at::Tensor& norms) {
  at::NoGradGuard no_grad;
  PolicyStep step = policy_step_of({"policy_step_", "policies"}, kind, constants);
  TORCH_CHECK_VALUE(total.numel() == 1 && is_real(total), "[policy_step_] total: expected one float, got ",
                    total.scalar_type(), " of shape ", total.sizes());
  check_row("state", state, total);
  step.total = total.const_data_ptr();
  step.total_is_double = total.scalar_type() == at::kDouble;
  if (step.kind == PolicyKind::kAdaGC) {
    TORCH_CHECK_VALUE(norms.defined(), "[policy_step_] norms: expected one a tensor for adagc, got None");
    check_row("norms", norms, total);
    step.norms = norms.const_data_ptr();
    step.norms_are_double = norms.scalar_type() == at::kDouble;
    step.rows = norms.numel();
  }
  TORCH_CHECK_VALUE(state.scalar_type() == at::kDouble && state.numel() == policy_state_size(step),
                    "[policy_step_] state: expected float64 of length ", policy_state_size(step), " for ", kind,
                    ", got ", state.scalar_type(), " of length ", state.numel());
  const at::Tensor result = at::empty({policy_result_size(step)}, state.options());
  step.state = state.mutable_data_ptr<double>();
  step.result = result.mutable_data_ptr<double>();
  if (state.is_cuda()) {
    cuda_backend::policy_step(step, state.device());
  } else {
    TORCH_CHECK_VALUE(state.is_cpu(), "[policy_step_] state: expected it on a CPU or a GPU, got ", state.device());
    const gradkern_policy_step plain = as_plain(step);
    check_library(gradkern_cpu_policy_step(&plain));
  }
  state.unsafeGetTensorImpl()->bump_version();
  return result;
}

}  // namespace gradkern
