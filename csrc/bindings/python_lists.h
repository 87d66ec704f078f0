// Walks a Python list of parameters or tensors without going through Python attributes.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "bindings/gradients.h"

namespace gradkern {

/// The gradients of `parameters` (undefined where there is none). Needs the GIL.
/// Raises TypeError for an entry that is no tensor, and ValueError if nothing in a non-empty list
/// is a Parameter, requires grad or has a gradient: most likely gradients were passed.
GradList gradients_of(const CallSite& site, const py::sequence& parameters);

/// The tensors themselves; TypeError for an entry that is none.
GradList tensors_of(const CallSite& site, const py::sequence& tensors);

/// Whether every (dict, its keys and values in turn as a tuple) still holds the very same objects.
bool dicts_unchanged(const py::sequence& snapshots);

}  // namespace gradkern
