// Measure, decide, apply: what every entry point, eager or compiled, ends in.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "bindings/gradients.h"
#include "core/clip.h"
#include "core/norm.h"

namespace gradkern {

struct MeasureRequest {
  double norm_type = 2.0;
  bool per_tensor = false;   ///< whether the per-position results are wanted
  bool count_zeros = false;
  double inv_scale = 1.0;    ///< everything reported is multiplied by this
  bool decision_norm = false;
  bool wide_norm = false;
};

/// Tensors on the gradients' device. Per-position results ([N], float32, or float64 if any
/// gradient is) are undefined unless asked for; a position without gradient has zeros.
struct Measurement {
  at::Tensor norm, l2_norm, max_abs;   ///< [N]
  at::Tensor nonfinite, zeros;         ///< int64 [N]
  at::Tensor total_norm;               ///< 0-d
  at::Tensor decision_norm;            ///< 0-d float64 (core/clip.h); undefined unless asked for
  at::Tensor wide_norm;                ///< float64 [N]: `norm` before rounding; undefined unless asked for
  bool any_double = false;
  // Known to the host on the CPU, and what the following decision uses there.
  double total = 0;                    ///< the decision_norm
  int64_t total_nonfinite = 0;

  bool returns_finite_total() const { return is_finite(any_double ? total : double(float(total))); }
};

struct ClipRequest {
  MeasureRequest measure;
  double max_norm = 0;
  OnNonfinite on_nonfinite = OnNonfinite::kPropagate;
  bool raise_if_nonfinite_norm = false;       ///< torch's error_if_nonfinite: by the total norm
  bool raise_if_nonfinite_elements = false;   ///< GradClipper's "raise": by the count
};

struct ClipResult {
  Measurement measured;
  at::Tensor clip_coef;   ///< 0-d, what the gradients were multiplied by
  at::Tensor skip_step;   ///< 0-d bool, for OnNonfinite::kSkip only
};

/// Whether `request` asks for an error where m.total and m.total_nonfinite are as they are.
bool must_raise(const ClipRequest& request, const Measurement& m);

/// That error. `counts` (int64 [N], on the CPU) tells how many elements of each position are not finite.
[[noreturn]] void raise_nonfinite(const CallSite& site, const ClipRequest& request, const Prepared& prepared,
                                  const at::Tensor& counts);

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request);

ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request);

/// What was decided of each position, on the host.
struct RowDecision {
  std::vector<double> factors;  ///< one for all, or one a position
  std::optional<bool> skip;     ///< leave everything as it is; none if no policy ever says so
};
using DecideRows = std::function<RowDecision(const Prepared& prepared, const Measurement& m)>;
/// Changes gradients further, and factors[i] to what that made of gradient i.
using ChangeRows = std::function<void(const Measurement& m, std::vector<double>& factors)>;

/// Measures, asks `decide`, and scales; then calls `change`, unless everything was left alone or set to zero.
/// Gradients on the CPU; `request.max_norm` is not looked at. `factors` becomes what each position was multiplied
/// by, one number if that is the same for all. `skip_step` is defined also where `decide` can skip.
ClipResult clip_by(const CallSite& site, const GradList& grads, const ClipRequest& request, const DecideRows& decide,
                   const ChangeRows& change, std::vector<double>& factors);

/// Scales by max_norm / (total_norm + 1e-6) where that is below 1.
void clip_with_norm(const CallSite& site, const GradList& grads, double max_norm,
                    const at::Tensor& total_norm);

/// Multiplies every gradient by `factor`, or gradient i by factor[i], with one rounding; where the 0-d bool
/// `zero` (may be undefined) holds, everything is set to zero instead. `factor` is float64, `zero` bool, both
/// on the gradients' device. A factor of 1 writes nothing. A gradient listed twice, and gradients over the
/// same memory, are scaled once, by the factor of the one that comes first in the list.
void scale(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero);

void clip_value(const CallSite& site, const GradList& grads, double limit);

}  // namespace gradkern
