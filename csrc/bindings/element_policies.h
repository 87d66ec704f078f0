// Policies that change single elements within clip_by_groups: "value" limits elements, "agc" units by their weights.
#pragma once

#include <vector>

#include "bindings/engine.h"
#include "bindings/policies.h"
#include "core/policies.h"

namespace gradkern {

/// Whether a policy is one of these.
bool is_elementwise(const GroupPolicy& group);

/// The elementwise policies of a call. Gradients on the CPU.
class ElementPolicies {
 public:
  /// Raises TypeError for a complex gradient under "value". Nothing is written. `weights` are the parameters, which
  /// only "agc" reads.
  ElementPolicies(const CallSite& site, const GradList& grads, const GradList& weights,
                  const std::vector<GroupPolicy>& groups);

  /// Whether apply() can change gradients like these.
  bool supported() const { return supported_; }

  /// What has to be read of units while gradients are measured; null if nothing.
  UnitReads* reads() { return any_units_ ? &reads_ : nullptr; }

  /// Changes the gradients of these policies and bumps the versions of those that it writes to. Sets factors[i] to
  /// the ratio of the L2 norms of gradient i after and before.
  void apply(const Measurement& before, std::vector<double>& factors) const;

 private:
  void prepare_target(const CallSite& site);
  void limit_values(const Measurement& before, const GroupPolicy& group, std::vector<double>& factors) const;
  void enter_group(const GroupPolicy& group, const GradList& weights);
  void limit_units(std::vector<double>& factors) const;
  const Prepared& target() const { return writable_.refs.empty() ? *prepared_ : writable_; }

  const GradList& grads_;
  const std::vector<GroupPolicy>& groups_;
  const Prepared* prepared_ = nullptr;
  Prepared writable_;                         ///< empty if the list prepared for reading can be written
  UnitReads reads_;  ///< of all groups
  bool any_units_ = false;
  bool supported_ = true;
};

}  // namespace gradkern
