// The tensor table: how a list of tensors travels to the device in the kernel's own arguments.
// There is nothing to copy, nothing to keep alive and nothing that a CUDA graph could capture
// by address.
#pragma once

#include "core/chunk_plan.h"
#include "cuda/check.h"
#include "cuda/list_plan.h"

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
  uint32_t tensor;  ///< in the table
};

template <class Params>
GRADKERN_HD ChunkView chunk_view(const Params& p, uint32_t chunk) {
  const uint32_t tensor = tensor_of_chunk<uint32_t>(p.first_chunk, p.tensors, chunk);
  const uint32_t last = p.last_chunk[tensor];
  const DType dtype = DType(last & 7u);
  const uint32_t chunk_log2 = p.chunk_bytes.log2_of(dtype);
  const uint64_t offset = uint64_t(chunk - p.first_chunk[tensor]) << chunk_log2;
  const bool is_last = chunk + 1 == p.first_chunk[tensor + 1];
  return {p.data[tensor] + offset, is_last ? last >> 3 : 1u << chunk_log2, dtype, tensor};
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
    const int64_t own = chunks_of_tensor(t, chunk_bytes);
    const int64_t before_last = own ? (own - 1) << chunk_bytes.log2_of(t.dtype) : 0;
    p.data[i] = own ? reinterpret_cast<uint64_t>(t.data) : first ? uint64_t(first[i]) + 1 : 0;
    p.last_chunk[i] = uint32_t(bytes_of(t) - before_last) << 3 | uint32_t(t.dtype);
    p.first_chunk[i] = chunks;
    chunks += uint32_t(own);
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
