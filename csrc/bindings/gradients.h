// From a list of torch tensors to what the kernels work on: checks, duplicates, staging.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "bindings/grad_list.h"

namespace gradkern {

/// Whether a kernel of ours can work on the list. False: torch's own operations have to
/// (subclasses such as DTensor, dispatch modes, functorch, other devices, CPU and CUDA in one list).
bool is_native(const GradList& grads);

/// Checks every gradient (TypeError with the index) and finds duplicates: the same device, pointer,
/// dtype, sizes and strides. Nothing is written. Done once a list, which keeps the result.
const Prepared& prepare(const CallSite& site, const GradList& grads);

/// The list to write to: as prepared for reading, except that every memory location appears once.
/// `prepared` can serve as it is unless it is staged or may overlap: see `writable_in_place`.
Prepared prepare_for_write(const CallSite& site, const GradList& grads, const Prepared& prepared);

/// Whether what was prepared for reading can be written to as it is.
inline bool writable_in_place(const Prepared& prepared) {
  return prepared.staged.empty() && !prepared.maybe_overlapping;
}

/// Two positions of different groups whose gradients share memory, if there are any; `group_of` has one number a
/// position. Nothing is written.
std::optional<std::pair<int64_t, int64_t>> shared_by_groups(const GradList& grads,
                                                            const std::vector<int64_t>& group_of);

/// Copies staged results back.
void write_back(const Prepared& prepared);

/// What any in-place operation does to autograd's version counter (inference tensors have none).
void bump_version(const at::Tensor& grad);
void bump_versions(const GradList& grads);

}  // namespace gradkern
