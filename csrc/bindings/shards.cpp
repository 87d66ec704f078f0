#include "bindings/shards.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include "bindings/cuda_backend.h"
#include "bindings/library.h"
#include "bindings/thread_pool.h"

namespace gradkern {

PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor) {
  if (cuda_backend::handles(grads))
    return cuda_backend::packed_partials(site, grads, norm_type, count_zeros, per_tensor);
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const int64_t rows = per_tensor ? int64_t(grads.size()) : 0;
  const PackedPartials out{at::empty({rows + 1, kPackedSums}, at::kDouble),
                           at::empty({rows + 1, kPackedKeys}, at::kLong)};
  gradkern_measure measure{};
  measure.norm_type = norm_type;
  measure.inv_scale = 1;
  measure.count_zeros = count_zeros;
  measure.results.packed_sums = pointer<double>(out.sums);
  measure.results.packed_keys = pointer<int64_t>(out.keys);
  measure.results.packed_rows = per_tensor;
  const gradkern_list list = as_list(prepared.refs, prepared.any_duplicate ? &prepared.first : nullptr);
  const gradkern_pool pool = intraop_pool();
  check_library(gradkern_cpu_measure(&list, &measure, &pool));
  return out;
}

}  // namespace gradkern
