// The gradients of a call, and what is found out while their list is walked.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "bindings/errors.h"
#include "core/dtype.h"

namespace gradkern {

/// Whether the kernels read elements of this type as they are, and what they call it.
bool has_kernel_dtype(at::ScalarType type, DType& dtype);

/// A gradient that no kernel reads in place (sliced, expanded, sparse, rarer dtypes): a dense copy
/// stands in for it, and after a write goes back into `target`.
struct Staged {
  at::Tensor copy, target;
  at::Tensor offsets;  ///< if defined: the elements of the 1-d target that `copy` holds
  size_t position;     ///< in the list
};

/// The list as the kernels see it.
struct Prepared {
  std::vector<TensorRef> refs;    ///< per position; numel 0 where there is nothing to do
  std::vector<int64_t> first;     ///< per position: the earlier position of the same gradient, or itself
  std::vector<Staged> staged;
  bool any_double = false;        ///< report in float64
  bool any_duplicate = false;
  bool maybe_overlapping = false; ///< several gradients share memory, or one overlaps itself
};

/// Positions by data pointer, in open addressing. Beside a position lie further bits of the pointer's hash, so
/// that tensors are looked at only where they are most likely the same.
class PointerTable {
 public:
  explicit PointerTable(size_t count);

  /// The first earlier position for which equal(position) holds among those with this pointer, or
  /// -1 after having entered `position`. `seen` tells whether the pointer was there at all.
  template <class PointerAt, class Equal>
  int64_t find_or_insert(const void* pointer, int64_t position, const PointerAt& pointer_at,
                         const Equal& equal, bool& seen) {
    const uint64_t hash = (reinterpret_cast<uintptr_t>(pointer) >> 4) * 0x9e3779b97f4a7c15ull;
    const uint32_t tag = uint32_t(hash);
    size_t slot = hash >> shift_;
    for (seen = false;; ++slot) {
      Slot& entry = slots_[slot & mask_];
      if (entry.position < 0) {
        entry = {int32_t(position), tag};
        return -1;
      }
      if (entry.tag != tag || pointer_at(entry.position) != pointer) continue;
      seen = true;
      if (equal(entry.position)) return entry.position;
    }
  }

 private:
  struct Slot {
    int32_t position;
    uint32_t tag;
  };
  std::vector<Slot> slots_;
  size_t mask_;
  int shift_;
};

/// The kind of list that almost every call is given, prepared while it is walked: gradients on the CPU, strided,
/// of a kernel's dtype, each dense and filling a storage of its own. No further pass looks at them.
class PlainGradients {
 public:
  explicit PlainGradients(size_t count) { prepared_.refs.resize(count); }

  /// The gradient of a position, which may be undefined. False: not plain. Several threads may set positions.
  bool set(size_t position, const at::Tensor& grad);
  /// Once all are set: finds duplicates. False: not plain.
  bool finish(const std::vector<at::Tensor>& grads);
  int64_t elements() const { return elements_; }
  Prepared take() { return std::move(prepared_); }

 private:
  Prepared prepared_;
  int64_t elements_ = 0;
};

/// One entry a list position; undefined where a parameter has no gradient.
///
/// Gradients are borrowed while their list is walked and until own() is called: nobody can let go of them as
/// long as this thread holds Python's lock and runs no Python code.
class GradList {
 public:
  GradList() = default;
  explicit GradList(at::TensorList owned);
  GradList(GradList&&) = default;
  GradList& operator=(GradList&&) = delete;
  ~GradList();

  /// Appends a gradient.
  void add(const at::Tensor& grad);

  /// A list of `count` positions to set, before finish(). Borrowed.
  explicit GradList(size_t count);
  /// Positions from `begin` on, at most kRun of them. Several threads may set runs. False: one is not plain.
  bool set_run(size_t begin, const at::Tensor* const* grads, size_t count);
  /// All are set; `plain`: whether set_run always said so.
  void finish(bool plain);

  /// Keeps the gradients alive, and those that are added later.
  void own();

  size_t size() const { return tensors_.size(); }
  bool empty() const { return tensors_.empty(); }
  const at::Tensor& operator[](size_t i) const { return tensors_[i]; }
  auto begin() const { return tensors_.begin(); }
  auto end() const { return tensors_.end(); }

  /// What was found out of a list of plain gradients; null if it is none.
  const PlainGradients* plain() const { return plain_ ? &*plain_ : nullptr; }

 private:
  friend const Prepared& prepare(const CallSite& site, const GradList& grads);

  std::vector<at::Tensor> tensors_;
  bool owned_ = false;
  mutable std::optional<PlainGradients> plain_;
  mutable std::optional<Prepared> prepared_;
};

}  // namespace gradkern
