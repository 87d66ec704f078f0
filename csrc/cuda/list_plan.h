// A list of tensors of one device, and how it is cut into chunks.
#pragma once

#include <cuda_runtime.h>

#include "core/dtype.h"

namespace gradkern::cuda {

/// log2 of the bytes of one chunk, from the size of the whole list alone. Small lists need small
/// chunks to occupy every multiprocessor; large ones need large chunks to keep what a chunk costs
/// besides its bytes (a reduction, a partial result) out of sight.
inline uint32_t chunk_log2_for(int64_t total_bytes) {
  constexpr int64_t kMiB = int64_t(1) << 20;
  return total_bytes < 64 * kMiB ? 14 : total_bytes < 1024 * kMiB ? 16 : total_bytes < 4096 * kMiB ? 18 : 20;
}

/// float64 runs are not compensated within a chunk, see the error bound in lanes.h.
constexpr uint32_t kLargestDoubleChunkLog2 = 18;

inline int64_t bytes_of(const TensorRef& t) { return t.numel << itemsize_log2(t.dtype); }

/// Powers of two: the host divides by them several times a tensor, with microseconds to spend on
/// thousands of tensors.
struct ChunkBytes {
  uint32_t narrow_log2, wide_log2;  ///< for float64 and complex128: wide

  GRADKERN_HD uint32_t log2_of(DType dtype) const { return is_double(dtype) ? wide_log2 : narrow_log2; }
  GRADKERN_HD uint32_t of(DType dtype) const { return 1u << log2_of(dtype); }
};

inline ChunkBytes chunk_bytes_of(const TensorRef* tensors, int64_t count) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) bytes += bytes_of(tensors[i]);
  const uint32_t narrow = chunk_log2_for(bytes);
  return {narrow, narrow < kLargestDoubleChunkLog2 ? narrow : kLargestDoubleChunkLog2};
}

/// How a list is cut: the same for all launches over it.
struct ListPlan {
  ChunkBytes chunk_bytes;
  uint32_t chunks;
  uint32_t most_of_a_tensor;  ///< chunks
};

/// Refuses what the kernels cannot address.
ListPlan plan_of(const TensorRef* tensors, int64_t count, const char* operation);

/// One list of tensors of one device. `tensors` is host memory, read during the call only; its
/// data pointers are device memory aligned to two bytes at least (16 is fastest). An entry with
/// numel 0 (empty, no gradient) has norm 0 and costs nothing. Where `first` is given, an entry with
/// numel 0 and first[i] < i reports what entry first[i] reports; totals count that one once.
struct TensorList {
  const TensorRef* tensors = nullptr;
  int64_t count = 0;
  const int64_t* first = nullptr;
  int device = 0;
  cudaStream_t stream = nullptr;
  const ListPlan* plan = nullptr;  ///< plan_of() this list, to make it once for several calls

  ListPlan planned(const char* operation) const {
    return plan ? *plan : plan_of(tensors, count, operation);
  }
};

inline int64_t chunks_of_tensor(const TensorRef& t, ChunkBytes chunk_bytes) {
  const uint32_t log2 = chunk_bytes.log2_of(t.dtype);
  return (bytes_of(t) + (int64_t(1) << log2) - 1) >> log2;
}

}  // namespace gradkern::cuda
