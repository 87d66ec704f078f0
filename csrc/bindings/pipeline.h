// A software pipeline over the positions of a list.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace gradkern {

/// The positions that take a step together. Measured for a walk over gradients: 4 to 16 are equally fast.
constexpr int64_t kGroup = 8;

/// Takes every group of kGroup positions of [begin, end) through `steps`. While a group takes one step, the group after it
/// takes the step before. If each step prefetches what the next one reads, the cache misses of several groups overlap.
/// A step is called as step(state, first, last), with the `State` of its group, which earlier steps have set.
template <class State, class... Steps>
void pipelined(int64_t begin, int64_t end, const Steps&... steps) {
  constexpr int64_t kSteps = sizeof...(Steps);
  std::array<State, std::bit_ceil(uint64_t(kSteps))> states;
  const int64_t groups = (end - begin + kGroup - 1) / kGroup;
  for (int64_t turn = 0; turn < groups + kSteps - 1; ++turn) {
    int64_t group = turn;
    const auto take = [&](const auto& step) {
      const int64_t first = begin + group * kGroup;
      if (group >= 0 && group < groups) step(states[size_t(group) % states.size()], first, std::min(first + kGroup, end));
      --group;
    };
    (take(steps), ...);
  }
}

}  // namespace gradkern
