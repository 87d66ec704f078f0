#include "bindings/python_lists.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/python_strings.h>

#include "core/prefetch.h"

namespace gradkern {
namespace {

const at::Tensor& tensor_at(const CallSite& site, PyObject* item, int64_t index) {
  GRADKERN_CHECK_TYPE(THPVariable_Check(item), site, index, "expected a Tensor or Parameter, got ",
                      Py_TYPE(item)->tp_name);
  return THPVariable_Unpack(item);
}

const at::TensorImpl* impl_at(PyObject* list, Py_ssize_t i) {
  if (i >= PySequence_Fast_GET_SIZE(list)) return nullptr;
  PyObject* item = PySequence_Fast_GET_ITEM(list, i);
  return THPVariable_CheckExact(item) ? THPVariable_Unpack(item).unsafeGetTensorImpl() : nullptr;
}

void prefetch_storage(const at::TensorImpl& tensor) {
  if (tensor.has_storage()) prefetch(tensor.unsafe_storage().unsafeGetStorageImpl(), 128);
}

/// From a Python object to its gradient's data are five pointers, each a cache miss of its own where
/// there are thousands of tensors. Entries further on are led one pointer down at every turn, so that
/// their misses overlap.
constexpr Py_ssize_t kTurns = 6;

void prefetch_gradients(PyObject* list, Py_ssize_t i) {
  if (i + 5 * kTurns < PySequence_Fast_GET_SIZE(list))
    prefetch(PySequence_Fast_GET_ITEM(list, i + 5 * kTurns), 32);
  if (const at::TensorImpl* parameter = impl_at(list, i + 4 * kTurns)) prefetch(parameter, 64);
  if (const at::TensorImpl* parameter = impl_at(list, i + 3 * kTurns))
    if (const void* metadata = const_cast<at::TensorImpl*>(parameter)->autograd_meta())
      prefetch(metadata, 64);
  if (const at::TensorImpl* parameter = impl_at(list, i + 2 * kTurns))
    prefetch(parameter->grad().unsafeGetTensorImpl(), sizeof(at::TensorImpl));
  if (const at::TensorImpl* parameter = impl_at(list, i + kTurns))
    if (parameter->grad().defined()) prefetch_storage(*parameter->grad().unsafeGetTensorImpl());
}

void prefetch_tensors(PyObject* list, Py_ssize_t i) {
  if (i + 3 * kTurns < PySequence_Fast_GET_SIZE(list))
    prefetch(PySequence_Fast_GET_ITEM(list, i + 3 * kTurns), 32);
  if (const at::TensorImpl* tensor = impl_at(list, i + 2 * kTurns)) prefetch(tensor, sizeof(at::TensorImpl));
  if (const at::TensorImpl* tensor = impl_at(list, i + kTurns)) prefetch_storage(*tensor);
}

/// Calls body(item, index) for every entry; a list that Python code shrinks meanwhile is safe.
template <class Prefetch, class Body>
void for_each_item(const py::sequence& sequence, const Prefetch& prefetch_ahead, const Body& body) {
  const py::object fast =
      py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), "expected a list or tuple"));
  if (!fast) throw py::error_already_set();
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast.ptr()); ++i) {
    prefetch_ahead(fast.ptr(), i);
    body(PySequence_Fast_GET_ITEM(fast.ptr(), i), int64_t(i));
  }
}

PyObject* grad_name() {
  static PyObject* const name = THPUtils_internString("grad");
  return name;
}

/// Whether the object's `.grad` is Tensor's own, so that it can be read without Python.
bool has_plain_grad(PyObject* item) {
  if (THPVariable_CheckExact(item)) return true;
  PyObject* const name = grad_name();
  static PyObject* const plain = _PyType_Lookup(reinterpret_cast<PyTypeObject*>(THPVariableClass), name);
  return THPVariable_Check(item) && _PyType_Lookup(Py_TYPE(item), name) == plain;
}

/// `.grad` by Python's rules: a property of a Parameter's subclass, or of an object that wraps one.
/// TypeError for an object without it; what a property itself raises goes through.
at::Tensor grad_attribute(const CallSite& site, PyObject* item, int64_t index) {
  const py::object owned = py::reinterpret_borrow<py::object>(item);  // its code may change the list
  PyObject* const name = grad_name();
  const py::object grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(item, name));
  if (!grad) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError) || _PyType_Lookup(Py_TYPE(item), name))
      throw py::error_already_set();
    PyErr_Clear();
    tensor_at(site, item, index);  // says what was expected
  }
  if (grad.is_none()) return {};
  const bool is_tensor = THPVariable_Check(grad.ptr());
  if (!is_tensor) tensor_at(site, item, index);
  GRADKERN_CHECK_TYPE(is_tensor, site, index, "expected .grad to be a Tensor or None, got ",
                      Py_TYPE(grad.ptr())->tp_name);
  return THPVariable_Unpack(grad.ptr());
}

}  // namespace

GradList gradients_of(const CallSite& site, const py::sequence& parameters) {
  GradList grads(py::len(parameters));
  bool any_candidate = false;
  for_each_item(parameters, prefetch_gradients, [&](PyObject* item, int64_t index) {
    if (!has_plain_grad(item)) {
      grads.own();  // its code may let go of others
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
  TORCH_CHECK_VALUE(any_candidate || grads.empty(), "[", site.operation, "] ", site.list,
                    ": expected parameters, got ", grads.size(), " plain tensors of which none requires ",
                    "grad or has a .grad; pass the parameters, or the gradients to get_total_norm");
  return grads;
}

GradList tensors_of(const CallSite& site, const py::sequence& tensors, bool none_allowed) {
  GradList list(py::len(tensors));
  for_each_item(tensors, prefetch_tensors, [&](PyObject* item, int64_t index) {
    if (none_allowed && item == Py_None) list.add({});
    else list.add(tensor_at(site, item, index));
  });
  return list;
}

py::tuple numels_of(const CallSite& site, const py::sequence& parameters) {
  py::tuple numels(py::len(parameters));
  for_each_item(parameters, prefetch_tensors, [&](PyObject* item, int64_t index) {
    if (size_t(index) < numels.size()) numels[size_t(index)] = tensor_at(site, item, index).numel();
  });
  return numels;
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
