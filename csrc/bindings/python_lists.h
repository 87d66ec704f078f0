// Walks a Python list of parameters or tensors, without going through Python attributes where it can.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <utility>

#include "bindings/gradients.h"

namespace gradkern {

/// The gradients of `parameters` (undefined where there is none). Needs the GIL. Python's attribute
/// `.grad` is asked only where a type has its own.
/// A trainable tensor subclass (DTensor) without gradient stands for its gradient, so that
/// is_native says no: a rank that has no gradient must still join its mesh's collective.
/// Raises TypeError for an entry that is no tensor and has no .grad, and ValueError if nothing in a non-empty list
/// is a Parameter, requires grad or has a gradient: most likely gradients were passed.
GradList gradients_of(const CallSite& site, const py::sequence& parameters);

/// The tensors themselves, undefined for None if `none_allowed`; TypeError for an entry that is neither.
GradList tensors_of(const CallSite& site, const py::sequence& tensors, bool none_allowed = false);

/// Whether all entries are of class Tensor or Parameter, and none of a subclass.
bool are_tensors(const py::sequence& items);

/// Python's id() of every entry, and whether they are all different.
std::pair<py::tuple, bool> identities_of(const py::sequence& items);

/// How many elements each parameter has, as a tuple of int; 0 for a lazy one without a shape yet.
py::tuple numels_of(const CallSite& site, const py::sequence& parameters);

/// Whether every (dict, its keys and values in turn as a tuple) still holds the very same objects.
bool dicts_unchanged(const py::sequence& snapshots);

}  // namespace gradkern
