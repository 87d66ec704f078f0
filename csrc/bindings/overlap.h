// Finds tensors that share memory, so that each element is written once.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>
#include <vector>

namespace gradkern {

/// The addresses from the first to the last element of tensor `position`. Elements of others may lie between.
struct Interval {
  uintptr_t begin, end;
  size_t position;
};

/// The number of elements from the first to the last of a strided tensor, both included.
int64_t span_of(const at::Tensor& g);

/// Tensors to write (strided, not empty), or null.
using Memory = std::vector<const at::Tensor*>;

/// Intervals that overlap one another, in the order of addresses.
using Cluster = at::ArrayRef<Interval>;

/// The intervals of all tensors, in the order of addresses. Gives lazy clones (copy on write) their own memory.
std::vector<Interval> intervals_of(const Memory& tensors);

/// The first cluster of sorted intervals.
Cluster first_cluster(Cluster intervals);

/// Two positions in different groups whose tensors share memory, if there are any. `group_of` has the group of each
/// position.
std::optional<std::pair<int64_t, int64_t>> shared_by_groups(const Memory& tensors, const std::vector<int64_t>& group_of);

/// Whether no two elements of a cluster share memory, as far as strides show. May be false for disjoint tensors.
bool has_distinct_elements(const Memory& tensors, Cluster cluster);

}  // namespace gradkern
