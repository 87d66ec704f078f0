// Policies (core/policies.h) for tensors: a step of one policy, and a clip that several of them decide.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/engine.h"
#include "core/policies.h"

namespace gradkern {

/// Decides from `total` (0-d, float32 or float64) and, for "adagc", `norms` ([N]), and updates `state` (float64 [S]),
/// all on one device. Returns the result of core/policies.h, float64, on that device.
/// Raises ValueError for an unexpected name, shape, type or device, before anything changes.
at::Tensor policy_step(const std::string& kind, const at::Tensor& total, const at::Tensor& state,
                       const std::vector<double>& constants, const at::Tensor& norms);

/// A step of the policy called `kind`, with its constants checked, and nothing else filled in.
PolicyStep policy_step_of(const CallSite& site, const std::string& kind, const std::vector<double>& constants);

/// A policy of a group of positions.
struct GroupPolicy {
  std::string kind;               ///< "nothing", "global_norm", "value", "agc", or a kind of policy_step()
  std::vector<double> constants;
  at::Tensor state;               ///< float64 [S] on the CPU; undefined if the policy has no state
  at::Tensor rows;                ///< int64: the group's positions; undefined: all of them
  at::Tensor layers;              ///< int64: the layer of each row, if "global_norm" limits every layer by itself
};

/// The policies of a clipper, checked once for a number of positions and used again while no setting changes.
struct GroupPlan {
  std::vector<GroupPolicy> groups;
  bool by_weights = false;   ///< whether a policy reads the weights
  bool elementwise = false;  ///< whether one changes elements by themselves
  bool by_rows = false;      ///< whether one needs the norms of positions
  int64_t positions = -1;    ///< what the plan was checked for
  std::vector<PolicyStep> steps;

  explicit GroupPlan(std::vector<GroupPolicy> given);
  /// Whether groups have rows of their own, instead of one that has all.
  bool named() const { return groups.front().rows.defined(); }
  /// Raises ValueError for an unexpected name, shape, type or device.
  void check(const CallSite& site, int64_t count);
};

/// The decisions of all groups. Tensors are float64 on the CPU.
struct GroupedClip {
  ClipResult clip;                 ///< its skip_step only if something can skip
  at::Tensor factor;               ///< [N]; undefined if all are the same, clip.clip_coef
  at::Tensor norms;                ///< [G]; undefined if no group has rows of its own
  std::vector<double> thresholds;  ///< [G]
  at::Tensor row_thresholds;       ///< [N]; undefined unless a policy has a threshold per row
  bool supported = true;           ///< false if these gradients need another route; nothing has changed
  /// Two positions in different groups whose gradients share memory, which is an error; nothing has changed.
  std::optional<std::pair<int64_t, int64_t>> shared;
};

/// Measures, lets the policy of every group decide, and changes the gradients, in one call. Gradients are on the CPU,
/// and groups share no position. `weights` are the parameters, which only "agc" reads. Raises as policy_step does,
/// before anything changes.
GroupedClip clip_by_groups(const CallSite& site, const GradList& grads, const GradList& weights,
                           const ClipRequest& request, GroupPlan& plan);

}  // namespace gradkern
