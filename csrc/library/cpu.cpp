// The functions gradkern_cpu_*: csrc/cpu behind the C interface.
#include <cmath>
#include <vector>

#include "core/packed.h"
#include "cpu/driver.h"
#include "cpu/floating_point_mode.h"
#include "cpu/units.h"
#include "library/guarded.h"
#include "library/types.h"

namespace gradkern::library {
namespace {

cpu::ThreadPool pool_of(const gradkern_pool* pool) { return {pool->threads, pool->parallel_for}; }

ChunkPlan plan_of(const gradkern_list* list) { return {as_refs(list->tensors), list->count}; }

/// A row of float32 or float64, or no row.
class RealRow {
 public:
  RealRow(void* row, bool is_double)
      : doubles_(is_double ? static_cast<double*>(row) : nullptr),
        floats_(is_double ? nullptr : static_cast<float*>(row)) {}

  void set(int64_t i, double value) const {
    if (doubles_) doubles_[i] = value;
    else if (floats_) floats_[i] = float(value);
  }

 private:
  double* doubles_;
  float* floats_;
};

class Report {
 public:
  Report(const gradkern_measure& measure, const NormOrder& order)
      : results_(measure.results),
        measure_(measure),
        order_(order),
        scale_(std::fabs(measure.inv_scale)),
        norm_scale_(order.kind == NormKind::kZero ? 1.0 : scale_) {}  // a count of elements scales with nothing

  void rows(const gradkern_list& list, const Partial* partials) const {
    const gradkern_results& r = results_;
    const bool any = r.norm || r.wide_norm || r.l2 || r.max_abs || r.nonfinite || r.zeros || (r.packed_sums && r.packed_rows);
    const RealRow norm(r.norm, r.is_double), l2(r.l2, r.is_double), max(r.max_abs, r.is_double);
    for (int64_t i = 0; any && i < list.count; ++i) {
      const Partial& p = partials[size_t(list.first ? list.first[i] : i)];
      const double wide = r.norm || r.wide_norm ? finish(order_, p) * norm_scale_ : 0;
      if (r.norm) norm.set(i, wide);
      if (r.wide_norm) r.wide_norm[i] = wide;
      if (r.l2) l2.set(i, finish(p.sq) * scale_);
      if (r.max_abs) max.set(i, max_abs(p) * scale_);
      if (r.nonfinite) r.nonfinite[i] = p.nonfinite;
      if (r.zeros) r.zeros[i] = p.zeros;
      if (r.packed_rows) pack_row(i, p);
    }
  }

  void totals(const gradkern_list& list, const Partial& total) const {
    const gradkern_results& r = results_;
    const double decision = decision_norm(finish(order_, total) * norm_scale_, r.is_double);
    RealRow(r.total_norm, r.is_double).set(0, decision);
    if (r.decision_norm) *r.decision_norm = decision;
    const OnNonfinite policy = OnNonfinite(measure_.on_nonfinite);
    RealRow(r.clip_coef, r.is_double)
        .set(0, decide_clip(measure_.max_norm, decision, total.nonfinite, policy).coef);
    if (r.total_nonfinite) *r.total_nonfinite = total.nonfinite;
    if (r.skip_step) *r.skip_step = total.nonfinite > 0;
    pack_row(r.packed_rows ? list.count : 0, total);
  }

 private:
  void pack_row(int64_t row, const Partial& p) const {
    if (results_.packed_sums)
      pack(order_, p, results_.packed_sums + row * kPackedSums, results_.packed_keys + row * kPackedKeys);
  }

