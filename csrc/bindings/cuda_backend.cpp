// Allocation, streams and the order of launches; the library does the work. No call waits for the device,
// except raise_on_host(). torch's guard makes devices current, because the runtime's would create a context on a
// device that is not used.
#include "bindings/cuda_backend.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "bindings/cuda_stream.h"
#include "bindings/library.h"

namespace gradkern::cuda_backend {
namespace {

/// The part of a list that lies on one device. Entries on other devices are empty.
struct DeviceList {
  at::Device device;
  const Prepared& prepared;
  std::vector<TensorRef> own;  ///< empty if there is one device, which uses prepared.refs
  gradkern_cuda_plan plan{};
  CUstream_st* stream = current_cuda_stream(device);

  gradkern_list list(bool with_repeats) const {
    return as_list(own.empty() ? prepared.refs : own, with_repeats ? &prepared.first : nullptr);
  }
  gradkern_cuda_place place() const { return {int32_t(device.index()), stream, &plan, nullptr, 0}; }
};

/// One entry for each device, in the order of the list. `prepared` must outlive them.
std::vector<DeviceList> split_by_device(const GradList& grads, const Prepared& prepared) {
  std::vector<DeviceList> lists;
  const auto list_of = [&](at::Device device) {
    return std::find_if(lists.begin(), lists.end(), [&](const DeviceList& l) { return l.device == device; });
  };
  if (grads.plain()) lists.push_back({grads.plain()->device(), prepared, {}});
  for (size_t i = 0; i < grads.size() && !grads.plain(); ++i)
    if (grads[i].defined() && list_of(grads[i].device()) == lists.end()) lists.push_back({grads[i].device(), prepared, {}});
  for (DeviceList& list : lists) {
    if (lists.size() > 1) list.own.resize(grads.size());
    for (size_t i = 0; i < list.own.size(); ++i)
      if (grads[i].defined() && grads[i].device() == list.device) list.own[i] = prepared.refs[i];
    const gradkern_list plain = list.list(false);
    check_library(gradkern_cuda_plan_list(&plain, &list.plan));
  }
  return lists;
}

at::Tensor empty_on(at::Device device, at::ScalarType dtype, at::IntArrayRef sizes) {
  return at::empty(sizes, at::TensorOptions().dtype(dtype).device(device));
}

/// The results of a call on one device. Those that were not requested are undefined.
struct Results {
  at::Tensor norm, l2_norm, max_abs, nonfinite, zeros;
  at::Tensor total_norm, decision_norm, clip_coef, total_nonfinite, skip_step;
  at::Tensor partial;  ///< one Partial, for several devices
  at::Tensor packed_sums, packed_keys;

