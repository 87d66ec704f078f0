#include "bindings/element_policies.h"

#include <algorithm>

#include "bindings/group_rows.h"
#include "bindings/library.h"
#include "bindings/thread_pool.h"
#include "bindings/units.h"

namespace gradkern {
namespace {

bool is_value(const GroupPolicy& group) { return group.kind == "value"; }

/// The L2 norms of the list, as they are reported.
std::vector<double> l2_norms(const std::vector<TensorRef>& refs, bool as_double) {
  std::vector<double> doubles(refs.size());
  std::vector<float> floats(as_double ? 0 : refs.size());
  gradkern_measure measure{};
  measure.norm_type = 2.0;
  measure.inv_scale = 1.0;
  measure.max_norm = infinity();
  measure.results.is_double = as_double;
  measure.results.norm = as_double ? static_cast<void*>(doubles.data()) : floats.data();
  const gradkern_list list = as_list(refs);
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_measure(&list, &measure, &pool));
  std::copy(floats.begin(), floats.end(), doubles.begin());
  return doubles;
}

double real_of(const at::Tensor& row, size_t i) {
  return real_at(row.const_data_ptr(), int64_t(i), row.scalar_type() == at::kDouble);
}

void check_real(const CallSite& site, const GradList& grads, const GroupPolicy& group) {
  const GroupRows rows(group, int64_t(grads.size()));
  for (int64_t i = 0; i < rows.size(); ++i) {
    const at::Tensor& grad = grads[size_t(rows[i])];
    GRADKERN_CHECK_TYPE(!grad.defined() || !grad.is_complex(), site, rows[i],
                        "expected a real gradient for the policy Value (complex numbers have no order), got ",
                        grad.scalar_type());
  }
}

}  // namespace

bool is_elementwise(const GroupPolicy& group) { return is_value(group) || group.kind == "agc"; }

ElementPolicies::ElementPolicies(const CallSite& site, const GradList& grads, const GradList& weights,
                                 const std::vector<GroupPolicy>& groups)
    : grads_(grads), groups_(groups) {
  if (std::none_of(groups.begin(), groups.end(), is_elementwise)) return;
  prepare_target(site);
  for (const GroupPolicy& group : groups) {
    if (is_value(group)) check_real(site, grads, group);
    if (supported_ && group.kind == "agc") enter_group(group, weights);
  }
  int64_t units = 0;
  for (const UnitsRef& own : reads_.units) units += own.rows;
  reads_.factors.resize(size_t(units));
}

void ElementPolicies::enter_group(const GroupPolicy& group, const GradList& weights) {
  const size_t count = grads_.size();
  if (!any_units_) {
    reads_ = {std::vector<UnitsRef>(count), std::vector<gradkern_unit_limits>(count), {}, std::vector<double>(2 * count),
              std::vector<uint8_t>(count)};
    any_units_ = true;
  }
  const GroupRows rows(group, int64_t(count));
  for (int64_t i = 0; i < rows.size() && supported_; ++i) {
    supported_ = enter_units(weights, grads_, target(), size_t(rows[i]), reads_.units);
    reads_.limits[size_t(rows[i])] = {group.constants[0], group.constants[1]};
  }
}

void ElementPolicies::prepare_target(const CallSite& site) {
  prepared_ = &prepare(site, grads_);
  supported_ = prepared_->staged.empty();
  if (!supported_ || writable_in_place(*prepared_)) return;
  writable_ = prepare_for_write(site, grads_, *prepared_);
  supported_ = writable_.staged.empty();
}

void ElementPolicies::apply(const Measurement& before, std::vector<double>& factors) const {
  for (const GroupPolicy& group : groups_)
    if (is_value(group)) limit_values(before, group, factors);
  if (any_units_) limit_units(factors);
}

/// Gradients without an element beyond the limit are not read again.
void ElementPolicies::limit_values(const Measurement& before, const GroupPolicy& group,
                                   std::vector<double>& factors) const {
  const GroupRows rows(group, int64_t(grads_.size()));
  std::vector<TensorRef> refs(grads_.size());
  bool any = false;
  for (int64_t i = 0; i < rows.size(); ++i) {
    const size_t row = size_t(rows[i]);
    if (real_of(before.max_abs, row) <= group.constants[0]) continue;
    refs[row] = target().refs[row];
    any |= refs[row].numel != 0;
  }
  if (!any) return;
  const gradkern_list list = as_list(refs);
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_clamp(&list, group.constants[0], &pool));
  const std::vector<double> after = l2_norms(refs, before.any_double);
  for (int64_t i = 0; i < rows.size(); ++i) {
    const size_t row = size_t(rows[i]), first = size_t(prepared_->first[row]);
    if (refs[first].numel == 0) continue;
    factors[row] = after[first] / real_of(before.l2_norm, row);
    bump_version(grads_[row]);
  }
}

void ElementPolicies::limit_units(std::vector<double>& factors) const {
  const size_t count = grads_.size();
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_scale_units(as_plain(reads_.units.data()), int64_t(count), reads_.factors.data(),
                                         reads_.changed.data(), &pool));
  for (const GroupPolicy& group : groups_) {
    if (group.kind != "agc") continue;
    const GroupRows rows(group, int64_t(count));
    for (int64_t i = 0; i < rows.size(); ++i) {
      const size_t row = size_t(rows[i]), first = size_t(prepared_->first[row]);
      const double norm = reads_.norms[first];
      factors[row] = norm == 0 ? 1.0 : reads_.norms[count + first] / norm;
      if (reads_.changed[first]) bump_version(grads_[row]);
    }
  }
}

}  // namespace gradkern
