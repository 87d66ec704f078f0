// The chunk kernels, compiled for: avx2 (flags in CMakeLists.txt).
#include "cpu/measure_chunk.h"
#include "cpu/write_chunk.h"

namespace gradkern::cpu {
const ChunkKernels kAvx2Kernels{"avx2", measure_chunk, squares_chunk, scale_chunk, clamp_chunk};
}  // namespace gradkern::cpu
