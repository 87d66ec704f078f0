// The tensor table: how a list of tensors travels to the device in the kernel's own arguments.
// There is nothing to copy, nothing to keep alive and nothing that a CUDA graph could capture
// by address.
#pragma once

#include "core/chunk_plan.h"
#include "cuda/check.h"

namespace gradkern::cuda {

constexpr unsigned kThreads = 256;
constexpr unsigned kBlocksPerMultiprocessor = 4;

// Kernel arguments may take 32,764 bytes since CUDA 12.1 and 4 KB before. The whole struct is
// copied at every launch, therefore the smaller sizes of 1, 4 and 16 KB.
#if CUDART_VERSION >= 12010
constexpr int kLargestTable = 32764;
#else
constexpr int kLargestTable = 4096;
#endif
constexpr int kHalfTable = kLargestTable / 2;

/// Bytes of one chunk, from the size of the whole list alone. Small lists need small chunks to
/// occupy every multiprocessor; large ones need large chunks to keep what a chunk costs besides
/// its bytes (a reduction, a partial result) out of sight.
inline uint32_t chunk_bytes_for(int64_t total_bytes) {
  constexpr int64_t kMiB = int64_t(1) << 20;
  if (total_bytes < 64 * kMiB) return 16u << 10;
  if (total_bytes < 1024 * kMiB) return 64u << 10;
  if (total_bytes < 4096 * kMiB) return 256u << 10;
  return 1024u << 10;
}

/// float64 runs are not compensated within a chunk, see the error bound in lanes.h.
constexpr uint32_t kLargestDoubleChunk = 256u << 10;

struct ChunkBytes {
  uint32_t narrow, wide;  ///< for float64 and complex128: wide

  GRADKERN_HD uint32_t of(DType dtype) const { return is_double(dtype) ? wide : narrow; }
};

inline ChunkBytes chunk_bytes_of(const TensorRef* tensors, int64_t count) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) bytes += tensors[i].numel * itemsize(tensors[i].dtype);
  const uint32_t narrow = chunk_bytes_for(bytes);
  return {narrow, narrow < kLargestDoubleChunk ? narrow : kLargestDoubleChunk};
}

/// Kernel arguments: a header of the kernel's own and `tensors` table entries.
template <class Header, int kBytes>
struct TableParams {
  static constexpr uint32_t kCapacity = (kBytes - int(sizeof(Header)) - 16) / 16;

  Header header;
  uint64_t data[kCapacity];        ///< of a tensor without chunks: see fill_table
  uint32_t last_chunk[kCapacity];  ///< bytes of the tensor's last chunk * 8 + dtype
  uint32_t first_chunk[kCapacity + 1];
  uint32_t tensors;
  ChunkBytes chunk_bytes;

  GRADKERN_HD uint32_t chunks() const { return first_chunk[tensors]; }
};

/// A chunk as a kernel sees it.
struct ChunkView {
  uint64_t data;
  uint32_t bytes;
  DType dtype;
};

template <class Params>
GRADKERN_HD ChunkView chunk_view(const Params& p, uint32_t chunk) {
  const uint32_t tensor = tensor_of_chunk<uint32_t>(p.first_chunk, p.tensors, chunk);
  const uint32_t last = p.last_chunk[tensor];
  const DType dtype = DType(last & 7u);
  const uint32_t chunk_bytes = p.chunk_bytes.of(dtype);
  const uint64_t offset = uint64_t(chunk - p.first_chunk[tensor]) * chunk_bytes;
  const bool is_last = chunk + 1 == p.first_chunk[tensor + 1];
  return {p.data[tensor] + offset, is_last ? last >> 3 : chunk_bytes, dtype};
}

inline uint32_t chunks_of_tensor(const TensorRef& t, ChunkBytes chunk_bytes) {
  return uint32_t(chunks_of(t.numel * itemsize(t.dtype), chunk_bytes.of(t.dtype)));
}

/// Fills the table with as many of `tensors` as fit; returns how many did. `first` (may be null)
/// names the tensor that an empty one stands for; 1 + that goes where its pointer would be.
template <class Params>
int64_t fill_table(Params& p, const TensorRef* tensors, int64_t count, ChunkBytes chunk_bytes,
                   const int64_t* first = nullptr) {
  const int64_t taken = count < int64_t(Params::kCapacity) ? count : int64_t(Params::kCapacity);
  p.tensors = uint32_t(taken);
  p.chunk_bytes = chunk_bytes;
  uint32_t chunks = 0;
  for (int64_t i = 0; i < taken; ++i) {
    const TensorRef& t = tensors[i];
    const uint32_t own = chunks_of_tensor(t, chunk_bytes);
    const int64_t before_last = own ? int64_t(own - 1) * chunk_bytes.of(t.dtype) : 0;
    p.data[i] = own ? reinterpret_cast<uint64_t>(t.data) : first ? uint64_t(first[i]) + 1 : 0;
    p.last_chunk[i] =
        uint32_t(t.numel * itemsize(t.dtype) - before_last) << 3 | uint32_t(t.dtype);
    p.first_chunk[i] = chunks;
    chunks += own;
  }
  p.first_chunk[taken] = chunks;
  return taken;
}

/// A persistent grid: as many blocks as are resident at a time, never more than chunks.
inline unsigned grid_for(uint32_t chunks, int multiprocessors) {
  const uint32_t resident = uint32_t(multiprocessors) * kBlocksPerMultiprocessor;
  const uint32_t blocks = chunks < resident ? chunks : resident;
  return blocks ? blocks : 1;
}

/// Number of chunks of the list; refuses what the kernels cannot address.
inline uint32_t count_chunks(const TensorRef* tensors, int64_t count, ChunkBytes chunk_bytes,
                             const char* operation) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const TensorRef& t = tensors[i];
    require(t.numel == 0 || (reinterpret_cast<uint64_t>(t.data) & 1u) == 0,
            "a tensor's data pointer is odd; expected one aligned to two bytes", operation);
    chunks += chunks_of(t.numel * itemsize(t.dtype), chunk_bytes.of(t.dtype));
  }
  require(chunks < (int64_t(1) << 31), "the list has more than 2^31 chunks", operation);
  return uint32_t(chunks);
}

/// Calls launch(params) with params of the smallest of the sizes that holds `count` tensors, or
/// the last one. Sizes ascend.
template <class Header, int kBytes, int... kLarger, class Launch>
void with_smallest_table(int64_t count, const Launch& launch) {
  if constexpr (sizeof...(kLarger) > 0)
    if (count > int64_t(TableParams<Header, kBytes>::kCapacity))
      return with_smallest_table<Header, kLarger...>(count, launch);
  // Not initialised: fill_table writes what is used, and 32 KB of zeros cost more than a launch.
  TableParams<Header, kBytes> params;
  static_assert(sizeof(params) <= kBytes, "kernel arguments too large");
  launch(params);
}

}  // namespace gradkern::cuda