  gradkern_results pointers() const {
    gradkern_results r{};
    r.is_double = total_norm.defined() && total_norm.scalar_type() == at::kDouble;
    r.norm = pointer<void>(norm);
    r.l2 = pointer<void>(l2_norm);
    r.max_abs = pointer<void>(max_abs);
    r.nonfinite = pointer<int64_t>(nonfinite);
    r.zeros = pointer<int64_t>(zeros);
    r.total_norm = pointer<void>(total_norm);
    r.decision_norm = pointer<double>(decision_norm);
    r.clip_coef = pointer<void>(clip_coef);
    r.total_nonfinite = pointer<int64_t>(total_nonfinite);
    r.skip_step = pointer<uint8_t>(skip_step);
    r.total = pointer<void>(partial);
    r.packed_sums = pointer<double>(packed_sums);
    r.packed_keys = pointer<int64_t>(packed_keys);
    r.packed_rows = packed_sums.defined() && packed_sums.size(0) > 1;
    return r;
  }
};

gradkern_measure measure_of(const ClipRequest& request, const Results& results) {
  gradkern_measure m{};
  m.norm_type = request.measure.norm_type;
  m.inv_scale = request.measure.inv_scale;
  m.max_norm = request.max_norm;
  m.on_nonfinite = uint8_t(request.on_nonfinite);
  m.count_zeros = request.measure.count_zeros;
  m.results = results.pointers();
  return m;
}

bool wants_counts(const ClipRequest& r) {
  return r.raise_if_nonfinite_norm || r.raise_if_nonfinite_elements;
}

/// `at_once`: whether the launch that measures is followed by the one that writes, so that nothing else reads the numbers
/// that the clip is decided by.
Results allocate(at::Device device, const Prepared& prepared, const ClipRequest& request, bool at_once = false) {
  const MeasureRequest& m = request.measure;
  const at::ScalarType real = prepared.any_double ? at::kDouble : at::kFloat;
  const int64_t count = int64_t(prepared.refs.size());
  Results r;
  r.total_norm = empty_on(device, real, {});
  if (!at_once || m.decision_norm) r.decision_norm = empty_on(device, at::kDouble, {});
  if (!at_once) r.total_nonfinite = empty_on(device, at::kLong, {});
  if (m.per_tensor || wants_counts(request)) r.nonfinite = empty_on(device, at::kLong, {count});
  if (request.on_nonfinite == OnNonfinite::kSkip) r.skip_step = empty_on(device, at::kBool, {});
  if (!m.per_tensor) return r;
  r.norm = empty_on(device, real, {count});
  const bool two = norm_order(m.norm_type).kind == NormKind::kTwo;
  r.l2_norm = two ? r.norm : empty_on(device, real, {count});
  r.max_abs = empty_on(device, real, {count});
  if (m.count_zeros) r.zeros = empty_on(device, at::kLong, {count});
  r.clip_coef = empty_on(device, real, {});
  return r;
}

/// Allocates the workspace of a call. It is freed in stream order; during a capture it belongs to the graph.
at::Tensor workspace_for(at::Device device, gradkern_cuda_place& place) {
  if (place.workspace_bytes == 0) return {};
  const at::Tensor workspace = empty_on(device, at::kByte, {int64_t(place.workspace_bytes)});
  place.workspace = workspace.mutable_data_ptr();
  return workspace;
}

void launch_measure(const DeviceList& list, const Prepared& prepared, const ClipRequest& request,
                    const Results& results) {
  const c10::DeviceGuard guard(list.device);
  const gradkern_list plain = list.list(prepared.any_duplicate && request.measure.per_tensor);
  gradkern_cuda_place place = list.place();
  const gradkern_measure measure = measure_of(request, results);
  check_library(gradkern_cuda_measure_workspace_bytes(&plain, &measure, &place, &place.workspace_bytes));
  const at::Tensor workspace = workspace_for(list.device, place);
  check_library(gradkern_cuda_measure(&plain, &measure, &place));
}

/// Adds the rows of another device. The rows of a device's results are zero for tensors on other devices.
void add_rows(at::Tensor& to, const at::Tensor& rows) {
  if (to.defined()) to.add_(rows.to(to.device(), /*non_blocking=*/true));
}

/// Launches on each device, then combines the results on the first.
Results measure_devices(const std::vector<DeviceList>& lists, const Prepared& prepared,
                        const ClipRequest& request) {
  const at::Device home = lists.front().device;
  Results all;
  std::vector<at::Tensor> partials;
  for (const DeviceList& list : lists) {
    Results one = allocate(list.device, prepared, request);
    one.partial = empty_on(list.device, at::kByte, {GRADKERN_PARTIAL_BYTES});
    launch_measure(list, prepared, request, one);
    partials.push_back(one.partial.to(home, /*non_blocking=*/true));
    if (list.device == home) {
      all = one;
      continue;
    }
    add_rows(all.norm, one.norm);
    if (!all.l2_norm.is_same(all.norm)) add_rows(all.l2_norm, one.l2_norm);
    add_rows(all.max_abs, one.max_abs);
    add_rows(all.nonfinite, one.nonfinite);
    add_rows(all.zeros, one.zeros);
  }
  const c10::DeviceGuard guard(home);
  const at::Tensor totals = at::stack(partials);
  gradkern_measure combined = measure_of(request, all);
  combined.results.total = nullptr;
  const gradkern_cuda_place place{int32_t(home.index()), current_cuda_stream(home), nullptr, nullptr, 0};
  check_library(gradkern_cuda_combine(totals.const_data_ptr(), int64_t(lists.size()), &combined, &place));
  return all;
}

Results measure_lists(const std::vector<DeviceList>& lists, const Prepared& prepared,
                      const ClipRequest& request) {
  if (lists.size() > 1) return measure_devices(lists, prepared, request);
  const Results results = allocate(lists[0].device, prepared, request);
  launch_measure(lists[0], prepared, request, results);
  return results;
}

/// Whether clip_at_once() can do a clip: on one device, in place, with nothing to read back.
bool is_at_once(const std::vector<DeviceList>& lists, const Prepared& prepared, const ClipRequest& request) {
  return lists.size() == 1 && writable_in_place(prepared) && writes(request.max_norm, request.on_nonfinite) &&
         !wants_counts(request);
}

/// Measures and writes in one call of the library. The numbers that it decides by are in front of its workspace.
Results clip_at_once(const DeviceList& list, const Prepared& prepared, const ClipRequest& request) {
  struct alignas(16) Decision {
    double norm;
    int64_t nonfinite;
  };
  const c10::DeviceGuard guard(list.device);
  const Results results = allocate(list.device, prepared, request, /*at_once=*/true);
  const gradkern_list plain = list.list(prepared.any_duplicate && request.measure.per_tensor);
  gradkern_cuda_place place = list.place();
  gradkern_measure measure = measure_of(request, results);
  check_library(gradkern_cuda_measure_workspace_bytes(&plain, &measure, &place, &place.workspace_bytes));
  const at::Tensor memory = empty_on(list.device, at::kByte, {int64_t(sizeof(Decision) + place.workspace_bytes)});
  auto* const decision = static_cast<Decision*>(memory.mutable_data_ptr());
  place.workspace = decision + 1;
  if (!measure.results.decision_norm) measure.results.decision_norm = &decision->norm;
  measure.results.total_nonfinite = &decision->nonfinite;
  gradkern_scale scale{};
  scale.total_norm = measure.results.decision_norm;
  scale.total_norm_is_double = true;
  scale.max_norm = request.max_norm;
  scale.on_nonfinite = uint8_t(request.on_nonfinite);
  scale.total_nonfinite = measure.results.total_nonfinite;
  check_library(gradkern_cuda_clip(&plain, &measure, &scale, &place));
  return results;
}

Measurement as_measurement(const Results& r, const MeasureRequest& request, bool any_double) {
  Measurement m;
  m.norm = r.norm;
  m.l2_norm = r.l2_norm;
  m.max_abs = r.max_abs;
  m.nonfinite = r.nonfinite;
  m.zeros = r.zeros;
  m.total_norm = r.total_norm;
  if (request.decision_norm) m.decision_norm = r.decision_norm;
  m.any_double = any_double;
  return m;
}

bool is_capturing(const DeviceList& list) {
  const gradkern_cuda_place place = list.place();
  int32_t capturing = 0;
  check_library(gradkern_cuda_is_capturing(&place, &capturing));
  return capturing != 0;
}

/// Raises the errors that depend on results. Synchronizes, and therefore cannot be captured.
void raise_on_host(const CallSite& site, const ClipRequest& request, const Prepared& prepared,
                   const DeviceList& home, const Results& results, Measurement& m) {
  const c10::DeviceGuard guard(home.device);
  TORCH_CHECK(!is_capturing(home), "[", site.operation, "] cannot raise for a non-finite norm while a CUDA graph is ",
              "captured, because that synchronises; use error_if_nonfinite=False (or another on_nonfinite)");
  m.total = results.decision_norm.item().toDouble();
  m.total_nonfinite = results.total_nonfinite.item().toLong();
  if (must_raise(request, m)) raise_nonfinite(site, request, prepared, results.nonfinite.cpu());
}

template <class Launch>
void on_each(const std::vector<DeviceList>& lists, const Launch& launch) {
  for (const DeviceList& list : lists) {
    const c10::DeviceGuard guard(list.device);
    launch(list);
  }
}

/// Calls launch(list) for every device, with lists in which every memory location appears once. `lists` are the
/// parts of `prepared` on each device.
template <class Launch>
void write(const CallSite& site, const GradList& grads, const Prepared& prepared,
           const std::vector<DeviceList>& lists, const Launch& launch) {
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  if (prepared.staged.empty() && writable.staged.empty()) {  // includes disjoint views of one buffer
    on_each(lists, launch);
  } else {
    on_each(split_by_device(grads, writable), launch);
    write_back(writable);
  }
  grads.bump_versions();
}

/// Calls launch(list, place) with a workspace for a write.
template <class Launch>
void launch_write(const DeviceList& list, const Launch& launch) {
  const gradkern_list plain = list.list(false);
  gradkern_cuda_place place = list.place();
  check_library(gradkern_cuda_write_workspace_bytes(&plain, &place, &place.workspace_bytes));
  const at::Tensor workspace = workspace_for(list.device, place);
  check_library(launch(&plain, &place));
}

void launch_scale(const DeviceList& list, const gradkern_scale& scale) {
  launch_write(list, [&](const auto* plain, const auto* place) { return gradkern_cuda_scale(plain, &scale, place); });
}

/// A norm that a kernel can read on `device`.
at::Tensor readable_norm(const at::Tensor& total_norm, at::Device device) {
  if (total_norm.is_cpu())  // the value is a kernel argument: no copy, and it can be captured
    return at::full({}, total_norm.item().toDouble(), at::TensorOptions().dtype(at::kDouble).device(device));
  const bool real = total_norm.scalar_type() == at::kFloat || total_norm.scalar_type() == at::kDouble;
  return total_norm.to(device, real ? total_norm.scalar_type() : at::kDouble, /*non_blocking=*/true);
}

void apply(const CallSite& site, const GradList& grads, const Prepared& prepared,
           const std::vector<DeviceList>& lists, double max_norm, OnNonfinite on_nonfinite,
           const at::Tensor& total_norm, const at::Tensor& total_nonfinite) {
  if (!writes(max_norm, on_nonfinite)) return;
  write(site, grads, prepared, lists, [&](const DeviceList& list) {
    const at::Tensor norm = readable_norm(total_norm, list.device);
    const at::Tensor count =
        total_nonfinite.defined() ? total_nonfinite.to(list.device, /*non_blocking=*/true) : at::Tensor();
    gradkern_scale scale{};
    scale.total_norm = norm.const_data_ptr();
    scale.total_norm_is_double = norm.scalar_type() == at::kDouble;
    scale.max_norm = max_norm;
    scale.on_nonfinite = uint8_t(on_nonfinite);
    scale.total_nonfinite = count.defined() ? count.const_data_ptr<int64_t>() : nullptr;
    launch_scale(list, scale);
  });
}

}  // namespace

std::string why_unusable(at::Device device) {
  if (!*gradkern_build_info().cuda_version) return "this build of gradkern has no CUDA kernels";
  const c10::DeviceGuard guard(device);
  return gradkern_cuda_usable(device.index()) == GRADKERN_OK ? std::string() : gradkern_last_error();
}

bool usable(at::Device device) {
  enum : signed char { kUnknown, kUsable, kUnusable };
  static std::array<std::atomic<signed char>, 64> known{};
  const size_t index = size_t(device.index());
  if (index >= known.size()) return why_unusable(device).empty();
  if (known[index] != kUnknown) return known[index] == kUsable;
  const std::string reason = why_unusable(device);
  const bool first = known[index].exchange(reason.empty() ? kUsable : kUnusable) == kUnknown;
  if (first && !reason.empty())
    pybind11::module_::import("gradkern.kernels.usable").attr("tell_unusable")(device.str(), reason);
  return reason.empty();
}

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  ClipRequest only_measure;
  only_measure.measure = request;
  only_measure.max_norm = infinity();
  const Results results = measure_lists(split_by_device(grads, prepared), prepared, only_measure);
  return as_measurement(results, request, prepared.any_double);
}

ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const std::vector<DeviceList> lists = split_by_device(grads, prepared);
  const bool at_once = is_at_once(lists, prepared, request);
  const Results results = at_once ? clip_at_once(lists[0], prepared, request) : measure_lists(lists, prepared, request);
  ClipResult out;
  out.measured = as_measurement(results, request.measure, prepared.any_double);
  out.clip_coef = results.clip_coef;
  out.skip_step = results.skip_step;
  if (wants_counts(request)) raise_on_host(site, request, prepared, lists.front(), results, out.measured);
  if (at_once) grads.bump_versions();
  else apply(site, grads, prepared, lists, request.max_norm, request.on_nonfinite, results.decision_norm,
        results.total_nonfinite);
  return out;
}

