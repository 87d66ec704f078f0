#include "bindings/shards.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "bindings/cuda_backend.h"
#include "bindings/thread_pool.h"
#include "cpu/driver.h"
#include "cpu/floating_point_mode.h"

namespace gradkern {
PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor) {
  if (cuda_backend::handles(grads))
    return cuda_backend::packed_partials(site, grads, norm_type, count_zeros, per_tensor);
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const ChunkPlan plan(prepared.refs.data(), int64_t(prepared.refs.size()));
  const cpu::MeasureOptions options{norm_order(norm_type), count_zeros};
  std::vector<Partial> partials(grads.size());
  const Partial total = cpu::measure(plan, options, intraop_pool(), partials.data());

  cpu::ScopedFloatingPointMode exact(cpu::FloatingPointMode::exact());
  const int64_t rows = per_tensor ? int64_t(grads.size()) : 0;
  PackedPartials out{at::empty({rows + 1, kPackedSums}, at::kDouble),
                     at::empty({rows + 1, kPackedKeys}, at::kLong)};
  double* sums = out.sums.mutable_data_ptr<double>();
  int64_t* keys = out.keys.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i)
    pack(options.order, partials[size_t(prepared.first[size_t(i)])], sums + i * kPackedSums,
         keys + i * kPackedKeys);
  pack(options.order, total, sums + rows * kPackedSums, keys + rows * kPackedKeys);
  return out;
}

}  // namespace gradkern
