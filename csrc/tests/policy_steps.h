// Test only: steps of every adaptive policy by the CUDA kernel, beside the same steps by one thread of the CPU.
#pragma once

#include <algorithm>
#include <random>

#include "core/policies.h"
#include "cuda/launch.h"
#include "tests/kernel_case.h"

namespace gradkern::test {

/// A block of threads leaves the state and the decision that one thread leaves, step after step. AutoClip's window and
/// AdaGC's rows are more than a block has threads. The kernel takes every `stride`-th step, one thread the others.
inline void check_policy_steps(int stride) {
  const struct { PolicyKind kind; std::vector<double> constants; } cases[] = {
      {PolicyKind::kAutoClip, {25, 700}},
      {PolicyKind::kZClip, {0.97, 2.5, 25, 1, 5, 1e-6, 1, 0}},
      {PolicyKind::kSkipOutliers, {3, 40, 20, 0, 1}},
      {PolicyKind::kAdaGC, {0.98, 1, 1.05, 10}}};
  std::mt19937 random(3);
  std::lognormal_distribution<double> norm(0, 1);
  for (const auto& c : cases) {
    context = "policy " + std::to_string(int(c.kind));
    PolicyStep step{};
    step.kind = c.kind;
    step.rows = 400;
    step.total_is_double = step.norms_are_double = true;
    std::copy(c.constants.begin(), c.constants.end(), step.constants);
    std::vector<double> norms(400), states[2], results[2];
    for (int side : {0, 1}) {
      states[side].resize(size_t(policy_state_size(step)));
      results[side].resize(size_t(policy_result_size(step)));
    }
    for (int t = 0; t < 900; ++t) {
      if (c.kind == PolicyKind::kAdaGC && t > 30) break;
      const double total = t % 50 == 49 ? double(INFINITY) : norm(random);
      for (double& n : norms) n = random() % 9 ? norm(random) : 0.0;
      step.total = &total;
      step.norms = norms.data();
      for (int side : {0, 1}) {
        step.state = states[side].data();
        step.result = results[side].data();
        if (side && t % stride == 0) cuda::launch_policy(step, 0, nullptr);
        else take_policy_step(step, OneThread{});
      }
      CHECK(results[0] == results[1], "decision of step %d", t);
      CHECK(states[0] == states[1], "state after step %d", t);
    }
  }
}

}  // namespace gradkern::test
