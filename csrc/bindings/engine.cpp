#include "bindings/engine.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <sstream>

#include "bindings/cuda_backend.h"
#include "bindings/library.h"
#include "bindings/thread_pool.h"

namespace gradkern {
namespace {

at::Tensor scalar(double value, bool as_double) {
  if (as_double) return at::scalar_tensor(value, at::kDouble);
  return at::scalar_tensor(double(float(value)), at::kFloat);  // torch raises for a double that rounds to inf
}

at::Tensor row(size_t count, at::ScalarType type) {
  return at::empty({int64_t(count)}, at::TensorOptions().dtype(type));
}

/// Allocates the rows of a request.
void allocate_rows(size_t count, const MeasureRequest& request, Measurement& m) {
  const at::ScalarType real = m.any_double ? at::kDouble : at::kFloat;
  m.norm = row(count, real);
  m.l2_norm = norm_order(request.norm_type).kind == NormKind::kTwo ? m.norm : row(count, real);
  m.max_abs = row(count, real);
  m.nonfinite = row(count, at::kLong);
  if (request.count_zeros) m.zeros = row(count, at::kLong);
  if (request.wide_norm) m.wide_norm = row(count, at::kDouble);
}

void call_measure(const Prepared& prepared, const MeasureRequest& request, const gradkern_results& results) {
  const gradkern_list list = as_list(prepared.refs, prepared.any_duplicate ? &prepared.first : nullptr);
  gradkern_measure measure{};
  measure.norm_type = request.norm_type;
  measure.inv_scale = request.inv_scale;
  measure.max_norm = infinity();
  measure.count_zeros = request.count_zeros;
  measure.results = results;
  const gradkern_pool pool = intraop_pool();
  UnitReads* const u = request.units;
  check_library(u ? gradkern_cpu_measure_units(&list, &measure, as_plain(u->units.data()), u->limits.data(), &pool,
                                               u->factors.data(), u->norms.data(), u->changed.data())
                  : gradkern_cpu_measure(&list, &measure, &pool));
}

Measurement measure_prepared(const Prepared& prepared, const MeasureRequest& request) {
  Measurement m;
  m.any_double = prepared.any_double;
  if (request.per_tensor) allocate_rows(prepared.refs.size(), request, m);
  gradkern_results results{};
  results.is_double = m.any_double;
  results.norm = pointer<void>(m.norm);
  results.l2 = m.l2_norm.is_same(m.norm) ? nullptr : pointer<void>(m.l2_norm);
  results.max_abs = pointer<void>(m.max_abs);
  results.nonfinite = pointer<int64_t>(m.nonfinite);
  results.zeros = pointer<int64_t>(m.zeros);
  results.wide_norm = pointer<double>(m.wide_norm);
  results.decision_norm = &m.total;
  results.total_nonfinite = &m.total_nonfinite;
  call_measure(prepared, request, results);
  m.total_norm = scalar(m.total, m.any_double);
  if (request.decision_norm) m.decision_norm = scalar(m.total, true);
  return m;
}

/// The number of non-finite elements of each position.
at::Tensor count_nonfinite(const Prepared& prepared) {
  const at::Tensor counts = row(prepared.refs.size(), at::kLong);
  gradkern_results results{};
  results.nonfinite = pointer<int64_t>(counts);
  call_measure(prepared, {}, results);
  return counts;
}

/// "parameters[3] (2 of 100 elements), …": the positions with non-finite elements.
std::string offenders(const CallSite& site, const Prepared& prepared, const int64_t* counts) {
  constexpr int kListed = 8;
  std::ostringstream text;
  int found = 0;
  for (size_t i = 0; i < prepared.refs.size(); ++i) {
    if (!counts[i] || prepared.first[i] != int64_t(i)) continue;  // a repeated gradient is named once
    if (++found > kListed) continue;
    text << (found > 1 ? ", " : "") << position(site, int64_t(i)) << " (" << counts[i] << " of "
         << prepared.refs[i].numel << " elements)";
  }
  if (found > kListed) text << " and " << found - kListed << " more";
  return text.str();
}

void call_scale(const Prepared& target, const gradkern_scale& scale) {
  const gradkern_list list = as_list(target.refs);
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_scale(&list, &scale, &pool));
}

void apply(const CallSite& site, const GradList& grads, const Prepared& prepared,
           const ClipDecision& decision) {
  if (decision.action == ClipAction::kNone) return;
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  const Prepared& target = in_place ? prepared : writable;
  const uint8_t zero = decision.action == ClipAction::kZero;
  gradkern_scale scale{};
  scale.factor = &decision.coef;
  scale.zero = &zero;
  call_scale(target, scale);
  write_back(target);
  grads.bump_versions();
}

/// Multiplies gradient i by factors[i].
void scale_each(const CallSite& site, const GradList& grads, const double* factors) {
  const Prepared& prepared = prepare(site, grads);
  Prepared target = writable_in_place(prepared) ? prepared : prepare_for_write(site, grads, prepared);
  std::erase_if(target.staged, [&](const Staged& s) { return factors[s.position] == 1.0; });
  gradkern_scale scale{};
  scale.factor = factors;
  scale.factor_per_tensor = true;
  call_scale(target, scale);
  write_back(target);
  const bool any_shared = std::any_of(target.staged.begin(), target.staged.end(),
                                      [](const Staged& s) { return s.offsets.defined(); });
  for (size_t i = 0; i < grads.size(); ++i)
    if (any_shared || factors[prepared.first[i]] != 1.0) bump_version(grads[i]);
}

void check_factor(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero) {
  const auto beside = [&](const at::Tensor& t) {
    return std::none_of(grads.begin(), grads.end(),
                        [&](const at::Tensor& g) { return g.defined() && g.device().type() != t.device().type(); });
  };
  const bool shaped = factor.dim() == 0 || (factor.dim() == 1 && factor.size(0) == int64_t(grads.size()));
  TORCH_CHECK_VALUE(factor.scalar_type() == at::kDouble && shaped && beside(factor), "[", site.operation,
                    "] factor: expected float64 of shape [] or [", grads.size(), "] on the gradients' device, got ",
                    factor.scalar_type(), " of shape ", factor.sizes(), " on ", factor.device());
  if (!zero.defined()) return;
  TORCH_CHECK_VALUE(zero.scalar_type() == at::kBool && zero.numel() == 1 && beside(zero), "[", site.operation,
                    "] zero: expected one bool on the gradients' device, got ", zero.scalar_type(), " of shape ",
                    zero.sizes(), " on ", zero.device());
}

/// For a limit, or a norm that is known to the host. A negative one would reverse gradients.
void check_not_negative(const CallSite& site, const char* argument, double value) {
  TORCH_CHECK_VALUE(!(value < 0), "[", site.operation, "] ", argument, ": expected a number that is not ",
                    "negative, got ", value);
}

/// Raises before anything is written, on every device.
void check_clampable(const CallSite& site, const GradList& grads) {
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) continue;
    GRADKERN_CHECK_TYPE(!grads[i].is_complex(), site, int64_t(i),
                        "expected a real gradient (complex numbers have no order), got ",
                        grads[i].scalar_type());
    GRADKERN_CHECK_TYPE(!grads[i].is_sparse() || grads[i].is_coalesced(), site, int64_t(i),
                        "expected a dense or a coalesced sparse gradient, got an uncoalesced one ",
                        "(its duplicate indices add up after clamping); call .coalesce() on it");
  }
}