  const gradkern_results& results_;
  const gradkern_measure& measure_;
  NormOrder order_;
  double scale_, norm_scale_;
};

/// Memory for the rows of a call, which the thread keeps. For thousands of tensors, allocation would cost as much as the
/// rows.
Partial* partials_for(int64_t count) {
  thread_local std::vector<Partial> kept;
  if (kept.size() < size_t(count)) kept.resize(size_t(count));
  return kept.data();
}

void measure(const gradkern_list& list, const gradkern_measure& measure, const cpu::ThreadPool& pool) {
  const cpu::MeasureOptions options{norm_order(measure.norm_type), measure.count_zeros != 0};
  Partial* const partials = partials_for(list.count);
  const Partial total = cpu::measure(plan_of(&list), options, pool, partials);
  cpu::ScopedFloatingPointMode exact(cpu::FloatingPointMode::exact());
  const Report report(measure, options.order);
  report.rows(list, partials);
  report.totals(list, total);
}

/// The units of a call, and where their results go.
struct Units {
  const UnitsRef* list;
  const cpu::UnitLimits* limits;
  double* factors;
  cpu::UnitResults results;
};

/// Tensors without units are measured first, the others with their units.
void measure_with_units(const gradkern_list& list, const gradkern_measure& measure, const Units& units,
                        const cpu::ThreadPool& pool) {
  const cpu::MeasureOptions options{norm_order(measure.norm_type), measure.count_zeros != 0};
  std::vector<TensorRef> others(as_refs(list.tensors), as_refs(list.tensors) + list.count);
  for (int64_t i = 0; i < list.count; ++i)
    if (units.list[i].rows && units.list[i].length) others[size_t(i)].numel = 0;
  Partial* const partials = partials_for(list.count);
  cpu::measure({others.data(), list.count}, options, pool, partials);
  cpu::measure_units(units.list, units.limits, list.count, options, pool, partials, units.factors, units.results);
  cpu::ScopedFloatingPointMode exact(cpu::FloatingPointMode::exact());
  Partial total = empty_partial(options.order);
  for (int64_t i = 0; i < list.count; ++i) total = combine(options.order, total, partials[i]);
  const Report report(measure, options.order);
  report.rows(list, partials);
  report.totals(list, total);
}

ClipDecision decision_of(const gradkern_scale& scale) {
  if (scale.zero && *scale.zero) return {ClipAction::kZero, 0.0};
  if (scale.factor) return decide_factor(scale.factor[0]);
  const double norm = real_at(scale.total_norm, 0, scale.total_norm_is_double);
  return decide_clip(scale.max_norm, norm, scale.total_nonfinite ? *scale.total_nonfinite : 0,
                     OnNonfinite(scale.on_nonfinite));
}

}  // namespace
}  // namespace gradkern::library

using namespace gradkern;
using gradkern::library::guarded;

int32_t gradkern_cpu_measure(const gradkern_list* list, const gradkern_measure* measure, const gradkern_pool* pool) {
  return guarded([&] { library::measure(*list, *measure, library::pool_of(pool)); });
}

int32_t gradkern_cpu_scale(const gradkern_list* list, const gradkern_scale* scale, const gradkern_pool* pool) {
  return guarded([&] {
    const bool each = scale->factor_per_tensor && !(scale->zero && *scale->zero);
    if (each) cpu::apply(library::plan_of(list), scale->factor, library::pool_of(pool));
    else cpu::apply(library::plan_of(list), library::decision_of(*scale), library::pool_of(pool));
  });
}

int32_t gradkern_cpu_clamp(const gradkern_list* list, double limit, const gradkern_pool* pool) {
  return guarded([&] { cpu::clamp(library::plan_of(list), limit, library::pool_of(pool)); });
}

int32_t gradkern_cpu_policy_step(const gradkern_policy_step* step) {
  return guarded([&] {
    cpu::ScopedFloatingPointMode exact(cpu::FloatingPointMode::exact());
    take_policy_step(policy_step_of(*step), OneThread{});
  });
}

int32_t gradkern_cpu_clip_units(const gradkern_units* list, int64_t count, double clip_factor, double eps,
                                const gradkern_pool* pool, double* norms, uint8_t* changed) {
  return guarded([&] {
    cpu::clip_units(as_units(list), count, {clip_factor, eps}, library::pool_of(pool), {norms, changed});
  });
}

int32_t gradkern_cpu_measure_units(const gradkern_list* list, const gradkern_measure* measure, const gradkern_units* units,
                                   const gradkern_unit_limits* limits, const gradkern_pool* pool, double* factors,
                                   double* norms, uint8_t* changed) {
  static_assert(sizeof(gradkern_unit_limits) == sizeof(cpu::UnitLimits));
  return guarded([&] {
    const library::Units own{as_units(units), reinterpret_cast<const cpu::UnitLimits*>(limits), factors, {norms, changed}};
    library::measure_with_units(*list, *measure, own, library::pool_of(pool));
  });
}

int32_t gradkern_cpu_scale_units(const gradkern_units* units, int64_t count, const double* factors, const uint8_t* changed,
                                 const gradkern_pool* pool) {
  return guarded([&] { cpu::scale_units(as_units(units), count, factors, changed, library::pool_of(pool)); });
}
