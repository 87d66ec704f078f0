// Allocation, streams and the order of launches; the work itself is in csrc/cuda. No call here
// waits for the device, except where the host has to know (raise_on_host). Devices are made current
// by torch's guard: the runtime's would leave a context behind on a device that nobody uses.
#include "bindings/cuda_backend.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "bindings/cuda_stream.h"
#include "cuda/launch.h"

namespace gradkern::cuda_backend {
namespace {

/// The part of a list that lies on one device; entries of others are empty there.
struct DeviceList {
  at::Device device;
  const Prepared& prepared;
  std::vector<TensorRef> own;  ///< empty where there is one device: prepared.refs are its
  cuda::ListPlan plan{};

  const std::vector<TensorRef>& refs() const { return own.empty() ? prepared.refs : own; }

  cuda::TensorList on_current_stream(bool with_repeats) const {
    return {refs().data(), int64_t(refs().size()), with_repeats ? prepared.first.data() : nullptr,
            int(device.index()), current_cuda_stream(device), &plan};
  }
};

/// One entry a device, in the order of the list; `prepared` has to outlive them.
std::vector<DeviceList> split_by_device(const CallSite& site, const GradList& grads,
                                        const Prepared& prepared) {
  std::vector<DeviceList> lists;
  const auto list_of = [&](at::Device device) {
    return std::find_if(lists.begin(), lists.end(), [&](const DeviceList& l) { return l.device == device; });
  };
  for (const at::Tensor& g : grads)
    if (g.defined() && list_of(g.device()) == lists.end()) lists.push_back({g.device(), prepared, {}});
  for (DeviceList& list : lists) {
    if (lists.size() > 1) list.own.resize(grads.size());
    for (size_t i = 0; i < list.own.size(); ++i)
      if (grads[i].defined() && grads[i].device() == list.device) list.own[i] = prepared.refs[i];
    list.plan = cuda::plan_of(list.refs().data(), int64_t(list.refs().size()), site.operation);
  }
  return lists;
}

at::Tensor empty_on(at::Device device, at::ScalarType dtype, at::IntArrayRef sizes) {
  return at::empty(sizes, at::TensorOptions().dtype(dtype).device(device));
}

template <class T>
T* pointer(const at::Tensor& t) { return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr; }

/// Everything a call may report, on one device; undefined where nobody asked.
struct Results {
  at::Tensor norm, l2_norm, max_abs, nonfinite, zeros;
  at::Tensor total_norm, decision_norm, clip_coef, total_nonfinite, skip_step;
  at::Tensor partial;  ///< one Partial, for several devices
  at::Tensor packed_sums, packed_keys;

