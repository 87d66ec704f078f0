#include "bindings/python_lists.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/python_strings.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>

#include "bindings/thread_pool.h"
#include "core/prefetch.h"

namespace gradkern {
namespace {

const at::Tensor& tensor_at(const CallSite& site, PyObject* item, int64_t index) {
  GRADKERN_CHECK_TYPE(THPVariable_Check(item), site, index, "expected a Tensor or Parameter, got ",
                      Py_TYPE(item)->tp_name);
  return THPVariable_Unpack(item);
}

/// A run of a list of Python objects. The data of a gradient are five pointers away from its object, and in a list of
/// thousands each pointer is a cache miss. The loops below follow one pointer for all objects of a run before the next,
/// so that the misses overlap.
struct Run {
  PyObject* const* items;
  size_t begin, count;  ///< positions in the list
};
using Found = std::array<const at::Tensor*, kRun>;

const at::Tensor kUndefined;

/// The tensors of the objects; undefined for None. False if one is not exactly a Tensor or Parameter: the attributes of
/// subclasses must be read through Python.
bool unpack(const Run& run, Found& tensors) {
  for (size_t i = 0; i < run.count; ++i) prefetch(run.items[i], 32);
  for (size_t i = 0; i < run.count; ++i) {
    const bool none = run.items[i] == Py_None;
    if (!none && !THPVariable_CheckExact(run.items[i])) return false;
    tensors[i] = none ? &kUndefined : &THPVariable_Unpack(run.items[i]);
    prefetch(tensors[i]->unsafeGetTensorImpl(), kHeadBytes);
  }
  return true;
}

/// Replaces parameters by their gradients. False if a parameter without a gradient is of a subclass.
bool lead_to_gradients(const Run& run, Found& tensors, bool& any_candidate) {
  Found grads;
  for (size_t i = 0; i < run.count; ++i) {
    if (tensors[i] == &kUndefined) return false;
    // Its member and not its virtual function, whose table lies in another cache line.
    const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(tensors[i]->unsafeGetTensorImpl()->autograd_meta());
    grads[i] = meta ? &meta->grad_ : &kUndefined;
    prefetch(grads[i], sizeof(at::Tensor));
  }
  for (size_t i = 0; i < run.count; ++i) {
    const at::Tensor& parameter = *tensors[i];
    tensors[i] = grads[i];
    if (!tensors[i]->defined() && parameter.key_set().has(c10::DispatchKey::Python)) return false;
    any_candidate = any_candidate || tensors[i]->defined() || parameter.requires_grad() ||
                    Py_TYPE(run.items[i]) == reinterpret_cast<PyTypeObject*>(ParameterClass);
  }
  return true;
}

/// Fills a list from Python objects. `lead(run, tensors)` replaces the objects' tensors by those of the list. Empty if it
/// or unpack() returns false: the objects must then be read one by one.
template <class Lead>
std::optional<GradList> fill(const py::object& list, const Lead& lead) {
  const size_t count = size_t(PySequence_Fast_GET_SIZE(list.ptr()));
  PyObject* const* const items = PySequence_Fast_ITEMS(list.ptr());
  GradList grads(count);
  std::atomic<bool> simple{true}, plain{true};
  for_each_run(int64_t(count), [&](int64_t begin, int64_t end) {
    const Run run{items + begin, size_t(begin), size_t(end - begin)};
    Found tensors;
    if (!simple || !unpack(run, tensors) || !lead(run, tensors)) return simple.store(false);
    for (size_t i = 0; i < run.count; ++i) prefetch_tensor(tensors[i]->unsafeGetTensorImpl());
    if (!grads.set_run(run.begin, tensors.data(), run.count)) plain = false;
  });
  if (!simple) return std::nullopt;
  grads.finish(plain);
  return grads;
}

py::object fast_sequence(const py::sequence& sequence) {
  PyObject* const fast = PySequence_Fast(sequence.ptr(), "expected a list or tuple");
  if (!fast) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(fast);
}

/// Calls body(item, index) for every entry. `body` may run Python code that shrinks the list.
template <class Body>
void for_each_item(const py::object& list, const Body& body) {
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.ptr()); ++i)
    body(PySequence_Fast_GET_ITEM(list.ptr(), i), int64_t(i));
}

PyObject* grad_name() {
  static PyObject* const name = THPUtils_internString("grad");
  return name;
}

/// Whether the object's `.grad` is that of Tensor, which can be read without Python.
bool has_plain_grad(PyObject* item) {
  if (THPVariable_CheckExact(item)) return true;
  PyObject* const name = grad_name();
  static PyObject* const plain = _PyType_Lookup(reinterpret_cast<PyTypeObject*>(THPVariableClass), name);
  return THPVariable_Check(item) && _PyType_Lookup(Py_TYPE(item), name) == plain;
}

/// `.grad` as a Python attribute, of a subclass of Parameter or an object that wraps one. TypeError if there is none.
/// Errors of a property are propagated.
at::Tensor grad_attribute(const CallSite& site, PyObject* item, int64_t index) {
  const py::object owned = py::reinterpret_borrow<py::object>(item);  // its code may change the list
  PyObject* const name = grad_name();
  const py::object grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(item, name));
  if (!grad) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError) || _PyType_Lookup(Py_TYPE(item), name))
      throw py::error_already_set();
    PyErr_Clear();
    tensor_at(site, item, index);  // raises
  }
  if (grad.is_none()) return {};
  const bool is_tensor = THPVariable_Check(grad.ptr());
  if (!is_tensor) tensor_at(site, item, index);
  GRADKERN_CHECK_TYPE(is_tensor, site, index, "expected .grad to be a Tensor or None, got ",
                      Py_TYPE(grad.ptr())->tp_name);
  return THPVariable_Unpack(grad.ptr());
}

}  // namespace

