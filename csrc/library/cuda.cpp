// The functions gradkern_cuda_*: csrc/cuda behind the C interface.
#include <cstring>
#include <stdexcept>

#include "cuda/launch.h"
#include "cuda/usable.h"
#include "library/guarded.h"
#include "library/types.h"

namespace gradkern::library {
namespace {

static_assert(sizeof(cuda::ListPlan) <= sizeof(gradkern_cuda_plan) && alignof(cuda::ListPlan) <= 8);

cudaStream_t stream_of(const gradkern_cuda_place& place) { return static_cast<cudaStream_t>(place.stream); }

/// A list with its device and stream. The plan is a copy of the caller's.
class PlacedList {
 public:
  PlacedList(const gradkern_list& list, const gradkern_cuda_place& place)
      : list_{as_refs(list.tensors), list.count, list.first, place.device, stream_of(place)} {
    if (!place.plan) return;
    std::memcpy(&plan_, place.plan, sizeof(plan_));
    list_.plan = &plan_;
  }
  PlacedList(const PlacedList&) = delete;
  PlacedList& operator=(const PlacedList&) = delete;

  const cuda::TensorList& get() const { return list_; }

 private:
  cuda::TensorList list_;
  cuda::ListPlan plan_{};
};

cuda::MeasureOptions options_of(const gradkern_measure& m) {
  return {norm_order(m.norm_type), m.count_zeros != 0};
}

cuda::MeasureResults results_of(const gradkern_results& r) {
  return {.is_double = r.is_double != 0,
          .norm = r.norm,
          .l2 = r.l2,
          .max_abs = r.max_abs,
          .nonfinite = r.nonfinite,
          .zeros = r.zeros,
          .total_norm = r.total_norm,
          .decision_norm = r.decision_norm,
          .clip_coef = r.clip_coef,
          .total_nonfinite = r.total_nonfinite,
          .skip_step = reinterpret_cast<bool*>(r.skip_step),
          .total = static_cast<Partial*>(r.total),
          .packed_sums = r.packed_sums,
          .packed_keys = r.packed_keys,
          .packed_rows = r.packed_rows != 0};
}

cuda::MeasureLaunch launch_of(const cuda::TensorList& list, const gradkern_measure& m, const gradkern_cuda_place& place) {
  cuda::MeasureLaunch launch;
  launch.list = list;
  launch.options = options_of(m);
  launch.max_norm = m.max_norm;
  launch.on_nonfinite = OnNonfinite(m.on_nonfinite);
  launch.inv_scale = m.inv_scale;
  launch.results = results_of(m.results);
  launch.workspace = place.workspace;
  launch.workspace_bytes = place.workspace_bytes;
  return launch;
}

cuda::ScaleLaunch launch_of(const cuda::TensorList& list, const gradkern_scale& s, const gradkern_cuda_place& place) {
  return {.list = list,
          .factor = s.factor,
          .factor_per_tensor = s.factor_per_tensor != 0,
          .zero = reinterpret_cast<const bool*>(s.zero),
          .total_norm = s.total_norm,
          .total_norm_is_double = s.total_norm_is_double != 0,
          .max_norm = s.max_norm,
          .on_nonfinite = OnNonfinite(s.on_nonfinite),
          .total_nonfinite = s.total_nonfinite,
          .workspace = place.workspace,
          .workspace_bytes = place.workspace_bytes};
}

}  // namespace
}  // namespace gradkern::library

using namespace gradkern;
using gradkern::library::guarded;
using gradkern::library::PlacedList;

int32_t gradkern_cuda_usable(int32_t device) {
  return guarded([&] {
    const std::string reason = cuda::why_unusable(device);
    if (!reason.empty()) throw std::runtime_error(reason);
  });
}

int32_t gradkern_cuda_plan_list(const gradkern_list* list, gradkern_cuda_plan* plan) {
  return guarded([&] {
    const cuda::ListPlan made = cuda::plan_of(as_refs(list->tensors), list->count, "plan_list");
    std::memcpy(plan, &made, sizeof(made));
  });
}

