// clip_by_groups: measures, lets the policy of every group decide on the host, and scales.
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "bindings/element_policies.h"
#include "bindings/group_rows.h"
#include "bindings/library.h"
#include "bindings/policies.h"

namespace gradkern {
namespace {

/// The decisions of a call so far, by position and by group.
struct Decisions {
  std::vector<double> factors, row_thresholds;  ///< of positions; empty while all are the same
  std::vector<double> norms, thresholds;        ///< of groups
  std::optional<bool> skip;                     ///< if a policy can skip

  /// The factors of positions, 1 for those without a decision.
  std::vector<double>& factors_of(int64_t count) {
    if (factors.empty()) factors.assign(size_t(count), 1.0);
    return factors;
  }
};

/// The norms that policies use. Norms of positions are available only if they were kept.
class Norms {
 public:
  Norms(const Prepared& prepared, const Measurement& m, double norm_type)
      : prepared_(prepared), norms_(pointer<double>(m.wide_norm)), order_(norm_order(norm_type)) {}

  /// A position's norm, before rounding.
  double of(int64_t row) const { return norms_[row]; }
  /// The norm of the positions that were added.
  double of(const Partial& sum) const { return finish(order_, sum); }
  Partial nothing() const { return empty_partial(order_); }
  /// Adds a position, unless it is empty or repeats an earlier one.
  void add(Partial& sum, int64_t row) const {
    const size_t i = size_t(row);
    if (prepared_.refs[i].numel) sum = combine(order_, sum, partial_of_norm(order_, norms_[i]));
  }

