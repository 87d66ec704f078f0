// The clip coefficient, the decision based on it, and its application to an element.
#pragma once

#include "core/dtype.h"
#include "core/norm.h"

namespace gradkern {

/// The norm that decisions use, for a total that is returned in float32 or (`as_double`) in float64.
/// If the rounded total is finite, it is the rounded total, so that get_total_norm followed by
/// clip_grads_with_norm_ gives the same bits as clip_grad_norm_. Otherwise it is the total itself, so that
/// finite gradients are scaled and not multiplied by 1 / inf.
GRADKERN_HD double decision_norm(double total, bool as_double) {
  const double returned = as_double ? total : double(float(total));
  return is_finite(returned) ? returned : total;
}

/// coef = max_norm / (total_norm + 1e-6) in float64, the formula of torch.nn.utils.clip_grads_with_norm_.
GRADKERN_HD double clip_coefficient(double max_norm, double total_norm) {
  return max_norm / (total_norm + 1e-6);
}

/// What to do with the gradients if some of them are inf or NaN. The host raises errors.
enum class OnNonfinite : uint8_t { kPropagate, kZero, kSkip };

enum class ClipAction : uint8_t { kNone, kScale, kZero };

struct ClipDecision {
  ClipAction action = ClipAction::kNone;
  double coef = 1.0;  ///< what the gradients are multiplied by: 1 for kNone, 0 for kZero
};

/// Decides from the decision_norm() and the number of non-finite elements. A max_norm of infinity means
/// "measure only" and never writes, except for kZero. A negative total_norm, which only a caller can pass,
/// changes nothing, because a device cannot raise an error.
GRADKERN_HD ClipDecision decide_clip(double max_norm, double total_norm, int64_t nonfinite,
                                     OnNonfinite on_nonfinite) {
  if (nonfinite > 0 && on_nonfinite == OnNonfinite::kSkip) return {};
  if (nonfinite > 0 && on_nonfinite == OnNonfinite::kZero) return {ClipAction::kZero, 0.0};
  if ((abs_bits(max_norm) == kInfBits && max_norm > 0) || total_norm < 0) return {};
  const double coef = clip_coefficient(max_norm, total_norm);
  if (coef >= 1.0) return {};
  return {ClipAction::kScale, coef};  // also NaN, which must reach the gradients, as in torch
}

/// The decision for a given factor. 1 writes nothing.
GRADKERN_HD ClipDecision decide_factor(double factor) {
  return {factor == 1.0 ? ClipAction::kNone : ClipAction::kScale, factor};
}

/// Whether float32 would round a number coarsely, or to zero: below its smallest normal number.
GRADKERN_HD bool below_float(double x) { return x < 0x1p-126 && x > -0x1p-126; }

/// x * coef, rounded to T. float32 is multiplied in float64: with a coefficient rounded to float32, the
/// product would be off by up to 1.5 ulp, and coefficients below float32's range would be lost. The 16-bit
/// types are multiplied in float32, except by coefficients below its smallest normal number.
template <class T>
GRADKERN_HD T scaled(T x, double coef) {
  return from_float<T>(below_float(coef) ? float(double(to_float(x)) * coef) : to_float(x) * float(coef));
}
template <>
GRADKERN_HD float scaled<float>(float x, double coef) { return float(double(x) * coef); }
template <>
GRADKERN_HD double scaled<double>(double x, double coef) { return x * coef; }

/// min(max(x, -limit), limit), in this order, as torch's two foreach clamps do. NaN stays NaN.
template <class Real>
GRADKERN_HD Real clamped(Real x, Real limit) {
  const Real raised = x < -limit ? -limit : x;
  return raised > limit ? limit : raised;
}

}  // namespace gradkern
