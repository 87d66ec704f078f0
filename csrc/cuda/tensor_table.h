// The tensor table: a list of tensors in device memory, its division among warps, and the loop over a warp's part.
//
// The list is a sequence of units (list_plan.h), tensor after tensor. Each warp of a grid takes a span of it. The first
// `longer` spans have one unit more than the others. Results do not depend on where spans begin (core/exact_sum.h), so
// that the division can depend on the number of multiprocessors.
#pragma once

#include <mutex>

#include "cuda/check.h"
#include "cuda/list_plan.h"

namespace gradkern::cuda {

constexpr uint32_t kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

#if !defined(GRADKERN_WARPS)
#define GRADKERN_WARPS 16
#endif
constexpr uint32_t kWarps = GRADKERN_WARPS;  ///< of a block
constexpr uint32_t kThreads = kWarps * kWarpSize;
constexpr uint32_t kBlocksPerMultiprocessor = 2;  ///< with 64 registers per thread

struct TensorTable {
  const uint64_t* data;          ///< for an empty tensor: 1 + the index of the tensor whose row it repeats, or 0
  const uint32_t* first_unit;    ///< [tensors + 1]; that of an empty tensor is its successor's
  const uint32_t* last_unit;     ///< bytes of the tensor's last unit * 8 + dtype
  const uint32_t* first_tensor;  ///< [spans + 1], that of the span's first unit; where there is none, the last tensor
  uint32_t* arrived;             ///< [blocks + 1], zero before and after every kernel
  uint32_t tensors, units;
};

/// The division of units into spans.
struct Spans {
  uint32_t units, longer;  ///< units of a span, and the number of spans that have one more

  GRADKERN_HD uint32_t begin(uint32_t span) const { return span * units + (span < longer ? span : longer); }
  GRADKERN_HD uint32_t of_unit(uint32_t unit) const {
    const uint32_t in_longer = longer * (units + 1);
    const bool is_longer = unit < in_longer;  // one division: it is long
    return (is_longer ? 0 : longer) + (is_longer ? unit : unit - in_longer) / (units + is_longer);
  }
};

inline Spans spans_of(uint32_t units, uint32_t blocks) { return {units / (blocks * kWarps), units % (blocks * kWarps)}; }

/// The number of blocks for a list: enough for one warp per unit, but no more than can be resident.
inline uint32_t blocks_for(uint32_t units, int multiprocessors) {
  const uint32_t resident = uint32_t(multiprocessors) * kBlocksPerMultiprocessor, wanted = (units + kWarps - 1) / kWarps;
  return wanted < 1 ? 1 : wanted < resident ? wanted : resident;
}

/// One tensor's part of a span: its units [begin, end), counted from its own start.
struct Segment {
  uint64_t data;
  uint32_t tensor, begin, end;
  uint32_t first_unit;   ///< of the tensor, in the list
  uint32_t units;        ///< of the whole tensor
  uint32_t last_bytes;   ///< of its last unit
  DType dtype;

  GRADKERN_HD uint32_t unit_bytes(uint32_t unit) const { return unit + 1 == units ? last_bytes : kUnitBytes; }
};

GRADKERN_HD int64_t numel_of(uint32_t units, uint32_t last_unit) {
  const uint64_t bytes = (uint64_t(units - 1) << kUnitLog2) + (last_unit >> 3);
  return int64_t(bytes >> itemsize_log2(DType(last_unit & 7u)));
}

/// Calls visit(segment) for the tensors of a span, in order or from the last to the first.
template <bool kBackwards, class Visit>
__device__ __forceinline__ void for_each_segment(const TensorTable& table, const Spans& spans, uint32_t span, const Visit& visit) {
  const uint32_t begin = spans.begin(span), end = spans.begin(span + 1);
  if (begin >= end) return;
  // Backwards from the tensor of the next span's first unit, which may begin there.
#pragma unroll 1
  for (uint32_t tensor = table.first_tensor[kBackwards ? span + 1 : span];; tensor = kBackwards ? tensor - 1 : tensor + 1) {
    // All of an entry is loaded at once. Without `volatile` the compiler moves two of the loads into the branch, where they
    // wait for the others.
    const uint64_t data = *const_cast<const volatile uint64_t*>(table.data + tensor);
    const uint32_t last = *const_cast<const volatile uint32_t*>(table.last_unit + tensor);
    const uint32_t first = table.first_unit[tensor], next = table.first_unit[tensor + 1];
    if (next != first && (!kBackwards || first < end))
      visit(Segment{data, tensor, begin > first ? begin - first : 0, (end < next ? end : next) - first, first, next - first,
                    last >> 3, DType(last & 7u)});
    if (kBackwards ? first <= begin : next >= end) return;
  }
}

// ------------------------------------------------------------------------------- host

/// The table of a list on the device, copied there if necessary (tensor_table.cu). Kernels must be launched on the
/// list's stream during its lifetime, in which no other thread changes the table.
class TableOnDevice {
 public:
  /// During a capture the table is in `workspace`, of table_workspace_bytes(list) bytes.
  TableOnDevice(const TensorList& list, const ListPlan& plan, void* workspace, size_t workspace_bytes, const char* operation);

  TensorTable table;
  uint32_t blocks;  ///< of a grid over the list

 private:
  std::unique_lock<std::mutex> alone_;
};

/// Bytes of workspace for the table. 0 outside a capture.
size_t table_workspace_bytes(const TensorList& list);

}  // namespace gradkern::cuda
