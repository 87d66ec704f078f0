// How a list of tensors is cut into chunks, the unit of work on the CPU.
//
// A chunk is a fixed range of element indices of one tensor. The cut depends on the sizes only, not on
// threads or alignment, and partial results are combined in the order of the chunks. This makes results
// bitwise reproducible.
#pragma once

#include <vector>

#include "core/dtype.h"

namespace gradkern {

/// Small enough to stay in a core's cache if a chunk is read again, large enough to amortize the fixed
/// cost of a chunk. The error bound in norm.h relies on 2^15.
constexpr int64_t kChunkElements = int64_t(1) << 15;

GRADKERN_HD constexpr int64_t chunks_of(int64_t numel, int64_t chunk_elements) {
  return (numel + chunk_elements - 1) / chunk_elements;
}

/// The tensor that holds chunk `chunk`: the last index i with first_chunk[i] <= chunk. `first_chunk` has
/// count + 1 non-decreasing entries. An empty tensor has the same entry as its successor and is not found.
template <class Index>
GRADKERN_HD Index tensor_of_chunk(const Index* first_chunk, Index count, Index chunk) {
  Index low = 0, high = count;  // invariant: first_chunk[low] <= chunk < first_chunk[high]
  while (high - low > 1) {
    const Index middle = low + (high - low) / 2;
    if (first_chunk[middle] <= chunk) low = middle;
    else high = middle;
  }
  return low;
}

/// Elements [begin, begin + length) of tensor `tensor`.
struct Chunk {
  int64_t tensor, begin, length;
};

class ChunkPlan {
 public:
  ChunkPlan(const TensorRef* tensors, int64_t count) : tensors_(tensors), count_(count) {
    first_chunk_.reserve(size_t(count) + 1);
    int64_t chunks = 0;
    for (int64_t i = 0; i < count; ++i) {
      first_chunk_.push_back(chunks);
      const int64_t of_tensor = chunks_of(tensors[i].numel, kChunkElements);
      chunks += of_tensor;
      numel_ += tensors[i].numel;
      if (of_tensor <= 1) continue;
      split_.push_back(i);
      split_chunks_ += of_tensor;
    }
    first_chunk_.push_back(chunks);
  }

  int64_t tensors() const { return count_; }
  int64_t chunks() const { return first_chunk_.back(); }
  int64_t numel() const { return numel_; }
  /// The tensors of more than one chunk, and their number of chunks.
  const std::vector<int64_t>& split_tensors() const { return split_; }
  int64_t split_chunks() const { return split_chunks_; }
  int64_t first_chunk(int64_t tensor) const { return first_chunk_[size_t(tensor)]; }
  const TensorRef& tensor(int64_t i) const { return tensors_[i]; }

  /// The tensor of a chunk, by binary search.
  int64_t find(int64_t chunk) const {
    return tensor_of_chunk<int64_t>(first_chunk_.data(), count_, chunk);
  }

  /// Chunk `chunk`, known to lie in `tensor`.
  Chunk at(int64_t tensor, int64_t chunk) const {
    const int64_t begin = (chunk - first_chunk(tensor)) * kChunkElements;
    const int64_t rest = tensors_[tensor].numel - begin;
    return {tensor, begin, rest < kChunkElements ? rest : kChunkElements};
  }

 private:
  const TensorRef* tensors_;
  int64_t count_, numel_ = 0, split_chunks_ = 0;
  std::vector<int64_t> first_chunk_, split_;
};

}  // namespace gradkern
