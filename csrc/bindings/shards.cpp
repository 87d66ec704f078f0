#include "bindings/shards.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <limits>
#include <vector>

#include "bindings/thread_pool.h"
#include "core/norm.h"
#include "cpu/driver.h"
#include "cpu/floating_point_mode.h"

namespace gradkern {
namespace {

int64_t ref_key(const NormOrder& order, const Partial& p) {
  if (p.numel == 0) return -1;
  const uint64_t bits = abs_bits(p.power.ref);
  if (bits > kInfBits) return std::numeric_limits<int64_t>::max();
  const bool smallest_dominates = order.kind == NormKind::kNegInf || order.p < 0;
  return int64_t(smallest_dominates ? kInfBits - bits : bits);
}

void pack(const NormOrder& order, const Partial& p, double* sums, int64_t* keys) {
  // Bins beyond +-1 do not occur: combine only moves a sum up to the larger of two bins.
  sums[kSqHi + p.sq.bin + 1] = p.sq.hi;
  // For an infinite or NaN hi, lo is NaN by construction and must not turn inf into NaN.
  sums[kSqLo + p.sq.bin + 1] = is_finite(p.sq.hi) ? p.sq.lo : 0.0;
  sums[kPowerHi] = p.power.hi;
  sums[kPowerLo] = is_finite(p.power.hi) ? p.power.lo : 0.0;
  sums[kNonfinite] = double(p.nonfinite);
  sums[kZeros] = double(p.zeros);
  sums[kNumel] = double(p.numel);
  keys[kMaxBits] = p.numel == 0 ? -1 : int64_t(p.max_bits);
  keys[kRefKey] = ref_key(order, p);
}

}  // namespace

PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor) {
  at::NoGradGuard no_grad;
  const Prepared prepared = prepare(site, grads);
  const ChunkPlan plan(prepared.refs.data(), int64_t(prepared.refs.size()));
  const cpu::MeasureOptions options{norm_order(norm_type), count_zeros};
  std::vector<Partial> partials(grads.size());
  const Partial total = cpu::measure(plan, options, intraop_pool(), partials.data());

  cpu::ScopedFloatingPointMode exact(cpu::FloatingPointMode::exact());
  const int64_t rows = per_tensor ? int64_t(grads.size()) : 0;
  PackedPartials out{at::zeros({rows + 1, kPackedSums}, at::kDouble),
                     at::zeros({rows + 1, kPackedKeys}, at::kLong)};
  double* sums = out.sums.mutable_data_ptr<double>();
  int64_t* keys = out.keys.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i)
    pack(options.order, partials[size_t(prepared.first[size_t(i)])], sums + i * kPackedSums,
         keys + i * kPackedKeys);
  pack(options.order, total, sums + rows * kPackedSums, keys + rows * kPackedKeys);
  return out;
}

}  // namespace gradkern
