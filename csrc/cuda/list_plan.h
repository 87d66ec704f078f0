// A list of tensors of one device, and how it is cut into units.
#pragma once

#include <cuda_runtime.h>

#include "core/dtype.h"

namespace gradkern::cuda {

/// The unit of work, which one warp reads, counted from a tensor's own start: one term of its tensor's sum, so that
/// a row depends on nothing but its tensor. Larger ones would leave warps without work beside others
/// that still have some; what a unit costs besides reading is a tenth of it.
constexpr uint32_t kUnitLog2 = 13;
constexpr uint32_t kUnitBytes = 1u << kUnitLog2;

inline int64_t bytes_of(const TensorRef& t) { return t.numel << itemsize_log2(t.dtype); }
inline int64_t units_of(const TensorRef& t) { return (bytes_of(t) + kUnitBytes - 1) >> kUnitLog2; }

/// What is known of a list before it is launched; trivially copyable.
struct ListPlan {
  uint32_t units;
  bool any_empty;  ///< entries without elements, which no unit belongs to
  int64_t numel;
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

}  // namespace gradkern::cuda
