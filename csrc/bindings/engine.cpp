#include "bindings/engine.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "bindings/cuda_backend.h"
#include "bindings/thread_pool.h"
#include "cpu/floating_point_mode.h"

namespace gradkern {
namespace {

at::Tensor scalar(double value, bool as_double) {
  if (as_double) return at::scalar_tensor(value, at::kDouble);
  return at::scalar_tensor(double(float(value)), at::kFloat);  // torch refuses what rounds to inf
}

/// A row of results being filled: float32 or float64.
class RealRow {
 public:
  RealRow(size_t count, bool as_double)
      : tensor_(at::empty({int64_t(count)}, at::TensorOptions().dtype(as_double ? at::kDouble : at::kFloat))),
        doubles_(as_double ? tensor_.mutable_data_ptr<double>() : nullptr),
        floats_(as_double ? nullptr : tensor_.mutable_data_ptr<float>()) {}

  void set(size_t i, double value) {
    if (doubles_) doubles_[i] = value;
    else floats_[i] = float(value);
  }
  const at::Tensor& tensor() const { return tensor_; }

 private:
  at::Tensor tensor_;
  double* doubles_;
  float* floats_;
};

/// What a factor on every element does to their norm: nothing to a count of non-zeros.
double norm_scale(const NormOrder& order, const MeasureRequest& request) {
  return order.kind == NormKind::kZero ? 1.0 : std::fabs(request.inv_scale);
}

void fill_reals(const Prepared& prepared, const std::vector<Partial>& partials,
                const MeasureRequest& request, Measurement& out) {
  const NormOrder order = norm_order(request.norm_type);
  const bool is_l2 = order.kind == NormKind::kTwo;
  RealRow norm(partials.size(), out.any_double), max(partials.size(), out.any_double);
  RealRow l2 = is_l2 ? norm : RealRow(partials.size(), out.any_double);
  for (size_t i = 0; i < partials.size(); ++i) {
    const Partial& p = partials[size_t(prepared.first[i])];
    norm.set(i, finish(order, p) * norm_scale(order, request));
    if (!is_l2) l2.set(i, finish(p.sq) * std::fabs(request.inv_scale));
    max.set(i, max_abs(p) * std::fabs(request.inv_scale));
  }
  out.norm = norm.tensor();
  out.l2_norm = l2.tensor();
  out.max_abs = max.tensor();
}

at::Tensor counts(const Prepared& prepared, const std::vector<Partial>& partials,
                  int64_t Partial::*member) {
  at::Tensor row = at::empty({int64_t(partials.size())}, at::TensorOptions().dtype(at::kLong));
  int64_t* values = row.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < partials.size(); ++i) values[i] = partials[size_t(prepared.first[i])].*member;
  return row;
}

void fill_rows(const Prepared& prepared, const std::vector<Partial>& partials,
               const MeasureRequest& request, Measurement& out) {
  fill_reals(prepared, partials, request, out);
  out.nonfinite = counts(prepared, partials, &Partial::nonfinite);
  if (request.count_zeros) out.zeros = counts(prepared, partials, &Partial::zeros);
}

at::Tensor wide_norms(const Prepared& prepared, const std::vector<Partial>& partials, const MeasureRequest& request) {
  const NormOrder order = norm_order(request.norm_type);
  RealRow norm(partials.size(), true);
  for (size_t i = 0; i < partials.size(); ++i)
    norm.set(i, finish(order, partials[size_t(prepared.first[i])]) * norm_scale(order, request));
  return norm.tensor();
}

Measurement measure_prepared(const Prepared& prepared, const MeasureRequest& request,
                             std::vector<Partial>& partials) {
  const cpu::MeasureOptions options{norm_order(request.norm_type), request.count_zeros};
  const ChunkPlan plan(prepared.refs.data(), int64_t(prepared.refs.size()));
  partials.resize(prepared.refs.size());
  const Partial total = cpu::measure(plan, options, intraop_pool(), partials.data());
  cpu::ScopedFloatingPointMode exact(cpu::FloatingPointMode::exact());
  Measurement out;
  out.any_double = prepared.any_double;
  out.total = decision_norm(finish(options.order, total) * norm_scale(options.order, request), out.any_double);
  out.total_nonfinite = total.nonfinite;
  out.total_norm = scalar(out.total, out.any_double);
  if (request.decision_norm) out.decision_norm = scalar(out.total, true);
  if (request.per_tensor) fill_rows(prepared, partials, request, out);
  if (request.wide_norm) out.wide_norm = wide_norms(prepared, partials, request);
  return out;
}

/// "parameters[3] (2 of 100 elements), …": where the non-finite elements are.
std::string offenders(const CallSite& site, const std::vector<Partial>& partials) {
  constexpr int kListed = 8;
  std::ostringstream text;
  int found = 0;
  for (size_t i = 0; i < partials.size(); ++i) {
    if (!partials[i].nonfinite) continue;
    if (++found > kListed) continue;
    text << (found > 1 ? ", " : "") << position(site, int64_t(i)) << " (" << partials[i].nonfinite
         << " of " << partials[i].numel << " elements)";
  }
  if (found > kListed) text << " and " << found - kListed << " more";
  return text.str();
}

void apply(const CallSite& site, const GradList& grads, const Prepared& prepared,
           const ClipDecision& decision) {
  if (decision.action == ClipAction::kNone) return;
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  const Prepared& target = in_place ? prepared : writable;
  cpu::apply(ChunkPlan(target.refs.data(), int64_t(target.refs.size())), decision, intraop_pool());
  write_back(target);
  bump_versions(grads);
}

/// Gradient i by factors[i].
void scale_each(const CallSite& site, const GradList& grads, const double* factors) {
  const Prepared& prepared = prepare(site, grads);
  Prepared target = writable_in_place(prepared) ? prepared : prepare_for_write(site, grads, prepared);
  std::erase_if(target.staged, [&](const Staged& s) { return factors[s.position] == 1.0; });
  cpu::apply(ChunkPlan(target.refs.data(), int64_t(target.refs.size())), factors, intraop_pool());
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

/// A limit, or a norm that the host knows: a negative one would turn gradients round.
void check_not_negative(const CallSite& site, const char* argument, double value) {
  TORCH_CHECK_VALUE(!(value < 0), "[", site.operation, "] ", argument, ": expected a number that is not ",
                    "negative, got ", value);
}

/// Before anything is written, on every device.
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

/// NaN if there is one; 1 of none.
double smallest(const std::vector<double>& factors) {
  double least = factors.empty() ? 1.0 : factors[0];
  for (double factor : factors)
    if (!(factor >= least) && least == least) least = factor;
  return least;
}

}  // namespace

void raise_if_nonfinite(const CallSite& site, const ClipRequest& request, const Measurement& m,
                        const std::vector<Partial>& partials) {
  const bool by_norm = request.raise_if_nonfinite_norm && !m.returns_finite_total();
  if (!by_norm && !(request.raise_if_nonfinite_elements && m.total_nonfinite)) return;
  std::string where = offenders(site, partials);
  if (where.empty()) where = "no element: the finite gradients' norm is beyond the largest float32";
  std::ostringstream order;
  order << request.measure.norm_type;
  // As Python writes a float: code that looks for torch's message finds "order 2.0".
  if (order.str().find_first_not_of("-0123456789") == std::string::npos) order << ".0";
  TORCH_CHECK(false, "[", site.operation, "] The total norm of order ", order.str(),
              " for gradients from `parameters` is non-finite, so it cannot be clipped. Non-finite: ",
              where, ". Gradients are unchanged; to scale them by the non-finite norm anyway, set ",
              "`error_if_nonfinite=False` (or on_nonfinite='propagate').");
}

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request) {
  if (cuda_backend::handles(grads)) return cuda_backend::measure(site, grads, request);
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  std::vector<Partial> partials;
  return measure_prepared(prepared, request, partials);
}

ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request) {
  check_not_negative(site, "max_norm", request.max_norm);
  if (cuda_backend::handles(grads)) return cuda_backend::clip(site, grads, request);
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  std::vector<Partial> partials;
  ClipResult result;
  result.measured = measure_prepared(prepared, request.measure, partials);
  const Measurement& m = result.measured;
  raise_if_nonfinite(site, request, m, partials);
  const ClipDecision decision =
      decide_clip(request.max_norm, m.total, m.total_nonfinite, request.on_nonfinite);
  apply(site, grads, prepared, decision);
  if (request.measure.per_tensor) result.clip_coef = scalar(decision.coef, m.any_double);
  if (request.on_nonfinite == OnNonfinite::kSkip)
    result.skip_step = at::scalar_tensor(m.total_nonfinite > 0, at::TensorOptions().dtype(at::kBool));
  return result;
}

