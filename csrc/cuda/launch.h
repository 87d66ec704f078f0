// The interface of the CUDA kernels: functions that take raw pointers and a stream, and launch kernels. They do not
// allocate result memory, wait for the device or use torch. All can be captured in a CUDA graph.
//
// A clip is `launch_measure` followed by `launch_scale` on the same stream, one kernel each for any number of
// tensors; `launch_clip` is both. If the list has changed since its last call on the stream, an asynchronous copy of the
// tensor table comes first. During a capture, kernels write the table instead, 32 KB each (tensor_table.cu).
#pragma once

#include <cstddef>

#include "core/clip.h"
#include "core/dtype.h"
#include "core/norm.h"
#include "core/policies.h"
#include "cuda/list_plan.h"

namespace gradkern::cuda {

struct MeasureOptions {
  NormOrder order;
  bool count_zeros = false;
};

/// Where results are written: device memory, any of which may be null. "real" is double if `is_double`, else float.
/// `is_double` should be set if any tensor of the call is float64 or complex128.
struct MeasureResults {
  bool is_double = false;
  void* norm = nullptr;               ///< real [count], of options.order
  void* l2 = nullptr;                 ///< real [count]
  void* max_abs = nullptr;            ///< real [count]
  int64_t* nonfinite = nullptr;       ///< [count]
  int64_t* zeros = nullptr;           ///< [count], written if options.count_zeros
  void* total_norm = nullptr;         ///< real, before clipping
  double* decision_norm = nullptr;    ///< the norm that launch_scale uses, see core/clip.h
  void* clip_coef = nullptr;          ///< real, from decide_clip(): 1 if nothing is clipped
  int64_t* total_nonfinite = nullptr; ///< one number
  bool* skip_step = nullptr;          ///< whether total_nonfinite > 0
  Partial* total = nullptr;           ///< for launch_combine, before inv_scale
  // For other ranks (core/packed.h), before inv_scale: one row per tensor if packed_rows, then one row of the whole list.
  double* packed_sums = nullptr;
  int64_t* packed_keys = nullptr;
  bool packed_rows = false;
};

struct MeasureLaunch {
  TensorList list;
  MeasureOptions options;
  double max_norm = 0;   ///< for clip_coef only, like on_nonfinite
  OnNonfinite on_nonfinite = OnNonfinite::kPropagate;
  double inv_scale = 1;  ///< norms and magnitudes are multiplied by its absolute value
  MeasureResults results;
  void* workspace = nullptr;  ///< device memory, 16-byte aligned, not used by another stream
  size_t workspace_bytes = 0;
};

/// Bytes of workspace that launch_measure needs for this list, and that launch_scale and launch_clamp need (0 unless the
/// stream is being captured). Calls that may run concurrently (two streams, two graphs) must not share a workspace. It
/// needs no initialization, and may be freed in stream order after the call.
size_t measure_workspace_bytes(const TensorList& list, const MeasureOptions& options);
size_t write_workspace_bytes(const TensorList& list);

void launch_measure(const MeasureLaunch& launch);

/// For calls with several devices: combines their `total`, copied to one device in a fixed order, into total_norm,
/// decision_norm, clip_coef, total_nonfinite and skip_step of `results`.
struct CombineLaunch {
  const Partial* totals = nullptr;  ///< [count], device memory
  int64_t count = 0;
  int device = 0;
  cudaStream_t stream = nullptr;
  NormOrder order;
  double max_norm = 0;
  OnNonfinite on_nonfinite = OnNonfinite::kPropagate;
  double inv_scale = 1;
  MeasureResults results;
};
void launch_combine(const CombineLaunch& launch);

/// Applies decide_clip(max_norm, *total_norm, *total_nonfinite, on_nonfinite), computed on the device in double, with
/// the same bits as csrc/cpu. Writes nothing if there is nothing to change.
/// If `factor` is given, every element is multiplied by *factor, or those of tensor i by factor[i] if
/// factor_per_tensor. If *zero is true, every element is set to zero instead. The other members are then ignored.
struct ScaleLaunch {
  TensorList list;
  const double* factor = nullptr;    ///< device memory, like zero, total_norm and total_nonfinite
  bool factor_per_tensor = false;
  const bool* zero = nullptr;
  const void* total_norm = nullptr;  ///< double if total_norm_is_double, else float
  bool total_norm_is_double = false;
  double max_norm = 0;
  OnNonfinite on_nonfinite = OnNonfinite::kPropagate;
  const int64_t* total_nonfinite = nullptr;  ///< required unless on_nonfinite is kPropagate
  void* workspace = nullptr;  ///< as for launch_measure, of write_workspace_bytes()
  size_t workspace_bytes = 0;
};
void launch_scale(const ScaleLaunch& launch);

/// launch_measure(measure) and then launch_scale(scale) over one table. The list and the workspace are those of `measure`.
void launch_clip(const MeasureLaunch& measure, const ScaleLaunch& scale);

/// x = clamp(x, -limit, limit). Writes only the 16-byte vectors in which an element changes. No complex tensors.
struct ClampLaunch {
  TensorList list;
  double limit = 0;
  void* workspace = nullptr;  ///< as for ScaleLaunch
  size_t workspace_bytes = 0;
};
void launch_clamp(const ClampLaunch& launch);

/// Adaptive gradient clipping: limits the gradient of every unit by unit_factor() of core/policies.h. The weights and the
/// gradients are read once, and units whose factor is not 1 are written.
struct AgcLaunch {
  const UnitsRef* list = nullptr;  ///< [count], host memory, read during the call only; entries may be empty
  int64_t count = 0;
  double clip_factor = 0, eps = 0;
  double* norms = nullptr;  ///< [2 * count], device memory: L2 norms of the gradients before, then after
  int device = 0;
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;  ///< as for launch_measure, of agc_workspace_bytes()
  size_t workspace_bytes = 0;
};
size_t agc_workspace_bytes(const AgcLaunch& launch);
void launch_agc(const AgcLaunch& launch);

/// One step of an adaptive policy. Its pointers are device memory.
void launch_policy(const PolicyStep& step, int device, cudaStream_t stream);

/// Whether work on the stream is being captured into a CUDA graph.
bool is_capturing(int device, cudaStream_t stream);

}  // namespace gradkern::cuda