namespace {

void check_any_candidate(const CallSite& site, const GradList& grads, bool any_candidate) {
  TORCH_CHECK_VALUE(any_candidate || grads.empty(), "[", site.operation, "] ", site.list,
                    ": none of the ", grads.size(), " tensors requires grad or has a .grad; pass the parameters ",
                    "here, or the gradients to get_total_norm");
}

/// The gradients of parameters some of which are objects of other classes.
GradList gradients_one_by_one(const CallSite& site, const py::object& parameters) {
  GradList grads;
  bool any_candidate = false;
  for_each_item(parameters, [&](PyObject* item, int64_t index) {
    if (!has_plain_grad(item)) {
      grads.own();  // its code may free others
      grads.add(grad_attribute(site, item, index));
      any_candidate = true;
      return;
    }
    const at::Tensor& parameter = tensor_at(site, item, index);
    const at::Tensor& grad = parameter.unsafeGetTensorImpl()->grad();
    any_candidate = any_candidate || grad.defined() || parameter.requires_grad() ||
                    PyType_IsSubtype(Py_TYPE(item), reinterpret_cast<PyTypeObject*>(ParameterClass));
    const bool joins_without =
        !grad.defined() && parameter.key_set().has(c10::DispatchKey::Python) && parameter.requires_grad();
    grads.add(joins_without ? parameter : grad);
  });
  check_any_candidate(site, grads, any_candidate);
  return grads;
}

}  // namespace

GradList gradients_of(const CallSite& site, const py::sequence& parameters) {
  const py::object list = fast_sequence(parameters);
  std::atomic<bool> any_candidate{false};
  std::optional<GradList> grads = fill(list, [&](const Run& run, Found& tensors) {
    bool candidate = false;
    const bool simple = lead_to_gradients(run, tensors, candidate);
    if (candidate) any_candidate.store(true, std::memory_order_relaxed);
    return simple;
  });
  if (!grads) return gradients_one_by_one(site, list);
  check_any_candidate(site, *grads, any_candidate);
  return std::move(*grads);
}

GradList tensors_of(const CallSite& site, const py::sequence& tensors, bool none_allowed) {
  const py::object list = fast_sequence(tensors);
  std::optional<GradList> filled = fill(list, [&](const Run& run, Found& found) {
    return none_allowed || std::all_of(found.begin(), found.begin() + run.count,
                                       [](const at::Tensor* t) { return t != &kUndefined; });
  });
  if (filled) return std::move(*filled);
  GradList one_by_one;
  for_each_item(list, [&](PyObject* item, int64_t index) {
    if (none_allowed && item == Py_None) one_by_one.add({});
    else one_by_one.add(tensor_at(site, item, index));
  });
  return one_by_one;
}

py::tuple numels_of(const CallSite& site, const py::sequence& parameters) {
  const py::object list = fast_sequence(parameters);
  const size_t count = size_t(PySequence_Fast_GET_SIZE(list.ptr()));
  py::tuple numels(count);
  for (size_t begin = 0; begin < count; begin += kRun) {
    const Run run{PySequence_Fast_ITEMS(list.ptr()) + begin, begin, std::min(count - begin, size_t(kRun))};
    Found tensors;
    const bool simple = unpack(run, tensors);
    for (size_t i = 0; simple && i < run.count; ++i) prefetch_tensor(tensors[i]->unsafeGetTensorImpl());
    for (size_t i = 0; i < run.count; ++i) {
      const at::Tensor& tensor = simple ? *tensors[i] : tensor_at(site, run.items[i], int64_t(begin + i));
      numels[begin + i] = tensor.numel();
    }
  }
  return numels;
}

bool are_tensors(const py::sequence& items) {
  const py::object list = fast_sequence(items);
  std::atomic<bool> all{true};
  for_each_run(int64_t(PySequence_Fast_GET_SIZE(list.ptr())), [&](int64_t begin, int64_t end) {
    PyObject* const* const first = PySequence_Fast_ITEMS(list.ptr());
    for (int64_t i = begin; i < end; ++i) prefetch(first[i], 16);
    for (int64_t i = begin; i < end; ++i)
      if (!THPVariable_CheckExact(first[i])) all = false;
  });
  return all;
}

std::pair<py::tuple, bool> identities_of(const py::sequence& items) {
  const py::object list = fast_sequence(items);
  PyObject* const* const first = PySequence_Fast_ITEMS(list.ptr());
  const size_t count = size_t(PySequence_Fast_GET_SIZE(list.ptr()));
  py::tuple identities(count);
  PointerTable table(count);
  bool distinct = true, seen;
  for (size_t i = 0; i < count; ++i) {
    identities[i] = py::reinterpret_steal<py::object>(PyLong_FromVoidPtr(first[i]));
    const auto pointer_at = [&](int64_t j) { return static_cast<const void*>(first[j]); };
    table.find_or_insert(first[i], int64_t(i), pointer_at, [](int64_t) { return true; }, seen);
    distinct = distinct && !seen;
  }
  return {identities, distinct};
}

bool dicts_unchanged(const py::sequence& snapshots) {
  for (const py::handle snapshot : snapshots) {
    PyObject* dict = PyTuple_GET_ITEM(snapshot.ptr(), 0);
    PyObject* items = PyTuple_GET_ITEM(snapshot.ptr(), 1);
    if (2 * PyDict_Size(dict) != PyTuple_GET_SIZE(items)) return false;
    PyObject *key, *value;
    for (Py_ssize_t position = 0, i = 0; PyDict_Next(dict, &position, &key, &value); i += 2)
      if (key != PyTuple_GET_ITEM(items, i) || value != PyTuple_GET_ITEM(items, i + 1)) return false;
  }
  return true;
}

}  // namespace gradkern
