// What the measure kernels leave in device memory for the finishing kernel.
#pragma once

#include "cuda/launch.h"
#include "cuda/table.h"

namespace gradkern::cuda {

/// Of every chunk, for every order.
struct ChunkSums {
  double sq;
  uint64_t max_bits;
  uint32_t nonfinite;
  int32_t bin : 8;
  uint32_t numel : 24;
};

/// Of every chunk, if the order or the zero count asks for it.
struct ChunkExtras {
  PowerSum power;
  int64_t zeros;
};

/// Which measure kernel an order needs: squares and magnitudes always; kSums adds the sum of |x|
/// and the count of zeros; kPower reads a chunk three times.
enum class Pass { kPlain, kSums, kPower };

inline Pass pass_for(const MeasureOptions& options) {
  const NormKind kind = options.order.kind;
  if (kind == NormKind::kPower || kind == NormKind::kNegInf) return Pass::kPower;
  if (kind == NormKind::kOne || kind == NormKind::kZero || options.count_zeros) return Pass::kSums;
  return Pass::kPlain;
}

struct Workspace {
  Partial* rows;          ///< [tensors]
  ChunkSums* sums;        ///< [chunks]
  ChunkExtras* extras;    ///< [chunks] or null
  uint32_t* first_chunk;  ///< [tensors + 1]
  uint32_t* repeats;      ///< [tensors] or null: 1 + the tensor whose results a tensor repeats, or 0
  uint32_t* blocks_done;  ///< set to zero by the measure kernel of the same call
  size_t bytes;
};

/// Lays a workspace out at `base`, which may be null to ask for its size.
inline Workspace layout_workspace(void* base, int64_t tensors, uint32_t chunks, bool extras,
                                  bool repeats) {
  size_t offset = 0;
  const auto take = [&](size_t bytes) {
    char* at = static_cast<char*>(base) + offset;
    offset += (bytes + 15) / 16 * 16;
    return static_cast<void*>(at);
  };
  Workspace w;
  w.rows = static_cast<Partial*>(take(size_t(tensors) * sizeof(Partial)));
  w.sums = static_cast<ChunkSums*>(take(size_t(chunks) * sizeof(ChunkSums)));
  w.extras = static_cast<ChunkExtras*>(take(extras ? size_t(chunks) * sizeof(ChunkExtras) : 0));
  if (!extras) w.extras = nullptr;
  w.first_chunk = static_cast<uint32_t*>(take((size_t(tensors) + 1) * sizeof(uint32_t)));
  w.repeats = static_cast<uint32_t*>(take(repeats ? size_t(tensors) * sizeof(uint32_t) : 0));
  if (!repeats) w.repeats = nullptr;
  w.blocks_done = static_cast<uint32_t*>(take(sizeof(uint32_t)));
  w.bytes = offset;
  return w;
}

/// The second half of launch_measure: per-tensor results, total and coefficient.
void launch_finish(const MeasureLaunch& launch, const Workspace& workspace, bool any_large_tensor,
                   int multiprocessors);

/// A tensor of more chunks than this is combined by a block, the others by a warp each.
constexpr uint32_t kChunksForWarp = 64;

}  // namespace gradkern::cuda
