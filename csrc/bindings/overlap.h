// Which of the tensors that are to be written share memory: each element must be written once.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace gradkern {

/// The addresses between the first and the last element of tensor `position`; others' may lie between.
struct Interval {
  uintptr_t begin, end;
  size_t position;
};

/// How many elements lie between the first and the last of a strided tensor, both included.
int64_t span_of(const at::Tensor& g);

/// The defined tensors (strided, not empty), those whose intervals touch together, each cluster in the
/// order of addresses.
std::vector<std::vector<Interval>> clusters_of(const std::vector<at::Tensor>& tensors);

/// Whether no two elements of a cluster share memory, as far as strides show it: "false" may be caution.
bool has_distinct_elements(const std::vector<at::Tensor>& tensors, const std::vector<Interval>& cluster);

}  // namespace gradkern
