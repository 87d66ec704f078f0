// What a rank contributes to a norm over several ranks: measured from its local shards, packed
// (core/packed.h) so that two all-reduces combine it without overflow, underflow or a lost NaN.
#pragma once

#include <ATen/core/Tensor.h>

#include "bindings/gradients.h"
#include "core/packed.h"

namespace gradkern {

struct PackedPartials {
  at::Tensor sums;  ///< float64 [rows, kPackedSums]
  at::Tensor keys;  ///< int64 [rows, kPackedKeys]
};

/// The shards' device is the results'; shards are all on one device.
/// Packs one row of the whole list, preceded by one row a position if `per_tensor`. Nothing is
/// written to the gradients; a position without gradient contributes nothing.
PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor);

}  // namespace gradkern
