// A list of tensors of one device, and how it is cut into units.
#pragma once

#include <cuda_runtime.h>

#include "core/dtype.h"

namespace gradkern::cuda {

/// The unit of work: 8 KiB of a tensor, counted from its start, which one warp reads. Each unit is one term of its
/// tensor's sum, so that a tensor's row does not depend on the other tensors. With larger units, warps would finish at
/// different times. The fixed cost of a unit is a tenth of the whole.
constexpr uint32_t kUnitLog2 = 13;
constexpr uint32_t kUnitBytes = 1u << kUnitLog2;

inline int64_t bytes_of(const TensorRef& t) { return t.numel << itemsize_log2(t.dtype); }
inline int64_t units_of(const TensorRef& t) { return (bytes_of(t) + kUnitBytes - 1) >> kUnitLog2; }

/// The size of a list, computed before a launch. Trivially copyable.
struct ListPlan {
  uint32_t units;
  bool any_empty;   ///< whether there are entries without elements
  bool any_double;  ///< whether there are float64 or complex128 tensors
  int64_t numel;
};

/// Throws if the kernels cannot address a tensor or the list.
ListPlan plan_of(const TensorRef* tensors, int64_t count, const char* operation);

/// A list of tensors on one device. `tensors` is host memory and read during the call only. Its data pointers are
/// device memory, aligned to at least two bytes (16 is fastest). An entry with numel 0 (empty, no gradient) has norm 0
/// and costs nothing. If `first` is given, an entry with numel 0 and first[i] < i reports the row of entry first[i], which
/// totals count once.
struct TensorList {
  const TensorRef* tensors = nullptr;
  int64_t count = 0;
  const int64_t* first = nullptr;
  int device = 0;
  cudaStream_t stream = nullptr;
  const ListPlan* plan = nullptr;  ///< plan_of() this list, to compute it once for several calls

  ListPlan planned(const char* operation) const {
    return plan ? *plan : plan_of(tensors, count, operation);
  }
};

}  // namespace gradkern::cuda