 private:
  const Prepared& prepared_;
  const double* norms_;
  NormOrder order_;
};

void decide_by_layer(const GroupPolicy& group, const GroupRows& rows, const Norms& norms,
                     std::vector<double>& out) {
  const int64_t* const layer = group.layers.const_data_ptr<int64_t>();
  const int64_t layers = rows.size() ? *std::max_element(layer, layer + rows.size()) + 1 : 0;
  std::vector<Partial> sums(size_t(layers), norms.nothing());
  for (int64_t i = 0; i < rows.size(); ++i) norms.add(sums[size_t(layer[i])], rows[i]);
  const auto factor = [&](const Partial& sum) {
    return decide_clip(group.constants[0], norms.of(sum), 0, OnNonfinite::kPropagate).coef;
  };
  std::vector<double> factors(static_cast<size_t>(layers));
  std::transform(sums.begin(), sums.end(), factors.begin(), factor);
  for (int64_t i = 0; i < rows.size(); ++i) out[size_t(rows[i])] = factors[size_t(layer[i])];
}

std::vector<double> result_of(PolicyStep step, const double& total) {
  std::vector<double> result(size_t(policy_result_size(step)));
  step.result = result.data();
  step.total = &total;
  step.total_is_double = true;
  const gradkern_policy_step plain = as_plain(step);
  check_library(gradkern_cpu_policy_step(&plain));
  return result;
}

void decide_by_row(PolicyStep step, const GroupRows& rows, const Norms& norms, double total, int64_t count,
                   Decisions& out) {
  std::vector<double> of_row(size_t(rows.size()));
  for (int64_t i = 0; i < rows.size(); ++i) of_row[size_t(i)] = norms.of(rows[i]);
  step.norms = of_row.data();
  step.norms_are_double = true;
  const std::vector<double> result = result_of(step, total);
  if (out.row_thresholds.empty()) out.row_thresholds.assign(size_t(count), infinity());
  std::vector<double>& factors = out.factors_of(count);
  for (int64_t i = 0; i < rows.size(); ++i) {
    factors[size_t(rows[i])] = result[size_t(i)];
    out.row_thresholds[size_t(rows[i])] = result[size_t(rows.size() + i)];
  }
}

/// Takes the step of a policy with one factor for its group. If there is one group, the factor stays one number.
void decide_by_norm(const PolicyStep& step, const GroupPolicy& group, const GroupRows& rows, double total,
                    int64_t count, Decisions& out) {
  const std::vector<double> result = result_of(step, total);
  if (step.kind == PolicyKind::kSkipOutliers) out.skip = out.skip.value_or(false) || result[1] != 0;
  out.thresholds.back() = result[2];
  if (!group.rows.defined()) return out.factors.assign(1, result[0]);
  if (result[0] == 1.0) return;
  std::vector<double>& factors = out.factors_of(count);
  for (int64_t i = 0; i < rows.size(); ++i) factors[size_t(rows[i])] = result[0];
}

PolicyStep checked_step(const CallSite& site, const GroupPolicy& group, int64_t rows) {
  PolicyStep step = policy_step_of(site, group.kind, group.constants);
  step.rows = rows;
  const int64_t size = policy_state_size(step);
  const at::Tensor& state = group.state;
  TORCH_CHECK_VALUE(size == 0 || (state.defined() && state.is_cpu() && state.scalar_type() == at::kDouble &&
                                  state.is_contiguous() && state.numel() == size),
                    "[", site.operation, "] state: expected float64 of length ", size, " on the CPU for ", group.kind);
  if (size) step.state = state.mutable_data_ptr<double>();
  return step;
}

void check_rows(const CallSite& site, const GroupPolicy& group, int64_t positions) {
  for (const at::Tensor* t : {&group.rows, &group.layers})
    TORCH_CHECK_VALUE(!t->defined() || (t->is_cpu() && t->scalar_type() == at::kLong && t->is_contiguous()), "[",
                      site.operation, "] rows: expected int64 on the CPU");
  const GroupRows rows(group, positions);
  for (int64_t i = 0; i < rows.size(); ++i)
    TORCH_CHECK_VALUE(rows[i] >= 0 && rows[i] < positions, "[", site.operation, "] rows: expected positions up to ",
                      positions, ", got ", rows[i]);
  if (!group.layers.defined()) return;
  TORCH_CHECK_VALUE(group.layers.numel() == rows.size(), "[", site.operation, "] layers: expected one a row");
  const int64_t* const layer = group.layers.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(std::all_of(layer, layer + rows.size(), [&](int64_t l) { return l >= 0 && l < positions; }), "[",
                    site.operation, "] layers: expected numbers up to ", positions);
}

at::Tensor row_of(const std::vector<double>& values) {
  if (values.empty()) return {};
  at::Tensor row = at::empty({int64_t(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), row.mutable_data_ptr<double>());
  return row;
}

/// Positions in different groups whose gradients share memory.
std::optional<std::pair<int64_t, int64_t>> shared(const CallSite& site, const GradList& grads,
                                                  const std::vector<GroupPolicy>& groups) {
  const Prepared& prepared = prepare(site, grads);
  if (groups.size() == 1 || !(prepared.maybe_overlapping || prepared.any_duplicate)) return std::nullopt;
  std::vector<int64_t> group_of(grads.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    const GroupRows rows(groups[g], int64_t(grads.size()));
    for (int64_t i = 0; i < rows.size(); ++i) group_of[size_t(rows[i])] = int64_t(g);
  }
  return shared_by_groups(grads, group_of);
}

bool needs_rows(const GroupPolicy& group) {
  return group.rows.defined() || group.layers.defined() || group.kind == "adagc";
}

/// The decisions of all groups after one read.
class Deciding {
 public:
  Deciding(const GroupPlan& plan, double norm_type)
      : groups_(plan.groups), steps_(plan.steps), count_(plan.positions), norm_type_(norm_type) {}

  RowDecision operator()(const Prepared& prepared, const Measurement& m, Decisions& out) const {
    const Norms norms(prepared, m, norm_type_);
    for (size_t g = 0; g < groups_.size(); ++g) decide(g, m, norms, out);
    if (out.factors.empty()) out.factors.assign(1, 1.0);
    return {std::move(out.factors), out.skip};
  }

 private:
  void decide(size_t g, const Measurement& m, const Norms& norms, Decisions& out) const {
    const GroupPolicy& group = groups_[g];
    const GroupRows rows(group, count_);
    double total = m.total;
    if (group.rows.defined()) {
      Partial sum = norms.nothing();
      for (int64_t i = 0; i < rows.size(); ++i) norms.add(sum, rows[i]);
      total = norms.of(sum);
    }
    out.norms.push_back(total);
    out.thresholds.push_back(group.layers.defined() ? group.constants[0] : infinity());
    if (group.layers.defined()) decide_by_layer(group, rows, norms, out.factors_of(count_));
    else if (steps_[g].kind == PolicyKind::kAdaGC) decide_by_row(steps_[g], rows, norms, total, count_, out);
    else decide_by_norm(steps_[g], group, rows, total, count_, out);
    if (steps_[g].state) group.state.unsafeGetTensorImpl()->bump_version();
  }

  const std::vector<GroupPolicy>& groups_;
  const std::vector<PolicyStep>& steps_;
  int64_t count_;
  double norm_type_;
};

}  // namespace

GroupPlan::GroupPlan(std::vector<GroupPolicy> given) : groups(std::move(given)) {
  const auto any = [&](auto test) { return std::any_of(groups.begin(), groups.end(), test); };
  by_weights = any([](const GroupPolicy& group) { return group.kind == "agc"; });
  elementwise = any(is_elementwise);
  by_rows = any(needs_rows);
}

void GroupPlan::check(const CallSite& site, int64_t count) {
  if (positions == count) return;
  positions = -1;
  steps.clear();
  for (const GroupPolicy& group : groups) {
    check_rows(site, group, count);
    steps.push_back(checked_step(site, group, GroupRows(group, count).size()));
  }
  positions = count;
}

GroupedClip clip_by_groups(const CallSite& site, const GradList& grads, const GradList& weights,
                           const ClipRequest& request, GroupPlan& plan) {
  at::NoGradGuard no_grad;
  GroupedClip out;
  plan.check(site, int64_t(grads.size()));
  const Deciding deciding(plan, request.measure.norm_type);
  ElementPolicies elements(site, grads, weights, plan.groups);
  out.supported = elements.supported();
  out.shared = shared(site, grads, plan.groups);
  if (!out.supported || out.shared) return out;
  Decisions decisions;
  const DecideRows decide = [&](const Prepared& prepared, const Measurement& m) {
    return deciding(prepared, m, decisions);
  };
  ChangeRows change;
  if (plan.elementwise)
    change = [&](const Measurement& m, std::vector<double>& factors) { elements.apply(m, factors); };
  ClipRequest asked = request;
  asked.measure.units = elements.reads();
  asked.measure.wide_norm = plan.by_rows;
  std::vector<double> factors;
  out.clip = clip_by(site, grads, asked, decide, change, factors);
  if (factors.size() != 1) out.factor = row_of(factors);
  if (plan.named()) out.norms = row_of(decisions.norms);
  out.thresholds = std::move(decisions.thresholds);
  out.row_thresholds = row_of(decisions.row_thresholds);
  return out;
}

}  // namespace gradkern
