// The kernels that write: scaling by the clip coefficient, and clamping to a limit.
#include <array>
#include <atomic>

#include "core/clip.h"
#include "cuda/elements.h"
#include "cuda/on_table.h"
#include "cuda/usable.h"
#include "cuda/warp.h"

namespace gradkern::cuda {
namespace {

struct ScaleParams {
  TensorTable table;
  Spans spans;
  const double* factor;
  const bool* zero;
  const void* total_norm;
  const int64_t* total_nonfinite;
  double max_norm;
  bool total_norm_is_double;
  bool factor_per_tensor;
  OnNonfinite on_nonfinite;
};

struct ClampParams {
  TensorTable table;
  Spans spans;
  double limit;
};

/// The decision, from numbers on the device. Every thread reads them.
__device__ __forceinline__ ClipDecision decide(const ScaleParams& p) {
  if (p.zero && *p.zero) return {ClipAction::kZero, 0.0};
  if (p.factor) return decide_factor(*p.factor);
  const double total = p.total_norm_is_double ? *static_cast<const double*>(p.total_norm)
                                              : double(*static_cast<const float*>(p.total_norm));
  const int64_t nonfinite = p.total_nonfinite ? *p.total_nonfinite : 0;
  return decide_clip(p.max_norm, total, nonfinite, p.on_nonfinite);
}

/// Calls body(unit) for the units of a segment, from the last to the first.
template <class Body>
__device__ __forceinline__ void for_each_unit_backwards(const Segment& s, const Body& body) {
#pragma unroll 1
  for (uint32_t unit = s.end; unit-- > s.begin;) body(unit);
}

/// scaled() of core/clip.h with the conversions of elements.h, for a coefficient in float32's normal range.
template <class T>
__device__ __forceinline__ T scale_one(T x, double coef) {
  if constexpr (sizeof(T) == 2) return narrow<T>(widen(x) * float(coef));
  else return scaled(x, coef);
}

/// The same for the 16-bit types and smaller coefficients, which need a product in float64.
template <class T>
__device__ __forceinline__ T scale_one_exactly(T x, double coef) {
  return narrow<T>(float(double(widen(x)) * coef));
}

template <class T>
__device__ __forceinline__ void scale_segment(const Segment& s, double coef) {
  const auto scale_vector = [&](uint4& v, const auto& one) {
#pragma unroll
    for (int i = 0; i < int(kVectorBytes / sizeof(T)); ++i)
      set_element(v, i, one(element<T>(v, i), coef));
    return true;
  };
  if constexpr (sizeof(T) == 2) {
    // One load at a time: this is rare, and there are not enough registers for the float64 products of four.
    if (below_float(coef))
      return for_each_unit_backwards(s, [&](uint32_t unit) {
        char* data = reinterpret_cast<char*>(s.data) + (uint64_t(unit) << kUnitLog2);
        rewrite_unit_slowly(data, s.unit_bytes(unit), [&](uint4& v) { return scale_vector(v, scale_one_exactly<T>); });
      });
  }
  for_each_unit_backwards(s, [&](uint32_t unit) {
    rewrite_unit<T>(s, unit, [&](uint4& v) { return scale_vector(v, scale_one<T>); });
  });
}

__device__ __forceinline__ void scale_segment(const Segment& s, double coef) {
  switch (s.dtype) {
    case DType::kFloat32:
    case DType::kComplex64: return scale_segment<float>(s, coef);  // the coefficient is real
    case DType::kBFloat16: return scale_segment<BFloat16>(s, coef);
    case DType::kFloat16: return scale_segment<Float16>(s, coef);
    case DType::kFloat64:
    case DType::kComplex128: return scale_segment<double>(s, coef);
  }
}

__device__ __forceinline__ void zero_segment(const Segment& s) {
  for_each_unit_backwards(s, [&](uint32_t unit) {
    rewrite_unit<uint16_t>(s, unit, [](uint4& v) {
      v = zero_vector();
      return true;
    });
  });
}

/// The spans of the measure kernel, each from its end, because its warps have read that last and it may still be in L2.
template <class Params, class Body>
__device__ __forceinline__ void for_each_segment_backwards(const Params& p, const Body& body) {
  for_each_segment<true>(p.table, p.spans, blockIdx.x * kWarps + threadIdx.x / kWarpSize, body);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) scale_kernel(const __grid_constant__ ScaleParams p) {
  wait_for_kernel_before();
  const ClipDecision decision = decide(p);
  const bool each = p.factor_per_tensor && decision.action != ClipAction::kZero;
  if (decision.action == ClipAction::kNone && !each) return;
  for_each_segment_backwards(p, [&](const Segment& s) {
    const ClipDecision own = each ? decide_factor(p.factor[s.tensor]) : decision;
    if (own.action == ClipAction::kScale) scale_segment(s, own.coef);
    else if (own.action == ClipAction::kZero) zero_segment(s);
  });
}

template <class T>
__device__ __forceinline__ bool clamp_one(T& x, double limit) {
  if constexpr (sizeof(T) == 8) {
    if (!(x > limit || x < -limit)) return false;
    x = clamped(x, limit);
  } else {
    const float value = widen(x), bound = float(limit);
    if (!(value > bound || value < -bound)) return false;
    x = narrow<T>(clamped(value, bound));
  }
  return true;
}

template <class T>
__device__ __forceinline__ void clamp_segment(const Segment& s, double limit) {
  for_each_unit_backwards(s, [&](uint32_t unit) {
    rewrite_unit<T>(s, unit, [&](uint4& v) {
      bool changed = false;
#pragma unroll
      for (int i = 0; i < int(kVectorBytes / sizeof(T)); ++i) {
        T x = element<T>(v, i);
        if (!clamp_one(x, limit)) continue;
        set_element(v, i, x);
        changed = true;
      }
      return changed;
    });
  });
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) clamp_kernel(const __grid_constant__ ClampParams p) {
  for_each_segment_backwards(p, [&](const Segment& s) {
    switch (s.dtype) {
      case DType::kFloat32: return clamp_segment<float>(s, p.limit);
      case DType::kBFloat16: return clamp_segment<BFloat16>(s, p.limit);
      case DType::kFloat16: return clamp_segment<Float16>(s, p.limit);
      case DType::kFloat64: return clamp_segment<double>(s, p.limit);
      case DType::kComplex64:
      case DType::kComplex128: return;  // complex numbers have no order; the launcher refuses them
    }
  });
}

// ------------------------------------------------------------------------------- launchers

constexpr const char* kScale = "scale";

#if CUDART_VERSION >= 12030
constexpr int kEarlyStartDriver = 12030;  ///< supports early starts in captures, too

/// Whether the scale kernel may be launched early. Its code on this device must wait for the previous kernel, which code
/// compiled from PTX of an older architecture does not do. Determined once per device.
bool may_start_early(int device) {
  enum : signed char { kUnknown, kYes, kNo };
  static std::array<std::atomic<signed char>, 64> known{};
  if (size_t(device) >= known.size()) return false;
  if (known[size_t(device)] == kUnknown) {
    cudaFuncAttributes attributes;
    const bool waits = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(scale_kernel)) == cudaSuccess &&
                       attributes.ptxVersion >= 90;
    known[size_t(device)] = waits && driver_version(kScale) >= kEarlyStartDriver ? kYes : kNo;
  }
  return known[size_t(device)] == kYes;
}
#endif

void check(const ScaleLaunch& launch) {
  require(launch.factor || launch.total_norm, "expected total_norm, got a null pointer", kScale);
  require(launch.on_nonfinite == OnNonfinite::kPropagate || launch.total_nonfinite,
          "expected total_nonfinite with this on_nonfinite, got a null pointer", kScale);
  require(launch.factor || !launch.factor_per_tensor, "expected factor, got a null pointer", kScale);
}

}  // namespace

