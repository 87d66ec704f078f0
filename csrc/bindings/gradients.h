// From a list of torch tensors to what the kernels work on: checks, duplicates, staging.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "bindings/errors.h"
#include "core/dtype.h"

namespace gradkern {

/// One entry a list position; undefined where a parameter has no gradient. Owning: the gradients
/// stay alive while the GIL is released.
using GradList = std::vector<at::Tensor>;

/// Whether a kernel of ours can work on the list. False: torch's own operations have to
/// (subclasses such as DTensor, dispatch modes, functorch, other devices, CPU and CUDA in one list).
bool is_native(const GradList& grads);

/// A gradient that no kernel reads in place (sliced, expanded, sparse, rarer dtypes): a dense copy
/// stands in for it, and after a write goes back into `target`.
struct Staged {
  at::Tensor copy, target;
  at::Tensor offsets;  ///< if defined: the elements of the 1-d target that `copy` holds
  size_t position;     ///< in the list
};

/// The list as the kernels see it.
struct Prepared {
  std::vector<TensorRef> refs;    ///< per position; numel 0 where there is nothing to do
  std::vector<int64_t> first;     ///< per position: the earlier position of the same gradient, or itself
  std::vector<Staged> staged;
  bool any_double = false;        ///< report in float64
  bool any_duplicate = false;
  bool maybe_overlapping = false; ///< several gradients share memory, or one overlaps itself
};

/// Checks every gradient (TypeError with the index) and finds duplicates: the same device, pointer,
/// dtype, sizes and strides. Nothing is written.
Prepared prepare(const CallSite& site, const GradList& grads);

/// The list to write to: as prepared for reading, except that every memory location appears once.
/// `prepared` can serve as it is unless it is staged or may overlap: see `writable_in_place`.
Prepared prepare_for_write(const CallSite& site, const GradList& grads, const Prepared& prepared);

/// Whether what was prepared for reading can be written to as it is.
inline bool writable_in_place(const Prepared& prepared) {
  return prepared.staged.empty() && !prepared.maybe_overlapping;
}

/// Copies staged results back.
void write_back(const Prepared& prepared);

/// What any in-place operation does to autograd's version counter (inference tensors have none).
void bump_version(const at::Tensor& grad);
void bump_versions(const GradList& grads);

}  // namespace gradkern
