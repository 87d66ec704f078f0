// Prepares a list of torch tensors for the kernels: checks, duplicates, staging.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "bindings/grad_list.h"

namespace gradkern {

/// Whether the kernels can process the list. If false, torch's own operations must be used: for subclasses such as
/// DTensor, dispatch modes, functorch, other devices, and lists with CPU and CUDA tensors.
bool is_native(const GradList& grads);

/// Checks every gradient (TypeError with its index) and finds duplicates: gradients of the same device, pointer, dtype,
/// sizes and strides. Writes nothing. The list keeps the result.
const Prepared& prepare(const CallSite& site, const GradList& grads);

/// The list for writing, in which every memory location appears once. Needed unless writable_in_place(prepared).
Prepared prepare_for_write(const CallSite& site, const GradList& grads, const Prepared& prepared);

/// Whether the list prepared for reading can be used for writing.
inline bool writable_in_place(const Prepared& prepared) {
  return prepared.staged.empty() && !prepared.maybe_overlapping;
}

/// Two positions in different groups whose gradients share memory, if there are any. `group_of` has the group of each
/// position. Writes nothing.
std::optional<std::pair<int64_t, int64_t>> shared_by_groups(const GradList& grads,
                                                            const std::vector<int64_t>& group_of);

/// Copies staged results back.
void write_back(const Prepared& prepared);

}  // namespace gradkern