size_t write_workspace_bytes(const TensorList& list) { return table_workspace_bytes(list); }

void launch_scale_on(const ScaleLaunch& launch, const TensorTable& table, uint32_t blocks) {
  constexpr const char* kName = "cudaLaunchKernel(scale_kernel)";
  const TensorList& list = launch.list;
  const ScaleParams p{table,           spans_of(table.units, blocks), launch.factor,
                      launch.zero,     launch.total_norm,             launch.total_nonfinite,
                      launch.max_norm, launch.total_norm_is_double,   launch.factor_per_tensor,
                      launch.on_nonfinite};
#if CUDART_VERSION >= 12030
  if (may_start_early(list.device))
    return launch_kernel_early(scale_kernel, blocks, kThreads, list.stream, p, kName, kScale);
#endif
  launch_kernel(scale_kernel, blocks, kThreads, list.stream, p, kName, kScale);
}

void launch_scale(const ScaleLaunch& launch) {
  check(launch);
  const TensorList& list = launch.list;
  const ListPlan plan = list.planned(kScale);
  DeviceGuard guard(list.device, kScale);
  if (plan.units == 0) return;
  const TableOnDevice on_device(list, plan, launch.workspace, launch.workspace_bytes, kScale);
  launch_scale_on(launch, on_device.table, on_device.blocks);
}

void launch_clip(const MeasureLaunch& measure, const ScaleLaunch& scale) {
  constexpr const char* kOperation = "clip";
  check(scale);
  const TensorList& list = measure.list;
  const ListPlan plan = list.planned(kOperation);
  DeviceGuard guard(list.device, kOperation);
  const size_t records = records_bytes(plan.units, list.device, measure.options);
  require(measure.workspace && records <= measure.workspace_bytes,
          "the workspace is smaller than measure_workspace_bytes() asks for", kOperation);
  const TableOnDevice on_device(list, plan, static_cast<char*>(measure.workspace) + records, measure.workspace_bytes - records,
                                kOperation);
  launch_measure_on(measure, plan, on_device.table, on_device.blocks);
  ScaleLaunch placed = scale;
  placed.list = list;
  if (plan.units) launch_scale_on(placed, on_device.table, on_device.blocks);
}

void launch_clamp(const ClampLaunch& launch) {
  constexpr const char* kOperation = "clamp";
  const TensorList& list = launch.list;
  for (int64_t i = 0; i < list.count; ++i)
    require(!is_complex(list.tensors[i].dtype) || list.tensors[i].numel == 0,
            "expected real tensors, got a complex one", kOperation);
  const ListPlan plan = list.planned(kOperation);
  DeviceGuard guard(list.device, kOperation);
  if (plan.units == 0) return;
  const TableOnDevice on_device(list, plan, launch.workspace, launch.workspace_bytes, kOperation);
  const ClampParams p{on_device.table, spans_of(plan.units, on_device.blocks), launch.limit};
  launch_kernel(clamp_kernel, on_device.blocks, kThreads, list.stream, p, "cudaLaunchKernel(clamp_kernel)", kOperation);
}

cudaError_t load_write_kernels() { return load_kernels(scale_kernel, clamp_kernel); }

}  // namespace gradkern::cuda
