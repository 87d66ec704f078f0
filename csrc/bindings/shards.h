// The contribution of a rank to a norm over several ranks: measured from its local shards and packed (core/packed.h),
// so that two all-reduces combine it without overflow, underflow or a lost NaN.
#pragma once

#include <ATen/core/Tensor.h>

#include "bindings/gradients.h"
#include "core/packed.h"

namespace gradkern {

struct PackedPartials {
  at::Tensor sums;  ///< float64 [rows, kPackedSums]
  at::Tensor keys;  ///< int64 [rows, kPackedKeys]
};

/// Packs one row per position if `per_tensor`, then one row of the whole list. All shards are on one device, as are the
/// results. Does not write to the gradients. A position without a gradient contributes nothing.
PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor);

}  // namespace gradkern
