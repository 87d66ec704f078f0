#include "bindings/python_lists.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/python_strings.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <utility>

#include "bindings/pipeline.h"
#include "bindings/thread_pool.h"
#include "core/prefetch.h"

namespace gradkern {
namespace {

const at::Tensor& tensor_at(const CallSite& site, PyObject* item, int64_t index) {
  GRADKERN_CHECK_TYPE(THPVariable_Check(item), site, index, "expected a Tensor or Parameter, got ",
                      Py_TYPE(item)->tp_name);
  return THPVariable_Unpack(item);
}

/// The tensors of a group of objects. The data of a gradient are five pointers away from its object, and in a list of
/// thousands each pointer is a cache miss. Each step of the walks below follows one pointer.
using Found = std::array<const at::Tensor*, kGroup>;

const at::Tensor kUndefined;

void prefetch_objects(PyObject* const* items, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(&items[i]->ob_type);
    __builtin_prefetch(&reinterpret_cast<THPVariable*>(items[i])->cdata);
  }
}

/// The tensors of the objects; undefined for None. False if one is not exactly a Tensor or Parameter: the attributes of
/// subclasses must be read through Python.
bool unpack(PyObject* const* items, int64_t count, Found& tensors) {
  for (int64_t i = 0; i < count; ++i) {
    const bool none = items[i] == Py_None;
    if (!none && !THPVariable_CheckExact(items[i])) return false;
    tensors[size_t(i)] = none ? &kUndefined : &THPVariable_Unpack(items[i]);
    prefetch_member(tensors[size_t(i)]->unsafeGetTensorImpl(), 8);  // the autograd metadata
  }
  return true;
}

/// Finds the members of the parameters' metadata that hold gradients.
bool find_gradients(const Found& parameters, int64_t count, Found& grads) {
  for (size_t i = 0; i < size_t(count); ++i) {
    if (parameters[i] == &kUndefined) return false;
    // The member and not the virtual function, whose table lies in another cache line.
    const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(parameters[i]->unsafeGetTensorImpl()->autograd_meta());
    grads[i] = meta ? &meta->grad_ : &kUndefined;
    __builtin_prefetch(grads[i]);
  }
  return true;
}

/// Replaces parameters by their gradients. False if a parameter without a gradient is of a subclass.
bool lead_to_gradients(PyObject* const* items, int64_t count, const Found& grads, Found& tensors, bool& any_candidate) {
  for (size_t i = 0; i < size_t(count); ++i) {
    const at::Tensor& parameter = *std::exchange(tensors[i], grads[i]);
    if (grads[i]->defined()) {
      any_candidate = true;
      continue;
    }
    if (parameter.key_set().has(c10::DispatchKey::Python)) return false;
    any_candidate = any_candidate || parameter.requires_grad() || Py_TYPE(items[i]) == reinterpret_cast<PyTypeObject*>(ParameterClass);
  }
  return true;
}

/// Whether a list is walked in one thread. Between backward on a device and the clip, torch's threads on the CPU sleep;
/// waking them takes longer than they save.
bool is_on_cuda(PyObject* const* items, size_t count) {
  return count && THPVariable_CheckExact(items[0]) && THPVariable_Unpack(items[0]).is_cuda();
}

/// Fills a list from Python objects. find(tensors, count, found) and lead(items, count, found, tensors) are two steps that
/// replace the objects' tensors by those of the list. Empty if a step returns false: the objects must then be read one by
/// one. `writes`: see gradients_of().
template <class Find, class Lead>
std::optional<GradList> fill(const py::object& list, const Find& find, const Lead& lead, bool writes = false) {
  struct Group {
    Found tensors, found;
  };
  const size_t count = size_t(PySequence_Fast_GET_SIZE(list.ptr()));
  PyObject* const* const items = PySequence_Fast_ITEMS(list.ptr());
  const bool cuda = is_on_cuda(items, count);
  GradList grads(count);
  if (writes && cuda) grads.bump_early();
  std::atomic<bool> simple{true}, plain{true};
  const auto check = [&](bool passed) { return passed || (simple.store(false, std::memory_order_relaxed), false); };
  const auto goes_on = [&] { return simple.load(std::memory_order_relaxed); };
  const auto walk = [&](int64_t begin, int64_t end) {
    pipelined<Group>(
        begin, end, [&](Group&, int64_t first, int64_t last) { prefetch_objects(items + first, last - first); },
        [&](Group& g, int64_t first, int64_t last) { goes_on() && check(unpack(items + first, last - first, g.tensors)); },
        [&](Group& g, int64_t first, int64_t last) { goes_on() && check(find(g.tensors, last - first, g.found)); },
        [&](Group& g, int64_t first, int64_t last) {
          if (!goes_on() || !check(lead(items + first, last - first, g.found, g.tensors))) return;
          for (int64_t i = 0; i < last - first; ++i) prefetch_tensor(g.tensors[size_t(i)]->unsafeGetTensorImpl());
        },
        [&](Group& g, int64_t first, int64_t last) {
          if (!goes_on()) return;
          for (int64_t i = 0; i < last - first; ++i) grads.prefetch_memory(*g.tensors[size_t(i)]);
        },
        [&](Group& g, int64_t first, int64_t last) {
          if (!goes_on()) return;
          bool all_plain = true;
          for (int64_t i = first; i < last; ++i) all_plain &= grads.set(size_t(i), *g.tensors[size_t(i - first)]);
          if (!all_plain) plain.store(false, std::memory_order_relaxed);
        });
  };
  if (cuda) walk(0, int64_t(count));
  else for_each_run<kSpan>(int64_t(count), walk);
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

GradList gradients_of(const CallSite& site, const py::sequence& parameters, bool writes) {
  const py::object list = fast_sequence(parameters);
  std::atomic<bool> any_candidate{false};
  const auto lead = [&](PyObject* const* items, int64_t count, const Found& grads, Found& tensors) {
    bool candidate = false;
    const bool simple = lead_to_gradients(items, count, grads, tensors, candidate);
    if (candidate) any_candidate.store(true, std::memory_order_relaxed);
    return simple;
  };
  std::optional<GradList> grads = fill(list, find_gradients, lead, writes);
  if (!grads) return gradients_one_by_one(site, list);
  check_any_candidate(site, *grads, any_candidate);
  return std::move(*grads);
}

GradList tensors_of(const CallSite& site, const py::sequence& tensors, bool none_allowed) {
  const py::object list = fast_sequence(tensors);
  const auto find = [&](const Found& tensors, int64_t count, Found&) {
    return none_allowed || std::find(tensors.begin(), tensors.begin() + count, &kUndefined) == tensors.begin() + count;
  };
  std::optional<GradList> filled = fill(list, find, [](auto&&...) { return true; });
  if (filled) return std::move(*filled);
  GradList one_by_one;
  for_each_item(list, [&](PyObject* item, int64_t index) {
    if (none_allowed && item == Py_None) one_by_one.add({});
    else one_by_one.add(tensor_at(site, item, index));
  });
  return one_by_one;
}

int64_t numel_at(const CallSite& site, const py::sequence& tensors, size_t index) {
  const py::object item = tensors[index];
  return tensor_at(site, item.ptr(), int64_t(index)).numel();
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
  PointerTable table;
  table.clear(count);
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
