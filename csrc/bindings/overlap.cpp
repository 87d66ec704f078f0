#include "bindings/overlap.h"

#include <algorithm>
#include <functional>
#include <optional>

namespace gradkern {
namespace {

/// A strided tensor as a box in a grid. The steps of the grid are the strides that occur in its cluster, from large to
/// small. Coordinates are like digits: the smaller steps together stay below the next larger one, so that different
/// coordinates are different addresses.
struct Box {
  c10::SmallVector<int64_t, 6> first, last;  // per step
};

std::vector<int64_t> steps_of(const Memory& tensors, Cluster cluster) {
  std::vector<int64_t> steps = {1};
  for (const Interval& member : cluster) {
    const at::Tensor& t = *tensors[member.position];
    for (int64_t d = 0; d < t.dim(); ++d)
      if (t.size(d) > 1) steps.push_back(t.stride(d));
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  return steps;
}

/// The box of a tensor that lies `offset` elements into the grid; none if it is not a box.
std::optional<Box> box_of(const at::Tensor& t, int64_t offset, const std::vector<int64_t>& steps) {
  Box box;
  for (const int64_t step : steps) {
    if (step == 0) return std::nullopt;  // expanded
    box.first.push_back(offset / step);
    box.last.push_back(box.first.back());
    offset %= step;
  }
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) <= 1) continue;
    const auto level = std::lower_bound(steps.begin(), steps.end(), t.stride(d), std::greater<>()) - steps.begin();
    if (box.last[level] != box.first[level]) return std::nullopt;  // two dimensions of one stride
    box.last[level] += t.size(d) - 1;
  }
  int64_t reach = 0;  // of the smaller steps
  for (size_t level = steps.size(); level-- > 1;) {
    reach += box.last[level] * steps[level];
    if (reach >= steps[level - 1]) return std::nullopt;
  }
  return box;
}

bool apart(const Box& a, const Box& b) {
  for (size_t level = 0; level < a.first.size(); ++level)
    if (a.last[level] < b.first[level] || b.last[level] < a.first[level]) return true;
  return false;
}

}  // namespace

int64_t span_of(const at::Tensor& g) {
  int64_t span = 1;
  for (int64_t d = 0; d < g.dim(); ++d) span += (g.size(d) - 1) * g.stride(d);
  return span;
}

std::vector<Interval> intervals_of(const Memory& tensors) {
  std::vector<Interval> intervals;
  intervals.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i]) continue;
    const at::Tensor& t = *tensors[i];
    const auto begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
    const int64_t span = t.is_non_overlapping_and_dense() ? t.numel() : span_of(t);
    intervals.push_back({begin, begin + uintptr_t(span) * t.element_size(), i});
  }
  const auto before = [](const Interval& a, const Interval& b) { return a.begin < b.begin; };
  // Views of one buffer (buckets of DDP or FSDP) are in the order of the buffer, or in reverse.
  if (std::is_sorted(intervals.rbegin(), intervals.rend(), before))
    std::reverse(intervals.begin(), intervals.end());
  if (!std::is_sorted(intervals.begin(), intervals.end(), before))
    std::sort(intervals.begin(), intervals.end(), before);
  return intervals;
}

Cluster first_cluster(Cluster intervals) {
  uintptr_t reach = intervals.front().end;
  size_t count = 1;
  for (; count < intervals.size() && intervals[count].begin < reach; ++count)
    reach = std::max(reach, intervals[count].end);
  return intervals.slice(0, count);
}

bool has_distinct_elements(const Memory& tensors, Cluster cluster) {
  constexpr size_t kPairwise = 1024;  // boxes are compared pairwise
  if (cluster.size() > kPairwise) return false;
  const std::vector<int64_t> steps = steps_of(tensors, cluster);
  const at::ScalarType type = tensors[cluster.front().position]->scalar_type();
  const uintptr_t origin = cluster.front().begin;
  std::vector<Box> boxes;
  for (const Interval& member : cluster) {
    const at::Tensor& t = *tensors[member.position];
    const uintptr_t offset = member.begin - origin;
    if (t.scalar_type() != type || offset % t.element_size()) return false;
    const std::optional<Box> box = box_of(t, int64_t(offset / t.element_size()), steps);
    if (!box) return false;
    for (const Box& other : boxes)
      if (!apart(*box, other)) return false;
    boxes.push_back(*box);
  }
  return true;
}

std::optional<std::pair<int64_t, int64_t>> shared_by_groups(const Memory& tensors,
                                                            const std::vector<int64_t>& group_of) {
  const std::vector<Interval> intervals = intervals_of(tensors);
  for (Cluster rest = intervals; !rest.empty();) {
    const Cluster cluster = first_cluster(rest);
    rest = rest.slice(cluster.size());
    const size_t first = cluster.front().position;
    const auto other = std::find_if(cluster.begin(), cluster.end(),
                                    [&](const Interval& i) { return group_of[i.position] != group_of[first]; });
    if (other != cluster.end() && !has_distinct_elements(tensors, cluster))
      return std::pair{int64_t(first), int64_t(other->position)};
  }
  return std::nullopt;
}

}  // namespace gradkern
