// Writes the results of a tensor and of the whole list.
#pragma once

#include "core/clip.h"
#include "core/packed.h"
#include "cuda/launch.h"
#include "cuda/sums.h"
#include "cuda/vector_io.h"

namespace gradkern::cuda {

/// Where results are written, and the parameters they depend on.
struct Reporting {
  MeasureResults results;
  NormOrder order;
  double max_norm;
  double inv_scale;  ///< not negative
  OnNonfinite on_nonfinite;
};

__device__ __forceinline__ void store_real(void* to, int64_t i, double value, bool is_double) {
  if (!to) return;
  if (is_double) global(static_cast<double*>(to))[i] = value;
  else global(static_cast<float*>(to))[i] = float(value);
}

/// The norm times inv_scale. A count (order 0) is not scaled. `l2` is the L2 norm.
template <Pass kPass>
__device__ __forceinline__ double scaled_norm(const NormOrder& order, const Partial& s, double l2, double inv_scale) {
  const double norm = norm_of<kPass>(order, s, l2);
  return order.kind == NormKind::kZero ? norm : norm * inv_scale;
}

/// Writes row `row` of the packed results for other ranks.
__device__ __forceinline__ void store_packed(const Reporting& p, const NormOrder order, int64_t row, const Partial s) {
  pack(order, s, global(p.results.packed_sums) + row * kPackedSums, global(p.results.packed_keys) + row * kPackedKeys);
}

/// `norm` is that of the order, scaled.
__device__ __forceinline__ void store_row(const Reporting& p, uint32_t tensor, double norm, double l2, const Partial& s) {
  const MeasureResults r = p.results;
  store_real(r.norm, tensor, norm, r.is_double);
  if (r.l2 != r.norm) store_real(r.l2, tensor, l2 * p.inv_scale, r.is_double);
  store_real(r.max_abs, tensor, max_abs(s) * p.inv_scale, r.is_double);
  if (r.nonfinite) global(r.nonfinite)[tensor] = s.nonfinite;
  if (r.zeros) global(r.zeros)[tensor] = s.zeros;
}

__device__ __forceinline__ void store_total(const Reporting& p, double norm, const Partial& s) {
  const MeasureResults r = p.results;
  const double total = decision_norm(norm, r.is_double);
  const ClipDecision decision = decide_clip(p.max_norm, total, s.nonfinite, p.on_nonfinite);
  store_real(r.total_norm, 0, total, r.is_double);
  store_real(r.decision_norm, 0, total, true);
  store_real(r.clip_coef, 0, decision.coef, r.is_double);
  if (r.total_nonfinite) *global(r.total_nonfinite) = s.nonfinite;
  if (r.skip_step) *global(r.skip_step) = s.nonfinite > 0;
  if (r.total) *global(r.total) = s;
}

/// Copies the row of a tensor that is listed twice: of each array so many 32-bit words.
__device__ __forceinline__ void repeat_row(const MeasureResults& r, int64_t from, int64_t to) {
  const int real = r.is_double ? 2 : 1;
#pragma unroll 1
  for (int array = 0; array < (r.packed_rows ? 7 : 5); ++array) {
    int words = real;
    void* rows = array == 0 ? r.norm : array == 1 ? r.l2 : r.max_abs;
    if (array >= 3) words = 2, rows = array == 3 ? r.nonfinite : r.zeros;
    if (array == 5) words = 2 * kPackedSums, rows = r.packed_sums;
    if (array == 6) words = 2 * kPackedKeys, rows = r.packed_keys;
    if (!rows) continue;
    uint32_t* all = global(static_cast<uint32_t*>(rows));
#pragma unroll 1
    for (int i = 0; i < words; ++i) all[to * words + i] = all[from * words + i];
  }
}

/// Writes the rows of tensors that were listed before, in one block.
inline __device__ GRADKERN_NOINLINE void repeat_rows(const MeasureResults& r, const TensorTable& t) {
  for (uint32_t i = threadIdx.x; i < t.tensors; i += kThreads) {
    const uint64_t source = t.first_unit[i] == t.first_unit[i + 1] ? t.data[i] : 0;
    if (source != 0 && source - 1 != i) repeat_row(r, int64_t(source) - 1, i);
  }
}

}  // namespace gradkern::cuda
