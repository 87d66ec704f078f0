// The two kernels that write: scaling by the clip coefficient and clamping to a limit.
#include "core/clip.h"
#include "cuda/elements.h"
#include "cuda/launch.h"

namespace gradkern::cuda {
namespace {

struct ScaleHeader {
  const double* factor;  ///< of the table's first tensor, if factor_per_tensor
  const bool* zero;
  const void* total_norm;
  const int64_t* total_nonfinite;
  double max_norm;
  bool total_norm_is_double;
  bool factor_per_tensor;
  OnNonfinite on_nonfinite;

  /// The header of a table that begins `tensors` further on in the list.
  ScaleHeader advanced(int64_t tensors) const {
    ScaleHeader next = *this;
    if (factor_per_tensor) next.factor += tensors;
    return next;
  }
};

struct ClampHeader {
  double limit;

  ClampHeader advanced(int64_t) const { return *this; }
};

/// What the device-side numbers ask for; every thread reads them, the host never does.
__device__ __forceinline__ ClipDecision decide(const ScaleHeader& h) {
  if (h.zero && *h.zero) return {ClipAction::kZero, 0.0};
  if (h.factor) return decide_factor(*h.factor);
  const double total = h.total_norm_is_double ? *static_cast<const double*>(h.total_norm)
                                              : double(*static_cast<const float*>(h.total_norm));
  const int64_t nonfinite = h.total_nonfinite ? *h.total_nonfinite : 0;
  return decide_clip(h.max_norm, total, nonfinite, h.on_nonfinite);
}

/// scaled() of core/clip.h for a coefficient within float32's range, by the machine's own conversions.
template <class T>
__device__ __forceinline__ T scale_one(T x, double coef) {
  if constexpr (sizeof(T) == 2) return narrow<T>(widen(x) * float(coef));
  else return scaled(x, coef);
}

/// scaled() of core/clip.h with the machine's own conversions, for the 16-bit types and the
/// coefficients that take float64.
template <class T>
__device__ __forceinline__ T scale_one_exactly(T x, double coef) {
  return narrow<T>(float(double(widen(x)) * coef));
}

template <class T>
__device__ __forceinline__ void scale_chunk(const ChunkView& chunk, double coef) {
  char* data = reinterpret_cast<char*>(chunk.data);
  const auto scale_vector = [&](uint4& v, const auto& one) {
#pragma unroll
    for (int i = 0; i < int(kVectorBytes / sizeof(T)); ++i)
      set_element(v, i, one(element<T>(v, i), coef));
    return true;
  };
  if constexpr (sizeof(T) == 2) {
    // One load at a time: rare, and the batch's registers would not hold the float64 products.
    if (below_float(coef))
      return rewrite_chunk_slowly(data, chunk.bytes,
                                  [&](uint4& v) { scale_vector(v, scale_one_exactly<T>); });
  }
  rewrite_chunk(data, chunk.bytes, [&](uint4& v) { return scale_vector(v, scale_one<T>); });
}

__device__ __forceinline__ void scale_chunk(const ChunkView& chunk, double coef) {
  switch (chunk.dtype) {
    case DType::kFloat32:
    case DType::kComplex64: return scale_chunk<float>(chunk, coef);  // both parts alike
    case DType::kBFloat16: return scale_chunk<BFloat16>(chunk, coef);
    case DType::kFloat16: return scale_chunk<Float16>(chunk, coef);
    case DType::kFloat64:
    case DType::kComplex128: return scale_chunk<double>(chunk, coef);
  }
}

__device__ __forceinline__ void zero_chunk(const ChunkView& chunk) {
  rewrite_chunk(reinterpret_cast<char*>(chunk.data), chunk.bytes, [](uint4& v) {
    v = zero_vector();
    return true;
  });
}

/// Last chunk first: the measure kernel's last reads are what is still in L2.
template <class Params, class Body>
__device__ __forceinline__ void for_each_chunk_backwards(const Params& p, const Body& body) {
  const uint32_t chunks = p.chunks();
  for (uint32_t i = blockIdx.x; i < chunks; i += gridDim.x)
    body(chunk_view(p, chunks - 1 - i));
}

template <int kBytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    scale_kernel(const __grid_constant__ TableParams<ScaleHeader, kBytes> p) {
  ClipDecision decision = decide(p.header);
  const bool each = p.header.factor_per_tensor && decision.action != ClipAction::kZero;
  if (decision.action == ClipAction::kNone && !each) return;
  for_each_chunk_backwards(p, [&](const ChunkView& chunk) {
    if (each) decision = decide_factor(p.header.factor[chunk.tensor]);
    if (decision.action == ClipAction::kScale) scale_chunk(chunk, decision.coef);
    else if (decision.action == ClipAction::kZero) zero_chunk(chunk);
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
__device__ __forceinline__ void clamp_chunk(const ChunkView& chunk, double limit) {
  rewrite_chunk(reinterpret_cast<char*>(chunk.data), chunk.bytes, [&](uint4& v) {
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
}

template <int kBytes>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    clamp_kernel(const __grid_constant__ TableParams<ClampHeader, kBytes> p) {
  const double limit = p.header.limit;
  for_each_chunk_backwards(p, [&](const ChunkView& chunk) {
    switch (chunk.dtype) {
      case DType::kFloat32: return clamp_chunk<float>(chunk, limit);
      case DType::kBFloat16: return clamp_chunk<BFloat16>(chunk, limit);
      case DType::kFloat16: return clamp_chunk<Float16>(chunk, limit);
      case DType::kFloat64: return clamp_chunk<double>(chunk, limit);
      case DType::kComplex64:
      case DType::kComplex128: return;  // no order on complex numbers; refused by the launcher
    }
  });
}

// ------------------------------------------------------------------------------- launchers

template <int kBytes>
void launch_one(const TableParams<ScaleHeader, kBytes>& p, unsigned blocks, cudaStream_t stream) {
  launch_kernel(scale_kernel<kBytes>, blocks, kThreads, stream, p,
                "cudaLaunchKernel(scale_kernel)", "scale");
}
template <int kBytes>
void launch_one(const TableParams<ClampHeader, kBytes>& p, unsigned blocks, cudaStream_t stream) {
  launch_kernel(clamp_kernel<kBytes>, blocks, kThreads, stream, p,
                "cudaLaunchKernel(clamp_kernel)", "clamp");
}

template <int... kTableSizes, class Header>
void launch_all(const TensorList& list, const Header& header, const char* operation) {
  const ChunkBytes chunk_bytes = list.planned(operation).chunk_bytes;
  DeviceGuard guard(list.device, operation);
  const int processors = multiprocessors(list.device, operation);
  for (int64_t done = 0; done < list.count;) {
    with_smallest_table<Header, kTableSizes...>(list.count - done, [&](auto& p) {
      p.header = header.advanced(done);
      done += fill_table(p, list.tensors + done, list.count - done, chunk_bytes);
      if (p.chunks()) launch_one(p, grid_for(p.chunks(), processors), list.stream);
    });
  }
}

}  // namespace

void launch_scale(const ScaleLaunch& launch) {
  require(launch.factor || launch.total_norm, "expected total_norm, got a null pointer", "scale");
  require(launch.on_nonfinite == OnNonfinite::kPropagate || launch.total_nonfinite,
          "expected total_nonfinite with this on_nonfinite, got a null pointer", "scale");
  require(launch.factor || !launch.factor_per_tensor, "expected factor, got a null pointer", "scale");
  const ScaleHeader header{.factor = launch.factor,
                           .zero = launch.zero,
                           .total_norm = launch.total_norm,
                           .total_nonfinite = launch.total_nonfinite,
                           .max_norm = launch.max_norm,
                           .total_norm_is_double = launch.total_norm_is_double,
                           .factor_per_tensor = launch.factor_per_tensor,
                           .on_nonfinite = launch.on_nonfinite};
  launch_all<1024, 4096, kHalfTable, kLargestTable>(launch.list, header, "scale");
}

void launch_clamp(const ClampLaunch& launch) {
  for (int64_t i = 0; i < launch.list.count; ++i)
    require(!is_complex(launch.list.tensors[i].dtype) || launch.list.tensors[i].numel == 0,
            "expected real tensors, got a complex one", "clamp");
  launch_all<4096, kLargestTable>(launch.list, ClampHeader{launch.limit}, "clamp");
}

}  // namespace gradkern::cuda
