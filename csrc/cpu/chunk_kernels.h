// The kernels for one chunk: the interface between the driver, which is compiled once, and the kernels,
// which are compiled once per instruction set.
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
  /// Reads `length` <= kChunkElements elements once. Does not set out.numel.
  void (*measure)(const void* data, DType dtype, int64_t length, const MeasureOptions& options,
                  Following following, Partial& out);
  /// Only the sum of squares of `length` <= kChunkElements elements, which is faster for short units. Not for
  /// float64 and complex128, whose squares are not exact in float64.
  double (*squares)(const void* data, DType dtype, int64_t length);
  /// x *= coef, see scaled() in core/clip.h.
  void (*scale)(void* data, DType dtype, int64_t length, double coef, Following following);
  /// x = clamp(x, -limit, limit) for real types. Blocks without a change are not written.
  void (*clamp)(void* data, DType dtype, int64_t length, double limit);
};

extern const ChunkKernels kBaselineKernels;
#if defined(__x86_64__)
extern const ChunkKernels kAvx2Kernels;
extern const ChunkKernels kAvx512Kernels;
#endif

/// The best kernels for this processor, or those named by GRADKERN_CPU_ISA.
const ChunkKernels& chunk_kernels();

}  // namespace gradkern::cpu
