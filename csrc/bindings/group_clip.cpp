// clip_by_groups: every group's policy decides on the host, between measuring and scaling.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>

#include "bindings/library.h"
#include "bindings/policies.h"

namespace gradkern {
namespace {

/// What a call has decided so far, by position and by group.
struct Decisions {
  std::vector<double> factors, thresholds;
  double *norm, *factor, *threshold;  ///< [G]
  bool skip = false, any_threshold = false;
};

/// The read of the list, as policies look at it.
class Norms {
 public:
  Norms(const Prepared& prepared, const Measurement& m, double norm_type)
      : prepared_(prepared), norms_(m.wide_norm.const_data_ptr<double>()), order_(norm_order(norm_type)) {}

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

/// The positions of a group.
class Rows {
 public:
  Rows(const GroupPolicy& group, int64_t all)
      : rows_(group.rows.defined() ? group.rows.const_data_ptr<int64_t>() : nullptr),
        size_(rows_ ? group.rows.numel() : all) {}
  int64_t size() const { return size_; }
  int64_t operator[](int64_t i) const { return rows_ ? rows_[i] : i; }

 private:
  const int64_t* rows_;
  int64_t size_;
};

void decide_by_layer(const GroupPolicy& group, const Rows& rows, const Norms& norms, Decisions& out) {
  const int64_t* const layer = group.layers.const_data_ptr<int64_t>();
  const int64_t layers = rows.size() ? *std::max_element(layer, layer + rows.size()) + 1 : 0;
  std::vector<Partial> sums(size_t(layers), norms.nothing());
  for (int64_t i = 0; i < rows.size(); ++i) norms.add(sums[size_t(layer[i])], rows[i]);
  const auto factor = [&](const Partial& sum) {
    return decide_clip(group.constants[0], norms.of(sum), 0, OnNonfinite::kPropagate).coef;
  };
  std::vector<double> factors(static_cast<size_t>(layers));
  std::transform(sums.begin(), sums.end(), factors.begin(), factor);
  for (int64_t i = 0; i < rows.size(); ++i) out.factors[size_t(rows[i])] = factors[size_t(layer[i])];
}

/// Takes the step of a policy; its result's numbers go to the group's positions.
void decide_by_step(PolicyStep step, const Rows& rows, const Norms& norms, size_t g, Decisions& out) {
  std::vector<double> of_row;
  if (step.kind == PolicyKind::kAdaGC) {
    of_row.resize(size_t(rows.size()));
    for (int64_t i = 0; i < rows.size(); ++i) of_row[size_t(i)] = norms.of(rows[i]);
    step.norms = of_row.data();
    step.norms_are_double = true;
    step.rows = rows.size();
  }
  std::vector<double> result(size_t(policy_result_size(step)));
  step.result = result.data();
  step.total = &out.norm[g];
  step.total_is_double = true;
  const gradkern_policy_step plain = as_plain(step);
  check_library(gradkern_cpu_policy_step(&plain));
  if (step.kind != PolicyKind::kAdaGC) {
    out.skip |= result[1] != 0;
    out.threshold[g] = result[2];
    for (int64_t i = 0; i < rows.size(); ++i) out.factors[size_t(rows[i])] = result[0];
    return;
  }
  out.any_threshold = true;
  for (int64_t i = 0; i < rows.size(); ++i) {
    out.factors[size_t(rows[i])] = result[size_t(i)];
    out.thresholds[size_t(rows[i])] = result[size_t(rows.size() + i)];
  }
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
  const Rows rows(group, positions);
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
  at::Tensor row = at::empty({int64_t(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), row.mutable_data_ptr<double>());
  return row;
}

/// The smallest factor of each group, NaN if there is one.
void fill_group_factors(const std::vector<GroupPolicy>& groups, const std::vector<double>& factors, int64_t count,
                        double* out) {
  for (size_t g = 0; g < groups.size(); ++g) {
    const Rows rows(groups[g], count);
    double least = factors.size() == 1 ? factors[0] : 1.0;
    for (int64_t i = 0; factors.size() != 1 && i < rows.size(); ++i) {
      const double factor = factors[size_t(rows[i])];
      if (least == least && !(factor >= least)) least = factor;
    }
    out[g] = least;
  }
}

}  // namespace

GroupedClip clip_by_groups(const CallSite& site, const GradList& grads, const ClipRequest& request,
                           const std::vector<GroupPolicy>& groups) {
  const int64_t count = int64_t(grads.size());
  std::vector<PolicyStep> steps;
  for (const GroupPolicy& group : groups) {
    check_rows(site, group, count);
    steps.push_back(checked_step(site, group, Rows(group, count).size()));
  }
  GroupedClip out;
  out.groups = at::full({3, int64_t(groups.size())}, infinity(), at::kDouble);
  Decisions decisions;
  decisions.norm = out.groups.mutable_data_ptr<double>();
  decisions.factor = decisions.norm + groups.size();
  decisions.threshold = decisions.factor + groups.size();
  const DecideRows decide = [&](const Prepared& prepared, const Measurement& m) {
    const Norms norms(prepared, m, request.measure.norm_type);
    decisions.factors.assign(size_t(count), 1.0);
    decisions.thresholds.assign(size_t(count), infinity());
    for (size_t g = 0; g < groups.size(); ++g) {
      const Rows rows(groups[g], count);
      Partial sum = norms.nothing();
      for (int64_t i = 0; groups[g].rows.defined() && i < rows.size(); ++i) norms.add(sum, rows[i]);
      decisions.norm[g] = groups[g].rows.defined() ? norms.of(sum) : m.total;
      if (groups[g].layers.defined()) decide_by_layer(groups[g], rows, norms, decisions);
      else decide_by_step(steps[g], rows, norms, g, decisions);
      if (groups[g].layers.defined()) decisions.threshold[g] = groups[g].constants[0];
      if (steps[g].state) groups[g].state.unsafeGetTensorImpl()->bump_version();
    }
    return RowDecision{std::move(decisions.factors), decisions.skip};
  };
  std::vector<double> factors;
  out.clip = clip_by(site, grads, request, decide, factors);
  fill_group_factors(groups, factors, count, decisions.factor);
  if (factors.size() != 1) out.factor = row_of(factors);
  if (decisions.any_threshold) out.thresholds = row_of(decisions.thresholds);
  return out;
}

}  // namespace gradkern