void clip_with_norm(const CallSite& site, const GradList& grads, double max_norm,
                    const at::Tensor& total_norm) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  apply(site, grads, prepared, split_by_device(grads, prepared), max_norm, OnNonfinite::kPropagate,
        total_norm, {});
}

void scale(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  write(site, grads, prepared, split_by_device(grads, prepared), [&](const DeviceList& list) {
    const at::Tensor here = factor.contiguous().to(list.device, /*non_blocking=*/true);
    const at::Tensor zero_here = zero.defined() ? zero.to(list.device, /*non_blocking=*/true) : at::Tensor();
    gradkern_scale scale{};
    scale.factor = here.const_data_ptr<double>();
    scale.factor_per_tensor = factor.dim() == 1;
    scale.zero = zero_here.defined() ? static_cast<const uint8_t*>(zero_here.const_data_ptr()) : nullptr;
    launch_scale(list, scale);
  });
}

PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const std::vector<DeviceList> lists = split_by_device(grads, prepared);
  TORCH_CHECK(lists.size() == 1, "[", site.operation, "] expected shards on one device, got ", lists.size());
  ClipRequest request;
  request.measure = {norm_type, per_tensor, count_zeros, 1.0};
  const int64_t rows = (per_tensor ? int64_t(grads.size()) : 0) + 1;
  Results results;
  results.packed_sums = empty_on(lists[0].device, at::kDouble, {rows, kPackedSums});
  results.packed_keys = empty_on(lists[0].device, at::kLong, {rows, kPackedKeys});
  launch_measure(lists[0], prepared, request, results);
  return {results.packed_sums, results.packed_keys};
}