ClipResult clip_by(const CallSite& site, const GradList& grads, const ClipRequest& request,
                   const DecideRows& decide, std::vector<double>& factors) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  std::vector<Partial> partials;
  ClipResult result;
  result.measured = measure_prepared(prepared, request.measure, partials);
  const Measurement& m = result.measured;
  raise_if_nonfinite(site, request, m, partials);
  RowDecision decision = decide(prepared, m);
  const bool bad = m.total_nonfinite > 0;
  const bool skip = decision.skip || (bad && request.on_nonfinite == OnNonfinite::kSkip);
  const bool zero = bad && request.on_nonfinite == OnNonfinite::kZero;
  factors = std::move(decision.factors);
  if (zero || skip) factors.assign(1, zero ? 0.0 : 1.0);
  const bool uniform = std::all_of(factors.begin(), factors.end(), [&](double f) { return f == factors[0]; });
  if (uniform) factors.resize(1, 1.0);
  if (zero) apply(site, grads, prepared, {ClipAction::kZero, 0.0});
  else if (factors.size() == 1) apply(site, grads, prepared, decide_factor(factors[0]));
  else scale_each(site, grads, factors.data());
  result.clip_coef = scalar(smallest(factors), m.any_double);
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
  const size_t count = grads.size();
  const std::unique_ptr<bool[]> changed(new bool[count]());
  cpu::clamp(ChunkPlan(target.refs.data(), int64_t(count)), limit, intraop_pool(), changed.get());
  write_back(target);
  bump_versions(grads);
}

}  // namespace gradkern
