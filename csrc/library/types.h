// Conversions between the plain structs of kernels.h and the types of csrc/core.
#pragma once

#include <cstddef>

#include "core/clip.h"
#include "core/dtype.h"
#include "core/norm.h"
#include "core/policies.h"
#include "library/kernels.h"

namespace gradkern {

// A list is handed over as it is.
static_assert(sizeof(gradkern_tensor) == sizeof(TensorRef) &&
              offsetof(gradkern_tensor, data) == offsetof(TensorRef, data) &&
              offsetof(gradkern_tensor, numel) == offsetof(TensorRef, numel) &&
              offsetof(gradkern_tensor, dtype) == offsetof(TensorRef, dtype));
static_assert(int(DType::kFloat32) == GRADKERN_FLOAT32 && int(DType::kBFloat16) == GRADKERN_BFLOAT16 &&
              int(DType::kFloat16) == GRADKERN_FLOAT16 && int(DType::kFloat64) == GRADKERN_FLOAT64 &&
              int(DType::kComplex64) == GRADKERN_COMPLEX64 && int(DType::kComplex128) == GRADKERN_COMPLEX128);
static_assert(int(OnNonfinite::kPropagate) == GRADKERN_PROPAGATE && int(OnNonfinite::kZero) == GRADKERN_ZERO &&
              int(OnNonfinite::kSkip) == GRADKERN_SKIP);
static_assert(sizeof(Partial) == GRADKERN_PARTIAL_BYTES);
static_assert(sizeof(gradkern_policy_step::constants) == sizeof(PolicyStep::constants));

inline const gradkern_tensor* as_plain(const TensorRef* tensors) {
  return reinterpret_cast<const gradkern_tensor*>(tensors);
}
inline const TensorRef* as_refs(const gradkern_tensor* tensors) {
  return reinterpret_cast<const TensorRef*>(tensors);
}

static_assert(sizeof(gradkern_units) == sizeof(UnitsRef) && offsetof(gradkern_units, rows) == offsetof(UnitsRef, rows) &&
              offsetof(gradkern_units, length) == offsetof(UnitsRef, length) &&
              offsetof(gradkern_units, grad_dtype) == offsetof(UnitsRef, grad_dtype) &&
              offsetof(gradkern_units, weights_dtype) == offsetof(UnitsRef, weights_dtype));
inline const gradkern_units* as_plain(const UnitsRef* units) { return reinterpret_cast<const gradkern_units*>(units); }
inline const UnitsRef* as_units(const gradkern_units* units) { return reinterpret_cast<const UnitsRef*>(units); }

inline gradkern_policy_step as_plain(const PolicyStep& p) {
  gradkern_policy_step plain{{},     p.total, p.norms, p.state, p.result,
                             p.rows, uint8_t(p.kind), p.total_is_double, p.norms_are_double};
  memcpy(plain.constants, p.constants, sizeof(p.constants));
  return plain;
}
inline PolicyStep policy_step_of(const gradkern_policy_step& plain) {
  PolicyStep p{PolicyKind(plain.kind), {}, plain.total, plain.norms, plain.state,
               plain.result, plain.rows, plain.total_is_double != 0, plain.norms_are_double != 0};
  memcpy(p.constants, plain.constants, sizeof(p.constants));
  return p;
}

}  // namespace gradkern