void keep_one_if_equal(std::vector<double>& factors) {
  const bool equal = std::all_of(factors.begin(), factors.end(), [&](double f) { return f == factors[0]; });
  if (equal) factors.resize(1, 1.0);
}

/// The smallest factor, NaN if one is NaN, 1 if there are none.
double smallest(const std::vector<double>& factors) {
  double least = factors.empty() ? 1.0 : factors[0];
  for (double factor : factors)
    if (!(factor >= least) && least == least) least = factor;
  return least;
}

}  // namespace

bool must_raise(const ClipRequest& request, const Measurement& m) {
  return (request.raise_if_nonfinite_norm && !m.returns_finite_total()) ||
         (request.raise_if_nonfinite_elements && m.total_nonfinite);
}

void raise_nonfinite(const CallSite& site, const ClipRequest& request, const Prepared& prepared,
                     const at::Tensor& counts) {
  std::string where = offenders(site, prepared, counts.const_data_ptr<int64_t>());
  if (where.empty()) where = "no element: the finite gradients' norm is beyond the largest float32";
  std::ostringstream order;
  order << request.measure.norm_type;
  // "order 2.0", as in torch's message, for code that matches it.
  if (order.str().find_first_not_of("-0123456789") == std::string::npos) order << ".0";
  TORCH_CHECK(false, "[", site.operation, "] The total norm of order ", order.str(),
              " for gradients from `parameters` is non-finite, so it cannot be clipped. Non-finite: ",
              where, ". Gradients are unchanged; to scale them by the non-finite norm anyway, set ",
              request.raise_if_nonfinite_elements ? "on_nonfinite='propagate'." : "`error_if_nonfinite=False`.");
}

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request) {
  if (cuda_backend::handles(grads)) return cuda_backend::measure(site, grads, request);
  at::NoGradGuard no_grad;
  return measure_prepared(prepare(site, grads), request);
}

ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request) {
  check_not_negative(site, "max_norm", request.max_norm);
  if (cuda_backend::handles(grads)) return cuda_backend::clip(site, grads, request);
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  ClipResult result;
  result.measured = measure_prepared(prepared, request.measure);
  const Measurement& m = result.measured;
  if (must_raise(request, m))
    raise_nonfinite(site, request, prepared, m.nonfinite.defined() ? m.nonfinite : count_nonfinite(prepared));
  const ClipDecision decision =
      decide_clip(request.max_norm, m.total, m.total_nonfinite, request.on_nonfinite);
  apply(site, grads, prepared, decision);
  if (request.measure.per_tensor) result.clip_coef = scalar(decision.coef, m.any_double);
  if (request.on_nonfinite == OnNonfinite::kSkip)
    result.skip_step = at::scalar_tensor(m.total_nonfinite > 0, at::TensorOptions().dtype(at::kBool));
  return result;
}