void clip_value(const CallSite& site, const GradList& grads, double limit) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  write(site, grads, prepared, split_by_device(grads, prepared), [&](const DeviceList& list) {
    launch_write(list, [&](const auto* plain, const auto* place) { return gradkern_cuda_clamp(plain, limit, place); });
  });
}

at::Tensor clip_units(const std::vector<UnitsRef>& units, at::Device device, double clip_factor, double eps) {
  const c10::DeviceGuard guard(device);
  const gradkern_units* const plain = as_plain(units.data());
  const int64_t count = int64_t(units.size());
  gradkern_cuda_place place{int32_t(device.index()), current_cuda_stream(device), nullptr, nullptr, 0};
  check_library(gradkern_cuda_units_workspace_bytes(plain, count, &place, &place.workspace_bytes));
  const at::Tensor workspace = workspace_for(device, place);
  const at::Tensor norms = empty_on(device, at::kDouble, {2, count});
  check_library(gradkern_cuda_clip_units(plain, count, clip_factor, eps, &place, norms.mutable_data_ptr<double>()));
  return norms;
}

void policy_step(const PolicyStep& step, at::Device device) {
  const c10::DeviceGuard guard(device);
  const gradkern_policy_step plain = as_plain(step);
  const gradkern_cuda_place place{int32_t(device.index()), current_cuda_stream(device), nullptr, nullptr, 0};
  check_library(gradkern_cuda_policy_step(&plain, &place));
}

}  // namespace gradkern::cuda_backend
