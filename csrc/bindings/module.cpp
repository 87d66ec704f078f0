// The Python module gradkern._C: the eager entry points. Each walks its list with the GIL held, takes ownership of
// the gradients, and computes with the GIL released. They return None if no kernel supports the list; the caller then
// uses torch's operations.
#include <ATen/record_function.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "bindings/build_info.h"
#include "bindings/cuda_backend.h"
#include "bindings/cuda_stream.h"
#include "bindings/element_policies.h"
#include "bindings/engine.h"
#include "bindings/policies.h"
#include "bindings/python_lists.h"
#include "bindings/shards.h"
#include "bindings/units.h"
#include "library/kernels.h"

namespace gradkern {
namespace {

/// Up to this number of elements, the GIL is kept. The work takes less than the 5 ms after which Python would switch
/// threads, and the gradients can be borrowed.
constexpr int64_t kElementsUnderGil = int64_t(1) << 22;

/// Calls compute(), which uses `list`, without the GIL if it takes long, or if it `reads_back` a number from a device:
/// that waits for all work that is queued there, which may need another thread of this process.
template <class Compute>
auto without_gil(const CallSite& site, GradList& list, Compute compute, bool reads_back = false) {
  RECORD_FUNCTION(std::string("gradkern::") + site.operation, {});
  if (list.plain() && list.plain()->elements() <= kElementsUnderGil && !reads_back) return compute();
  list.own();
  const KnownStreams streams(list);
  py::gil_scoped_release release;
  return compute();
}

/// Whether a clip on a device is sure to write, unless it fails: not if it reads back whether to raise.
bool is_sure_to_write(const ClipRequest& r) {
  return writes(r.max_norm, r.on_nonfinite) && !r.raise_if_nonfinite_norm && !r.raise_if_nonfinite_elements;
}

bool raises_on_host(const ClipRequest& request, const GradList& list) {
  return (request.raise_if_nonfinite_norm || request.raise_if_nonfinite_elements) && cuda_backend::handles(list);
}

py::object optional_tensor(const at::Tensor& t) {
  return t.defined() ? py::cast(t) : py::none().cast<py::object>();
}

py::dict as_dict(const Measurement& m) {
  py::dict out;
  out["norm"] = m.norm;
  out["l2_norm"] = m.l2_norm;
  out["max_abs"] = m.max_abs;
  out["nonfinite"] = m.nonfinite;
  out["zeros"] = optional_tensor(m.zeros);
  out["total_norm"] = m.total_norm;
  if (m.decision_norm.defined()) out["decision_norm"] = m.decision_norm;
  return out;
}

py::tuple has_grad(const GradList& grads) {
  py::tuple flags(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) flags[i] = py::bool_(grads[i].defined());
  return flags;
}

/// Two columns of a result, and the numbers of elements that they were made of: -1 - n for n elements without a gradient.
struct KeptColumns {
  std::vector<int64_t> elements;
  py::tuple has_grad, numel;
};

std::vector<int64_t>& spare_elements() {
  static auto& spare = *new std::vector<int64_t>;
  return spare;
}

/// The numbers for KeptColumns. Called before Python objects are made: the collector may then run code that frees gradients.
std::vector<int64_t> elements_of(const CallSite& site, const GradList& grads, const py::sequence& parameters) {
  // Reused, because malloc would wait for the thread that frees the graph of the backward.
  std::vector<int64_t> elements = std::exchange(spare_elements(), {});
  elements.resize(grads.size());
  const TensorRef* const refs = grads.plain() ? grads.plain()->prepared().refs.data() : nullptr;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (refs && refs[i].numel) elements[i] = refs[i].numel;
    else elements[i] = grads[i].defined() ? grads[i].numel() : -1 - numel_at(site, parameters, i);
  }
  return elements;
}

/// Adds "has_grad" and "numel". Those of the last lists are kept, because new tuples of thousands of objects would take as
/// long as the rest of a call.
void add_sizes(py::dict& out, std::vector<int64_t> elements) {
  static auto& kept = *new std::array<KeptColumns, 4>;
  static size_t uses = 0;
  auto found = std::find_if(kept.begin(), kept.end(), [&](const KeptColumns& k) { return k.elements == elements; });
  if (found == kept.end()) {
    py::tuple has_grad(elements.size()), numel(elements.size());
    for (size_t i = 0; i < elements.size(); ++i) {
      has_grad[i] = py::bool_(elements[i] >= 0);
      numel[i] = elements[i] < 0 ? -1 - elements[i] : elements[i];
    }
    found = kept.begin() + (uses++ % kept.size());
    *found = {elements, std::move(has_grad), std::move(numel)};
  }
  out["has_grad"] = found->has_grad;
  out["numel"] = found->numel;
  spare_elements() = std::move(elements);
}

/// A call site whose messages name parameters. `names` is only read for an error.
CallSite named_site(const char* operation, const py::object& names) {
  CallSite site{operation, "params"};
  if (!names.is_none())
    site.name_of = [names = names.ptr()](int64_t index) {
      py::gil_scoped_acquire gil;
      return py::reinterpret_borrow<py::sequence>(names)[size_t(index)].cast<std::string>();
    };
  return site;
}

OnNonfinite policy_of(const std::string& name) {
  if (name == "zero") return OnNonfinite::kZero;
  if (name == "skip") return OnNonfinite::kSkip;
  return OnNonfinite::kPropagate;
}

std::optional<at::Tensor> clip_grad_norm(const py::sequence& parameters, double max_norm,
                                         double norm_type, bool error_if_nonfinite) {
  const CallSite site{"clip_grad_norm_", "parameters"};
  ClipRequest request;
  request.measure.norm_type = norm_type;
  request.max_norm = max_norm;
  request.raise_if_nonfinite_norm = error_if_nonfinite;
  GradList grads = gradients_of(site, parameters, is_sure_to_write(request));
  if (!is_native(grads)) return std::nullopt;
  return without_gil(
      site, grads, [&] { return clip(site, grads, request).measured.total_norm; }, raises_on_host(request, grads));
}

std::optional<at::Tensor> get_total_norm(const py::sequence& tensors, double norm_type,
                                         bool error_if_nonfinite) {
  const CallSite site{"get_total_norm", "tensors"};
  GradList list = tensors_of(site, tensors);
  if (!is_native(list)) return std::nullopt;
  ClipRequest request;  // a max_norm of infinity never writes
  request.measure.norm_type = norm_type;
  request.max_norm = infinity();
  request.raise_if_nonfinite_norm = error_if_nonfinite;
  return without_gil(
      site, list, [&] { return clip(site, list, request).measured.total_norm; }, raises_on_host(request, list));
}

bool clip_grads_with_norm(const py::sequence& parameters, double max_norm,
                          const at::Tensor& total_norm) {
  const CallSite site{"clip_grads_with_norm_", "parameters"};
  GradList grads = gradients_of(site, parameters);
  if (!is_native(grads)) return false;
  without_gil(
      site, grads, [&] { clip_with_norm(site, grads, max_norm, total_norm); },
      /*reads_back=*/total_norm.is_cuda() && !cuda_backend::handles(grads));
  return true;
}

bool clip_grad_value(const py::sequence& parameters, double limit) {
  const CallSite site{"clip_grad_value_", "parameters"};
  GradList grads = gradients_of(site, parameters);
  if (!is_native(grads)) return false;
  without_gil(site, grads, [&] { clip_value(site, grads, limit); });
  return true;
}

std::optional<py::dict> measure_parameters(const py::sequence& parameters, double norm_type,
                                           bool count_zeros, double inv_scale,
                                           const py::object& names) {
  const CallSite site = named_site("measure", names);
  GradList grads = gradients_of(site, parameters);
  if (!is_native(grads)) return std::nullopt;
  const MeasureRequest request{norm_type, true, count_zeros, inv_scale, /*decision_norm=*/true};
  const Measurement m = without_gil(site, grads, [&] { return measure(site, grads, request); });
  std::vector<int64_t> elements = elements_of(site, grads, parameters);
  py::dict out = as_dict(m);
  add_sizes(out, std::move(elements));
  return out;
}

std::optional<py::dict> measure_gradients(const py::sequence& grads, double norm_type, bool count_zeros,
                                          double inv_scale, const py::object& names) {
  const CallSite site = named_site("measure", names);
  GradList list = tensors_of(site, grads, /*none_allowed=*/true);
  if (!is_native(list)) return std::nullopt;
  const MeasureRequest request{norm_type, true, count_zeros, inv_scale, /*decision_norm=*/true};
  py::dict out = as_dict(without_gil(site, list, [&] { return measure(site, list, request); }));
  out["has_grad"] = has_grad(list);
  return out;
}

std::optional<py::dict> clip_parameters(const py::sequence& parameters, double max_norm,
                                        double norm_type, const std::string& on_nonfinite,
                                        bool count_zeros, const py::object& names) {
  const CallSite site = named_site("GradClipper.clip_", names);
  ClipRequest request;
  request.measure = {norm_type, true, count_zeros};
  request.max_norm = max_norm;
  request.on_nonfinite = policy_of(on_nonfinite);
  request.raise_if_nonfinite_elements = on_nonfinite == "raise";
  GradList grads = gradients_of(site, parameters, is_sure_to_write(request));
  if (!is_native(grads)) return std::nullopt;
  const ClipResult result = without_gil(
      site, grads, [&] { return clip(site, grads, request); }, raises_on_host(request, grads));
  std::vector<int64_t> elements = elements_of(site, grads, parameters);
  py::dict out = as_dict(result.measured);
  out["clip_coef"] = result.clip_coef;
  out["skip_step"] = optional_tensor(result.skip_step);
  add_sizes(out, std::move(elements));
  return out;
}

/// The policies of groups. `natives` are NativePolicy of gradkern.clipping.policies.native; `rows` has a tensor or None
/// for each.
GroupPlan group_plan(const py::list& natives, const py::list& rows) {
  const auto tensor = [](const py::handle& item) { return item.is_none() ? at::Tensor() : item.cast<at::Tensor>(); };
  std::vector<GroupPolicy> policies;
  policies.reserve(natives.size());
  for (size_t i = 0; i < natives.size(); ++i) {
    const py::tuple native = natives[i];
    policies.push_back({native[0].cast<std::string>(), native[1].cast<std::vector<double>>(), tensor(native[2]),
                        tensor(rows[i]), tensor(native[3])});
  }
  return GroupPlan(std::move(policies));
}

/// A group's limit in this step: None, a number, or the limits of all rows.
py::object limit_of(const GroupPolicy& group, double threshold, const py::object& by_row) {
  if (group.kind == "nothing" || is_elementwise(group)) return py::none();
  if (group.kind == "adagc") return by_row;
  return py::float_(threshold);
}

/// Adds "threshold" and "groups", whose items are the norms, the limits and the limits of rows.
void add_limits(py::dict& out, const GroupPlan& plan, const GroupedClip& result) {
  const py::object by_row = optional_tensor(result.row_thresholds);
  if (!plan.named()) {
    out["threshold"] = limit_of(plan.groups.front(), result.thresholds.front(), by_row);
    return;
  }
  py::list limits(plan.groups.size());
  for (size_t g = 0; g < plan.groups.size(); ++g)
    limits[g] = limit_of(plan.groups[g], result.thresholds[g], by_row);
  out["threshold"] = py::none();
  out["_groups"] = py::make_tuple(result.norms, limits, by_row);
}

std::optional<py::dict> clip_parameters_by_groups(const py::sequence& parameters, GroupPlan& plan, double norm_type,
                                                  const std::string& on_nonfinite, bool count_zeros,
                                                  const py::object& names) {
  const CallSite site = named_site("GradClipper.clip_", names);
  GradList grads = gradients_of(site, parameters);
  if (!is_native(grads) || cuda_backend::handles(grads)) return std::nullopt;
  ClipRequest request;
  request.measure = {norm_type, true, count_zeros};
  request.on_nonfinite = policy_of(on_nonfinite);
  request.raise_if_nonfinite_elements = on_nonfinite == "raise";
  GradList weights = plan.by_weights ? tensors_of(site, parameters) : GradList(0);
  if (!is_native(weights)) return std::nullopt;
  weights.own();
  const GroupedClip result =
      without_gil(site, grads, [&] { return clip_by_groups(site, grads, weights, request, plan); });
  if (!result.supported) return std::nullopt;
  std::vector<int64_t> elements = elements_of(site, grads, parameters);
  py::dict out;
  if (result.shared) {
    out["shared"] = *result.shared;
    return out;
  }
  out = as_dict(result.clip.measured);
  out["clip_coef"] = result.clip.clip_coef;
  out["skip_step"] = optional_tensor(result.clip.skip_step);
  add_sizes(out, std::move(elements));
  out["_factor"] = optional_tensor(result.factor);
  add_limits(out, plan, result);
  return out;
}

/// Positions in different groups whose tensors share memory, or False. None if tensors are on another device. `rows` has
/// the positions of each group.
py::object shared_memory(const py::sequence& grads, const std::vector<at::Tensor>& rows) {
  GradList list = tensors_of({"shared_memory", "gradients"}, grads, /*none_allowed=*/true);
  if (!is_native(list)) return py::none();
  std::vector<int64_t> group_of(list.size());
  for (size_t g = 0; g < rows.size(); ++g)
    for (int64_t i = 0; i < rows[g].numel(); ++i)
      group_of.at(size_t(rows[g].const_data_ptr<int64_t>()[i])) = int64_t(g);
  const auto shared = shared_by_groups(list, group_of);
  return shared ? py::cast(*shared) : py::bool_(false);
}

/// `grads`: a gradient or None for each; None for those that the weights hold.
std::optional<at::Tensor> clip_parameters_by_units(const py::sequence& weights,
                                                   const std::optional<py::sequence>& grads, double clip_factor,
                                                   double eps) {
  const CallSite site{"AGC", "parameters"};
  GradList weight_list = tensors_of(site, weights);
  GradList list = grads ? tensors_of(site, *grads, /*none_allowed=*/true) : gradients_of(site, weights);
  if (!is_native(list) || !is_native(weight_list) || weight_list.size() != list.size()) return std::nullopt;
  weight_list.own();
  const at::Tensor norms =
      without_gil(site, list, [&] { return clip_units(site, weight_list, list, clip_factor, eps); });
  return norms.defined() ? std::optional(norms) : std::nullopt;
}

/// For gradkern.distributed: (sums, keys) of local shards, which are None if this rank does not count them.
std::optional<std::pair<at::Tensor, at::Tensor>> partials(const py::sequence& shards, double norm_type,
                                                          bool count_zeros, bool per_tensor,
                                                          const std::string& operation,
                                                          const py::object& names) {
  const CallSite site = named_site(operation.c_str(), names);
  GradList list = tensors_of(site, shards, /*none_allowed=*/true);
  if (!is_native(list)) return std::nullopt;
  const PackedPartials packed = without_gil(
      site, list, [&] { return packed_partials(site, list, norm_type, count_zeros, per_tensor); });
  return std::pair{packed.sums, packed.keys};
}

bool scale_gradients(const py::sequence& grads, const at::Tensor& factor, const std::optional<at::Tensor>& zero) {
  const CallSite site{"scale_", "gradients"};
  GradList list = tensors_of(site, grads, /*none_allowed=*/true);
  if (!is_native(list)) return false;
  without_gil(site, list, [&] { scale(site, list, factor, zero.value_or(at::Tensor())); });
  return true;
}

/// For tests: whether the list is one of PlainGradients.
bool is_plain(const py::sequence& grads) {
  return tensors_of({"is_plain", "gradients"}, grads, /*none_allowed=*/true).plain() != nullptr;
}

bool clamp_gradients(const py::sequence& grads, double limit) {
  const CallSite site{"clip_grad_value_", "gradients"};
  GradList list = tensors_of(site, grads, /*none_allowed=*/true);
  if (!is_native(list)) return false;
  without_gil(site, list, [&] { clip_value(site, list, limit); });
  return true;
}

}  // namespace
}  // namespace gradkern