ClipResult clip_by(const CallSite& site, const GradList& grads, const ClipRequest& request, const DecideRows& decide,
                   const ChangeRows& change, std::vector<double>& factors) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  ClipResult result;
  result.measured = measure_prepared(prepared, request.measure);
  const Measurement& m = result.measured;
  if (must_raise(request, m)) raise_nonfinite(site, request, prepared, m.nonfinite);
  RowDecision decision = decide(prepared, m);
  const bool bad = m.total_nonfinite > 0;
  const bool skips_bad = request.on_nonfinite == OnNonfinite::kSkip;
  const bool skip = decision.skip.value_or(false) || (bad && skips_bad);
  const bool zero = bad && request.on_nonfinite == OnNonfinite::kZero;
  factors = std::move(decision.factors);
  if (zero || skip) factors.assign(1, zero ? 0.0 : 1.0);
  keep_one_if_equal(factors);
  if (zero) apply(site, grads, prepared, {ClipAction::kZero, 0.0});
  else if (factors.size() == 1) apply(site, grads, prepared, decide_factor(factors[0]));
  else scale_each(site, grads, factors.data());
  if (change && !zero && !skip) {
    factors.resize(grads.size(), factors[0]);
    change(m, factors);
    keep_one_if_equal(factors);
  }
  result.clip_coef = scalar(smallest(factors), m.any_double);
  if (skips_bad || decision.skip)
    result.skip_step = at::scalar_tensor(skip, at::TensorOptions().dtype(at::kBool));
  return result;
}

void clip_with_norm(const CallSite& site, const GradList& grads, double max_norm,
                    const at::Tensor& total_norm) {
  TORCH_CHECK_VALUE(total_norm.numel() == 1, "[", site.operation, "] total_norm: expected one number, ",
                    "got a tensor of shape ", total_norm.sizes());
  check_not_negative(site, "max_norm", max_norm);
  if (total_norm.is_cpu()) check_not_negative(site, "total_norm", total_norm.item().toDouble());
  if (cuda_backend::handles(grads))
    return cuda_backend::clip_with_norm(site, grads, max_norm, total_norm);
  at::NoGradGuard no_grad;
  const ClipDecision decision = decide_clip(max_norm, total_norm.item().toDouble(), 0, OnNonfinite::kPropagate);
  apply(site, grads, prepare(site, grads), decision);
}

void scale(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero) {
  check_factor(site, grads, factor, zero);
  if (cuda_backend::handles(grads)) return cuda_backend::scale(site, grads, factor, zero);
  at::NoGradGuard no_grad;
  if (zero.defined() && *zero.const_data_ptr<bool>())
    return apply(site, grads, prepare(site, grads), {ClipAction::kZero, 0.0});
  const at::Tensor row = factor.contiguous();
  if (factor.dim()) return scale_each(site, grads, row.const_data_ptr<double>());
  const ClipDecision decision = decide_factor(*row.const_data_ptr<double>());
  if (decision.action != ClipAction::kNone) apply(site, grads, prepare(site, grads), decision);
}

void clip_value(const CallSite& site, const GradList& grads, double limit) {
  check_not_negative(site, "clip_value", limit);
  at::NoGradGuard no_grad;
  check_clampable(site, grads);
  if (cuda_backend::handles(grads)) return cuda_backend::clip_value(site, grads, limit);
  const Prepared& prepared = prepare(site, grads);
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  const Prepared& target = in_place ? prepared : writable;
  const gradkern_list list = as_list(target.refs);
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_clamp(&list, limit, &pool));
  write_back(target);
  grads.bump_versions();
}

}  // namespace gradkern
