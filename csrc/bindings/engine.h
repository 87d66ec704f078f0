// Measure, decide, apply: the functions that all entry points, eager and compiled, call.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "bindings/gradients.h"
#include "core/clip.h"
#include "core/norm.h"
#include "core/policies.h"
#include "library/kernels.h"

namespace gradkern {

/// Units that are decided on while their gradients are measured: see gradkern_cpu_measure_units. By position.
struct UnitReads {
  std::vector<UnitsRef> units;               ///< rows 0: none
  std::vector<gradkern_unit_limits> limits;
  std::vector<double> factors, norms;        ///< of every unit; of gradients before, then after
  std::vector<uint8_t> changed;
};

struct MeasureRequest {
  double norm_type = 2.0;
  bool per_tensor = false;   ///< whether to return results per position
  bool count_zeros = false;
  double inv_scale = 1.0;    ///< results are multiplied by this
  bool decision_norm = false;
  bool wide_norm = false;
  UnitReads* units = nullptr;  ///< on the CPU
};

/// Tensors on the gradients' device. Results per position are [N], float64 if any gradient is, else float32, and
/// undefined unless requested. A position without a gradient has zeros.
struct Measurement {
  at::Tensor norm, l2_norm, max_abs;   ///< [N]
  at::Tensor nonfinite, zeros;         ///< int64 [N]
  at::Tensor total_norm;               ///< 0-d
  at::Tensor decision_norm;            ///< 0-d float64 (core/clip.h); undefined unless requested
  at::Tensor wide_norm;                ///< float64 [N]: `norm` before rounding; undefined unless requested
  bool any_double = false;
  // Known to the host for gradients on the CPU, and used by the decision.
  double total = 0;                    ///< the decision_norm
  int64_t total_nonfinite = 0;

  bool returns_finite_total() const { return is_finite(any_double ? total : double(float(total))); }
};

struct ClipRequest {
  MeasureRequest measure;
  double max_norm = 0;
  OnNonfinite on_nonfinite = OnNonfinite::kPropagate;
  bool raise_if_nonfinite_norm = false;       ///< torch's error_if_nonfinite, which tests the total norm
  bool raise_if_nonfinite_elements = false;   ///< GradClipper's "raise", which tests the count
};

struct ClipResult {
  Measurement measured;
  at::Tensor clip_coef;   ///< 0-d, the factor of the gradients
  at::Tensor skip_step;   ///< 0-d bool, for OnNonfinite::kSkip only
};

/// Whether a clip can change gradients, or only measures them.
inline bool writes(double max_norm, OnNonfinite on_nonfinite) {
  return max_norm != infinity() || on_nonfinite == OnNonfinite::kZero;
}

/// Whether `request` requires an error for m.total and m.total_nonfinite.
bool must_raise(const ClipRequest& request, const Measurement& m);

/// Raises that error. `counts` (int64 [N], on the CPU) has the number of non-finite elements of each position.
[[noreturn]] void raise_nonfinite(const CallSite& site, const ClipRequest& request, const Prepared& prepared,
                                  const at::Tensor& counts);

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request);

ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request);

/// The decision for each position, on the host.
struct RowDecision {
  std::vector<double> factors;  ///< one for all, or one per position
  std::optional<bool> skip;     ///< whether to leave all gradients unchanged; none if no policy can skip
};
using DecideRows = std::function<RowDecision(const Prepared& prepared, const Measurement& m)>;
/// Changes gradients further, and sets factors[i] accordingly.
using ChangeRows = std::function<void(const Measurement& m, std::vector<double>& factors)>;

/// Measures, calls `decide`, and scales; then calls `change`, unless the step is skipped or the gradients were set to
/// zero. For gradients on the CPU. Ignores `request.max_norm`. `factors` is set to the factor of each position, or to one
/// number if they are equal. `skip_step` is also defined if `decide` can skip.
ClipResult clip_by(const CallSite& site, const GradList& grads, const ClipRequest& request, const DecideRows& decide,
                   const ChangeRows& change, std::vector<double>& factors);

/// Multiplies the gradients by max_norm / (total_norm + 1e-6) if that is below 1.
void clip_with_norm(const CallSite& site, const GradList& grads, double max_norm,
                    const at::Tensor& total_norm);

/// Multiplies every gradient by `factor` (0-d float64), or gradient i by factor[i], with one rounding. If `zero` (0-d
/// bool, may be undefined) is true, all gradients are set to zero instead. Both are on the gradients' device. A factor of
/// 1 writes nothing. A gradient listed twice, and gradients that share memory, are scaled once, by the factor of the first
/// in the list.
void scale(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero);

void clip_value(const CallSite& site, const GradList& grads, double limit);

}  // namespace gradkern
