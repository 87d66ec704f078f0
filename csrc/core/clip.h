// The clip coefficient, and what it does to one element.
#pragma once

#include "core/dtype.h"

namespace gradkern {

/// coef = max_norm / (total_norm + 1e-6), in float64 from the total norm as it is returned to the
/// caller (torch.nn.utils.clip_grads_with_norm_ has the same formula), so that get_total_norm
/// followed by clip_grads_with_norm_ gives the same bits as clip_grad_norm_.
GRADKERN_HD double clip_coefficient(double max_norm, double total_norm) {
  return max_norm / (total_norm + 1e-6);
}

/// Whether gradients are to be multiplied. Not `coef < 1`: a NaN must reach the gradients, as in
/// torch. An infinite max_norm means "measure only", also where the total is inf or NaN.
GRADKERN_HD bool needs_scaling(double max_norm, double coef) {
  return !(coef >= 1.0) && max_norm != bit_cast<double>(uint64_t(0x7ff0000000000000ull));
}

/// x * coef with the arithmetic in float32 (float64 for float64) and one rounding to T.
template <class T>
GRADKERN_HD T scaled(T x, double coef) {
  return from_float<T>(to_float(x) * float(coef));
}
template <>
GRADKERN_HD double scaled<double>(double x, double coef) { return x * coef; }

/// min(max(x, -limit), limit), in this order and keeping NaN, as torch's two foreach clamps do.
template <class Real>
GRADKERN_HD Real clamped(Real x, Real limit) {
  const Real raised = x < -limit ? -limit : x;
  return raised > limit ? limit : raised;
}

}  // namespace gradkern
