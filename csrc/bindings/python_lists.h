// Walks a Python list of parameters or tensors, without reading Python attributes if possible.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <utility>

#include "bindings/gradients.h"

namespace gradkern {

/// The gradients of `parameters`, undefined for those without one. Needs the GIL. The Python attribute `.grad` is read
/// only if a type defines its own.
/// `writes`: the call will write unless it fails; see GradList::bump_early().
/// A trainable tensor of a subclass (DTensor) without a gradient takes the place of its gradient. is_native() is then
/// false, as it must be: a rank without a gradient must take part in the collectives of its mesh.
/// Raises TypeError for an entry that is no tensor and has no `.grad`, and ValueError if nothing in a non-empty list
/// is a Parameter, requires grad or has a gradient, because gradients were probably passed.
GradList gradients_of(const CallSite& site, const py::sequence& parameters, bool writes = false);

/// The tensors themselves, undefined for None if `none_allowed`; TypeError for an entry that is neither.
GradList tensors_of(const CallSite& site, const py::sequence& tensors, bool none_allowed = false);

/// Whether all entries are of class Tensor or Parameter, not of a subclass.
bool are_tensors(const py::sequence& items);

/// Python's id() of every entry, and whether they are all different.
std::pair<py::tuple, bool> identities_of(const py::sequence& items);

/// The number of elements of a tensor in a list; 0 for a lazy parameter without a shape.
int64_t numel_at(const CallSite& site, const py::sequence& tensors, size_t index);

/// Whether every dict still has the same objects. `snapshots` has pairs of a dict and a tuple of its keys and values in
/// turn.
bool dicts_unchanged(const py::sequence& snapshots);

}  // namespace gradkern
