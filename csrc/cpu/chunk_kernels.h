// What one chunk costs: the interface between the driver (compiled once) and the kernels
// (compiled once per instruction set).
#pragma once

#include "core/dtype.h"
#include "core/norm.h"
#include "core/prefetch.h"

namespace gradkern::cpu {

struct MeasureOptions {
  NormOrder order;
  bool count_zeros = false;
};

struct ChunkKernels {
  const char* name;  ///< "baseline", "avx2", "avx512"
  /// Reads `length` <= kChunkElements elements once; leaves out.numel alone.
  void (*measure)(const void* data, DType dtype, int64_t length, const MeasureOptions& options,
                  Following following, Partial& out);
  /// The sum of squares of `length` <= kChunkElements elements whose squares are exact in float64 (no float64, no
  /// complex128): the sum that `measure` has, for a unit that is short.
  double (*squares)(const void* data, DType dtype, int64_t length);
  /// x *= coef, see core/clip.h.
  void (*scale)(void* data, DType dtype, int64_t length, double coef, Following following);
  /// x = clamp(x, -limit, limit) for real types; writes only where something changes.
  void (*clamp)(void* data, DType dtype, int64_t length, double limit);
};

extern const ChunkKernels kBaselineKernels;
#if defined(__x86_64__)
extern const ChunkKernels kAvx2Kernels;
extern const ChunkKernels kAvx512Kernels;
#endif

/// The kernels for this processor, or those GRADKERN_CPU_ISA names (it must support them).
const ChunkKernels& chunk_kernels();

}  // namespace gradkern::cpu
