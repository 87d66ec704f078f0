// What a rank contributes to a norm over several ranks: measured from its local shards, packed so
// that two all-reduces (one SUM of float64, one MAX of int64) combine it without overflow,
// underflow or a lost NaN. gradkern/distributed/packed.py reads this layout.
#pragma once

#include <ATen/core/Tensor.h>

#include "bindings/gradients.h"

namespace gradkern {

/// Columns of `sums`, float64: the sum of squares by bin (-1, 0, +1: see ScaledSum), its
/// compensation by bin, the power sum and its compensation, and three counts.
enum PackedSum { kSqHi = 0, kSqLo = 3, kPowerHi = 6, kPowerLo, kNonfinite, kZeros, kNumel, kPackedSums };

/// Columns of `keys`, int64, made for MAX: the bits of the largest magnitude as float64 (NaN above
/// inf), and PowerSum::ref so that the dominant one is largest and NaN is above all; -1: nothing.
enum PackedKey { kMaxBits = 0, kRefKey, kPackedKeys };

struct PackedPartials {
  at::Tensor sums;  ///< float64 [rows, kPackedSums]
  at::Tensor keys;  ///< int64 [rows, kPackedKeys]
};

/// Packs one row of the whole list, preceded by one row a position if `per_tensor`. Nothing is
/// written to the gradients; a position without gradient contributes nothing.
PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor);

}  // namespace gradkern