  cuda::MeasureResults pointers() const {
    const bool is_double = total_norm.defined() && total_norm.scalar_type() == at::kDouble;
    return {is_double, pointer<void>(norm), pointer<void>(l2_norm), pointer<void>(max_abs),
            pointer<int64_t>(nonfinite), pointer<int64_t>(zeros), pointer<void>(total_norm),
            pointer<double>(decision_norm), pointer<void>(clip_coef), pointer<int64_t>(total_nonfinite), pointer<bool>(skip_step),
            pointer<Partial>(partial), pointer<double>(packed_sums), pointer<int64_t>(packed_keys),
            packed_sums.defined() && packed_sums.size(0) > 1};
  }
};

bool wants_counts(const ClipRequest& r) {
  return r.raise_if_nonfinite_norm || r.raise_if_nonfinite_elements;
}

Results allocate(at::Device device, const Prepared& prepared, const ClipRequest& request) {
  const MeasureRequest& m = request.measure;
  const at::ScalarType real = prepared.any_double ? at::kDouble : at::kFloat;
  const int64_t count = int64_t(prepared.refs.size());
  Results r;
  r.total_norm = empty_on(device, real, {});
  r.decision_norm = empty_on(device, at::kDouble, {});
  r.total_nonfinite = empty_on(device, at::kLong, {});
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

void launch_measure(const DeviceList& list, const Prepared& prepared, const ClipRequest& request,
                    const Results& results) {
  const c10::DeviceGuard guard(list.device);
  cuda::MeasureLaunch launch;
  launch.list = list.on_current_stream(prepared.any_duplicate && request.measure.per_tensor);
  launch.options = {norm_order(request.measure.norm_type), request.measure.count_zeros};
  launch.max_norm = request.max_norm;
  launch.on_nonfinite = request.on_nonfinite;
  launch.inv_scale = request.measure.inv_scale;
  launch.results = results.pointers();
  launch.workspace_bytes = cuda::measure_workspace_bytes(launch.list, launch.options);
  // Freed in stream order when this returns; inside a capture it belongs to the graph.
  const at::Tensor workspace = empty_on(list.device, at::kByte, {int64_t(launch.workspace_bytes)});
  launch.workspace = workspace.mutable_data_ptr();
  cuda::launch_measure(launch);
}

/// Rows of other devices are zero in each device's results: their sum is the whole.
void add_rows(at::Tensor& to, const at::Tensor& rows) {
  if (to.defined()) to.add_(rows.to(to.device(), /*non_blocking=*/true));
}

/// Each device's launches, then one combination on the first device.
Results measure_devices(const std::vector<DeviceList>& lists, const Prepared& prepared,
                        const ClipRequest& request) {
  const at::Device home = lists.front().device;
  Results all;
  std::vector<at::Tensor> partials;
  for (const DeviceList& list : lists) {
    Results one = allocate(list.device, prepared, request);
    one.partial = empty_on(list.device, at::kByte, {int64_t(sizeof(Partial))});
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
  cuda::CombineLaunch combine;
  combine.totals = static_cast<const Partial*>(totals.const_data_ptr());
  combine.count = int64_t(lists.size());
  combine.device = int(home.index());
  combine.stream = current_cuda_stream(home);
  combine.order = norm_order(request.measure.norm_type);
  combine.max_norm = request.max_norm;
  combine.on_nonfinite = request.on_nonfinite;
  combine.inv_scale = request.measure.inv_scale;
  combine.results = all.pointers();
  combine.results.total = nullptr;
  cuda::launch_combine(combine);
  return all;
}

Results measure_lists(const std::vector<DeviceList>& lists, const Prepared& prepared,
                      const ClipRequest& request) {
  if (lists.size() > 1) return measure_devices(lists, prepared, request);
  const Results results = allocate(lists[0].device, prepared, request);
  launch_measure(lists[0], prepared, request, results);
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

/// The questions that need the host: synchronises, and therefore cannot be captured.
void raise_on_host(const CallSite& site, const ClipRequest& request, const Prepared& prepared,
                   const DeviceList& home, const Results& results, Measurement& m) {
  const c10::DeviceGuard guard(home.device);
  TORCH_CHECK(!cuda::is_capturing(int(home.device.index()), current_cuda_stream(home.device)), "[",
              site.operation, "] expected no CUDA graph capture, because raising an error for a ",
              "non-finite norm synchronises; use error_if_nonfinite=False (or another on_nonfinite)");
  m.total = results.decision_norm.item().toDouble();
  m.total_nonfinite = results.total_nonfinite.item().toLong();
  if (m.total_nonfinite == 0 && m.returns_finite_total()) return;
  const at::Tensor counts = results.nonfinite.cpu();
  std::vector<Partial> partials(prepared.refs.size());
  for (size_t i = 0; i < partials.size(); ++i) {
    if (prepared.first[i] != int64_t(i)) continue;  // a repeated row is named once
    partials[i].nonfinite = counts.const_data_ptr<int64_t>()[i];
    partials[i].numel = prepared.refs[i].numel;
  }
  raise_if_nonfinite(site, request, m, partials);
}

template <class Launch>
void on_each(const std::vector<DeviceList>& lists, const Launch& launch) {
  for (const DeviceList& list : lists) {
    const c10::DeviceGuard guard(list.device);
    launch(list);
  }
}

/// `launch(list)` for every device, on memory in which every location appears once. `lists` are the
/// devices' parts of `prepared`.
template <class Launch>
void write(const CallSite& site, const GradList& grads, const Prepared& prepared,
           const std::vector<DeviceList>& lists, const Launch& launch) {
  const bool in_place = writable_in_place(prepared);
  const Prepared writable = in_place ? Prepared{} : prepare_for_write(site, grads, prepared);
  if (prepared.staged.empty() && writable.staged.empty()) {  // views that turned out to be disjoint, too
    on_each(lists, launch);
  } else {
    on_each(split_by_device(site, grads, writable), launch);
    write_back(writable);
  }
  bump_versions(grads);
}

/// A norm as a kernel reads it, on `device`.
at::Tensor readable_norm(const at::Tensor& total_norm, at::Device device) {
  if (total_norm.is_cpu())  // its value travels in a kernel's arguments: no copy, may be captured
    return at::full({}, total_norm.item().toDouble(), at::TensorOptions().dtype(at::kDouble).device(device));
  const bool real = total_norm.scalar_type() == at::kFloat || total_norm.scalar_type() == at::kDouble;
  return total_norm.to(device, real ? total_norm.scalar_type() : at::kDouble, /*non_blocking=*/true);
}

void apply(const CallSite& site, const GradList& grads, const Prepared& prepared,
           const std::vector<DeviceList>& lists, double max_norm, OnNonfinite on_nonfinite,
           const at::Tensor& total_norm, const at::Tensor& total_nonfinite) {
  if (max_norm == infinity() && on_nonfinite != OnNonfinite::kZero) return;  // measures only
  write(site, grads, prepared, lists, [&](const DeviceList& list) {
    const at::Tensor norm = readable_norm(total_norm, list.device);
    const at::Tensor count =
        total_nonfinite.defined() ? total_nonfinite.to(list.device, /*non_blocking=*/true) : at::Tensor();
    cuda::ScaleLaunch launch;
    launch.list = list.on_current_stream(false);
    launch.total_norm = norm.const_data_ptr();
    launch.total_norm_is_double = norm.scalar_type() == at::kDouble;
    launch.max_norm = max_norm;
    launch.on_nonfinite = on_nonfinite;
    launch.total_nonfinite = count.defined() ? count.const_data_ptr<int64_t>() : nullptr;
    cuda::launch_scale(launch);
  });
}

}  // namespace

bool available() { return true; }

Measurement measure(const CallSite& site, const GradList& grads, const MeasureRequest& request) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  ClipRequest only_measure;
  only_measure.measure = request;
  only_measure.max_norm = infinity();
  const Results results = measure_lists(split_by_device(site, grads, prepared), prepared, only_measure);
  return as_measurement(results, request, prepared.any_double);
}

ClipResult clip(const CallSite& site, const GradList& grads, const ClipRequest& request) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const std::vector<DeviceList> lists = split_by_device(site, grads, prepared);
  const Results results = measure_lists(lists, prepared, request);
  ClipResult out;
  out.measured = as_measurement(results, request.measure, prepared.any_double);
  out.clip_coef = results.clip_coef;
  out.skip_step = results.skip_step;
  if (wants_counts(request)) raise_on_host(site, request, prepared, lists.front(), results, out.measured);
  apply(site, grads, prepared, lists, request.max_norm, request.on_nonfinite, results.decision_norm,
        results.total_nonfinite);
  return out;
}

void clip_with_norm(const CallSite& site, const GradList& grads, double max_norm,
                    const at::Tensor& total_norm) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  apply(site, grads, prepared, split_by_device(site, grads, prepared), max_norm, OnNonfinite::kPropagate,
        total_norm, {});
}

void scale(const CallSite& site, const GradList& grads, const at::Tensor& factor, const at::Tensor& zero) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  write(site, grads, prepared, split_by_device(site, grads, prepared), [&](const DeviceList& list) {
    const at::Tensor here = factor.contiguous().to(list.device, /*non_blocking=*/true);
    const at::Tensor zero_here = zero.defined() ? zero.to(list.device, /*non_blocking=*/true) : at::Tensor();
    cuda::ScaleLaunch launch;
    launch.list = list.on_current_stream(false);
    launch.factor = here.const_data_ptr<double>();
    launch.factor_per_tensor = factor.dim() == 1;
    launch.zero = zero_here.defined() ? zero_here.const_data_ptr<bool>() : nullptr;
    cuda::launch_scale(launch);
  });
}

PackedPartials packed_partials(const CallSite& site, const GradList& grads, double norm_type,
                               bool count_zeros, bool per_tensor) {
  at::NoGradGuard no_grad;
  const Prepared& prepared = prepare(site, grads);
  const std::vector<DeviceList> lists = split_by_device(site, grads, prepared);
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
  write(site, grads, prepared, split_by_device(site, grads, prepared), [&](const DeviceList& list) {
    cuda::launch_clamp({list.on_current_stream(false), limit});
  });
}

void policy_step(const PolicyStep& step, at::Device device) {
  const c10::DeviceGuard guard(device);
  cuda::launch_policy(step, int(device.index()), current_cuda_stream(device));
}

}  // namespace gradkern::cuda_backend
