// A Partial as two small rows that all-reduces combine: float64 for SUM and int64 for MAX.
// gradkern/distributed/packed.py reads this layout.
#pragma once

#include "core/norm.h"

namespace gradkern {

/// Columns of the sums: the sum of squares for each bin (-1, 0, +1: see ScaledSum), its compensation for
/// each bin, the power sum and its compensation, and three counts.
enum PackedSum { kSqHi = 0, kSqLo = 3, kPowerHi = 6, kPowerLo, kNonfinite, kZeros, kNumel, kPackedSums };

/// Columns of the keys: the float64 bits of the largest magnitude (NaN above inf), and PowerSum::ref as a
/// key that is largest for the dominant magnitude, with NaN above all. -1 if there are no elements.
enum PackedKey { kMaxBits = 0, kRefKey, kPackedKeys };

GRADKERN_HD int64_t packed_reference(const NormOrder& order, const Partial& p) {
  if (p.numel == 0) return -1;
  const uint64_t bits = abs_bits(p.power.ref);
  if (bits > kInfBits) return INT64_MAX;
  const bool smallest_dominates = order.kind == NormKind::kNegInf || order.p < 0;
  return int64_t(smallest_dominates ? kInfBits - bits : bits);
}

/// Writes sums[0 … kPackedSums) and keys[0 … kPackedKeys).
GRADKERN_HD void pack(const NormOrder& order, const Partial& p, double* sums, int64_t* keys) {
  // There are no bins beyond +-1, because combine() moves a sum up to the larger of two bins.
  for (int32_t bin = -1; bin <= 1; ++bin) {
    sums[kSqHi + bin + 1] = bin == p.sq.bin ? p.sq.hi : 0.0;
    // For an infinite hi, lo is NaN and must not turn inf into NaN.
    sums[kSqLo + bin + 1] = bin == p.sq.bin && is_finite(p.sq.hi) ? p.sq.lo : 0.0;
  }
  sums[kPowerHi] = p.power.hi;
  sums[kPowerLo] = is_finite(p.power.hi) ? p.power.lo : 0.0;
  sums[kNonfinite] = double(p.nonfinite);
  sums[kZeros] = double(p.zeros);
  sums[kNumel] = double(p.numel);
  keys[kMaxBits] = p.numel == 0 ? -1 : int64_t(p.max_bits);
  keys[kRefKey] = packed_reference(order, p);
}

}  // namespace gradkern
