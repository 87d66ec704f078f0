// What the lanes of every element type come to.
#pragma once

#include "cuda/elements.h"

namespace gradkern::cuda {

/// The result of a lane, and of any number of lanes together.
struct LaneSums {
  double sq = 0;           ///< sum of squares * 2^(-1200 * bin)
  double absolute = 0;     ///< sum of |x|, if asked for
  uint64_t max_bits = 0;   ///< of the largest |x| in float64
  uint32_t nonfinite = 0;
  uint32_t nonzero = 0;    ///< if asked for
  int32_t bin = 0;
};

template <class T>
__device__ __forceinline__ uint32_t count_nonfinite(const char* data, uint32_t bytes) {
  uint32_t count = 0;
  visit_elements<T>(data, bytes, [&](T x) { count += !finite(x); });
  return count;
}

/// Once more in float64, with squares scaled by the bin of the lane's largest magnitude, where what a
/// lane gathered fast lies near the ends of its range.
template <class T, bool kSums>
__device__ __forceinline__ void finish_scaled(const char* data, uint32_t bytes, double largest,
                                              LaneSums& out) {
  out.bin = bin_of(largest);
  const double scale = bin_scale(out.bin);
  double sq = 0, absolute = 0;
  uint32_t nonfinite = 0;
  visit_elements<T>(data, bytes, [&](T x) {
    sq += scaled_square(x, scale);
    if (kSums) absolute += magnitude(x);
    nonfinite += !finite(x);
  });
  out.sq = sq;
  if (kSums) out.absolute = absolute;
  out.nonfinite = nonfinite;
}

}  // namespace gradkern::cuda
