// Which of the tensors that are to be written share memory: each element must be written once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>
#include <vector>

namespace gradkern {

/// The addresses between the first and the last element of tensor `position`; others' may lie between.
struct Interval {
  uintptr_t begin, end;
  size_t position;
};

/// How many elements lie between the first and the last of a strided tensor, both included.
int64_t span_of(const at::Tensor& g);

/// Tensors to write (strided, not empty), or null.
using Memory = std::vector<const at::Tensor*>;

/// Intervals that touch one another, in the order of addresses.
using Cluster = at::ArrayRef<Interval>;

/// Of all the tensors, in the order of addresses. Tensors that share their memory until one of them is
/// written (copy on write) part here.
std::vector<Interval> intervals_of(const Memory& tensors);

/// The cluster that a run of whole clusters begins with.
Cluster first_cluster(Cluster intervals);

/// Two positions of different groups whose tensors share memory, if there are any; `group_of` has one number a
/// position.
std::optional<std::pair<int64_t, int64_t>> shared_by_groups(const Memory& tensors, const std::vector<int64_t>& group_of);

/// Whether no two elements of a cluster share memory, as far as strides show it: "false" may be caution.
bool has_distinct_elements(const Memory& tensors, Cluster cluster);

}  // namespace gradkern
