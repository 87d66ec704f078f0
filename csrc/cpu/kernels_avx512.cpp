// The chunk kernels, compiled for: avx512 (flags in CMakeLists.txt).
#include "cpu/measure_chunk.h"
#include "cpu/write_chunk.h"

namespace gradkern::cpu {
const ChunkKernels kAvx512Kernels{"avx512", measure_chunk, squares_chunk, scale_chunk, clamp_chunk};
}  // namespace gradkern::cpu
