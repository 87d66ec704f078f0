// The CUDA backend as the bindings see it: raw pointers and a stream in, launches out. Nothing here
// allocates, waits for the device or knows torch; everything may be captured in a CUDA graph.
//
// A clip is `launch_measure` and then `launch_scale` on the same stream: one kernel each, for any number of
// tensors. Where the list has changed since its last call on the stream, an asynchronous copy comes first; in
// a capture, kernels that write the table (tensor_table.cu), one for every ~2,000 tensors.
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

/// Where results go, all device memory. "real" is double if `is_double`, else float; it should be
/// set whenever any tensor of the call is float64 or complex128. Any pointer may be null.
struct MeasureResults {
  bool is_double = false;
  void* norm = nullptr;               ///< real [count], of the order asked for
  void* l2 = nullptr;                 ///< real [count]
  void* max_abs = nullptr;            ///< real [count]
  int64_t* nonfinite = nullptr;       ///< [count]
  int64_t* zeros = nullptr;           ///< [count], filled if options.count_zeros
  void* total_norm = nullptr;         ///< real, before clipping
  double* decision_norm = nullptr;    ///< what launch_scale decides on, see core/clip.h
  void* clip_coef = nullptr;          ///< real, decide_clip()'s: 1 where nothing is to be clipped
  int64_t* total_nonfinite = nullptr; ///< one number
  bool* skip_step = nullptr;          ///< whether total_nonfinite is not zero
  Partial* total = nullptr;           ///< for launch_combine, before inv_scale
  // For ranks (core/packed.h), before inv_scale: one row of the whole list, after one a tensor if
  // packed_rows.
  double* packed_sums = nullptr;
  int64_t* packed_keys = nullptr;
  bool packed_rows = false;
};

struct MeasureLaunch {
  TensorList list;
  MeasureOptions options;
  double max_norm = 0;   ///< for clip_coef only, as is on_nonfinite
  OnNonfinite on_nonfinite = OnNonfinite::kPropagate;
  double inv_scale = 1;  ///< norms and magnitudes are multiplied by its absolute value
  MeasureResults results;
  void* workspace = nullptr;  ///< device memory, 16-byte aligned, for this stream order alone
  size_t workspace_bytes = 0;
};

/// Bytes of workspace that launch_measure needs for this list, and launch_scale and launch_clamp (none, unless the
/// stream is being captured). One workspace must not be used by two calls that may run at the same time (two
/// streams, two graphs); its contents need no preparation and may be dropped in stream order after the call.
size_t measure_workspace_bytes(const TensorList& list, const MeasureOptions& options);
size_t write_workspace_bytes(const TensorList& list);

void launch_measure(const MeasureLaunch& launch);

/// Several devices in one call: combines the `total` of each (copied to one device, in a fixed
/// order) into total_norm, clip_coef, total_nonfinite of `results`.
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

/// Applies decide_clip(max_norm, *total_norm, *total_nonfinite, on_nonfinite), computed on the
/// device in double: the same bits as csrc/cpu. Without anything to do, nothing is written.
/// Where `factor` is given it is what every element is multiplied by (those of tensor i by factor[i] if
/// factor_per_tensor), unless *zero holds, which sets everything to zero; the rest is not looked at.
struct ScaleLaunch {
  TensorList list;
  const double* factor = nullptr;    ///< device memory, as are those below
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

/// x = clamp(x, -limit, limit), writing only the 16-byte words in which something changes. No
/// complex tensors.
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

/// One step of an adaptive policy; every pointer of it is device memory.
void launch_policy(const PolicyStep& step, int device, cudaStream_t stream);

/// Whether work on the stream is being captured into a CUDA graph.
bool is_capturing(int device, cudaStream_t stream);

}  // namespace gradkern::cuda