int32_t gradkern_cuda_measure_workspace_bytes(const gradkern_list* list, const gradkern_measure* measure,
                                              const gradkern_cuda_place* place, size_t* bytes) {
  return guarded([&] {
    *bytes = cuda::measure_workspace_bytes(PlacedList(*list, *place).get(), library::options_of(*measure));
  });
}

int32_t gradkern_cuda_write_workspace_bytes(const gradkern_list* list, const gradkern_cuda_place* place, size_t* bytes) {
  return guarded([&] { *bytes = cuda::write_workspace_bytes(PlacedList(*list, *place).get()); });
}

int32_t gradkern_cuda_measure(const gradkern_list* list, const gradkern_measure* measure,
                              const gradkern_cuda_place* place) {
  return guarded([&] {
    const PlacedList placed(*list, *place);
    cuda::launch_measure(library::launch_of(placed.get(), *measure, *place));
  });
}

int32_t gradkern_cuda_combine(const void* totals, int64_t count, const gradkern_measure* measure,
                              const gradkern_cuda_place* place) {
  return guarded([&] {
    cuda::launch_combine({.totals = static_cast<const Partial*>(totals),
                          .count = count,
                          .device = place->device,
                          .stream = library::stream_of(*place),
                          .order = norm_order(measure->norm_type),
                          .max_norm = measure->max_norm,
                          .on_nonfinite = OnNonfinite(measure->on_nonfinite),
                          .inv_scale = measure->inv_scale,
                          .results = library::results_of(measure->results)});
  });
}

int32_t gradkern_cuda_scale(const gradkern_list* list, const gradkern_scale* scale,
                            const gradkern_cuda_place* place) {
  return guarded([&] {
    const PlacedList placed(*list, *place);
    cuda::launch_scale(library::launch_of(placed.get(), *scale, *place));
  });
}

int32_t gradkern_cuda_clip(const gradkern_list* list, const gradkern_measure* measure, const gradkern_scale* scale,
                           const gradkern_cuda_place* place) {
  return guarded([&] {
    const PlacedList placed(*list, *place);
    cuda::launch_clip(library::launch_of(placed.get(), *measure, *place), library::launch_of(placed.get(), *scale, *place));
  });
}

int32_t gradkern_cuda_clamp(const gradkern_list* list, double limit, const gradkern_cuda_place* place) {
  return guarded([&] {
    const PlacedList placed(*list, *place);
    cuda::launch_clamp({placed.get(), limit, place->workspace, place->workspace_bytes});
  });
}

int32_t gradkern_cuda_policy_step(const gradkern_policy_step* step, const gradkern_cuda_place* place) {
  return guarded([&] { cuda::launch_policy(policy_step_of(*step), place->device, library::stream_of(*place)); });
}

int32_t gradkern_cuda_units_workspace_bytes(const gradkern_units* list, int64_t count, const gradkern_cuda_place* place,
                                            size_t* bytes) {
  return guarded([&] {
    *bytes = cuda::agc_workspace_bytes(
        {.list = as_units(list), .count = count, .device = place->device, .stream = library::stream_of(*place)});
  });
}

int32_t gradkern_cuda_clip_units(const gradkern_units* list, int64_t count, double clip_factor, double eps,
                                 const gradkern_cuda_place* place, double* norms) {
  return guarded([&] {
    cuda::launch_agc({.list = as_units(list),
                      .count = count,
                      .clip_factor = clip_factor,
                      .eps = eps,
                      .norms = norms,
                      .device = place->device,
                      .stream = library::stream_of(*place),
                      .workspace = place->workspace,
                      .workspace_bytes = place->workspace_bytes});
  });
}

int32_t gradkern_cuda_is_capturing(const gradkern_cuda_place* place, int32_t* capturing) {
  return guarded([&] { *capturing = cuda::is_capturing(place->device, library::stream_of(*place)); });
}