PYBIND11_MODULE(_C, m) {
  using namespace gradkern;
  if (gradkern_abi_version() != GRADKERN_ABI_VERSION)
    throw py::import_error("expected version " + std::to_string(GRADKERN_ABI_VERSION) +
                           " of the kernels in lib/libgradkern_kernels.so, got " +
                           std::to_string(gradkern_abi_version()) + "; reinstall gradkern");
  m.doc() = "gradkern's compiled part; use the functions of the package gradkern";
  m.def("clip_grad_norm_", &clip_grad_norm);
  m.def("get_total_norm", &get_total_norm);
  m.def("clip_grads_with_norm_", &clip_grads_with_norm);
  m.def("clip_grad_value_", &clip_grad_value);
  m.def("measure", &measure_parameters);
  m.def("measure_gradients", &measure_gradients);
  m.def("clip", &clip_parameters);
  py::class_<GroupPlan>(m, "GroupPlan")
      .def(py::init(&group_plan), py::arg("natives"), py::arg("rows"))
      .def_readonly("elementwise", &GroupPlan::elementwise);
  m.def("clip_by_groups", &clip_parameters_by_groups);
  m.def("agc_", &clip_parameters_by_units);
  m.def("shared_memory", &shared_memory);
  m.def("policy_step_",
        [](const std::string& kind, const at::Tensor& total, const at::Tensor& state,
           const std::vector<double>& constants, const std::optional<at::Tensor>& norms) {
          return policy_step(kind, total, state, constants, norms.value_or(at::Tensor()));
        },
        py::arg("kind"), py::arg("total"), py::arg("state"), py::arg("constants"), py::arg("norms") = py::none());
  m.def("are_tensors", &are_tensors);
  m.def("identities", &identities_of);
  m.def("dicts_unchanged", &dicts_unchanged);
  m.def("partials", &partials);
  m.def("scale_", &scale_gradients, py::arg("grads"), py::arg("factor"), py::arg("zero") = py::none());
  m.def("clamp_", &clamp_gradients);
  m.def("is_plain", &is_plain);
  m.def("why_unusable", [](int index) { return cuda_backend::why_unusable({at::kCUDA, at::DeviceIndex(index)}); });
  m.def("build_info", [] {
    py::dict info;
    for (const auto& [key, value] : build_info()) info[py::str(key)] = value;
    return info;
  });
}
