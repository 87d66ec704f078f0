// The gradients of a call, and what a walk over their list finds out.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "bindings/errors.h"
#include "core/dtype.h"
#include "core/prefetch.h"

namespace gradkern {

/// Where the members of torch's reference-counted objects begin, behind the counts.
constexpr size_t kMembers = sizeof(c10::intrusive_ptr_target);

/// Prefetches the cache line of a member, by its distance from the counts, and the line of another one.
inline void prefetch_member(const void* object, size_t first) {
  __builtin_prefetch(static_cast<const char*>(object) + kMembers + first);
}
inline void prefetch_members(const void* object, size_t first, size_t last) {
  prefetch_member(object, first);
  prefetch_member(object, last);
}

/// Prefetches what is read of a tensor. Sizes and strides, which lie in the middle, are not.
inline void prefetch_tensor(const at::TensorImpl* tensor) {
  constexpr size_t kVersionCounter = 24;  // its head: storage, autograd metadata, another pointer, version counter
  constexpr size_t kTail = 32;            // from the offset in the storage on
  prefetch_members(tensor, 0, kVersionCounter);
  prefetch_members(tensor, sizeof(at::TensorImpl) - kMembers - kTail, sizeof(at::TensorImpl) - kMembers - 1);
}

/// Whether the kernels support a type. Sets `dtype` if so.
bool has_kernel_dtype(at::ScalarType type, DType& dtype);

/// A dense copy of a gradient that no kernel reads in place: sliced, expanded, sparse or of a rare dtype. A write to the
/// copy is copied back to `target`.
struct Staged {
  at::Tensor copy, target;
  at::Tensor offsets;  ///< if defined: the elements of the 1-d target that `copy` holds
  size_t position;     ///< in the list
};

/// The list in the form that the kernels take.
struct Prepared {
  std::vector<TensorRef> refs;    ///< per position; numel 0 if there is nothing to do
  std::vector<int64_t> first;     ///< per position: the earlier position of the same gradient, or itself
  std::vector<Staged> staged;
  bool any_double = false;        ///< results are float64
  bool any_duplicate = false;
  bool maybe_overlapping = false; ///< several gradients share memory, or one overlaps itself
};

/// A hash table of positions by data pointer, with open addressing. Each entry has further bits of the hash, so that
/// tensors are compared only if they are most likely the same.
class PointerTable {
 public:
  /// Removes all entries, for a list of `count` positions.
  void clear(size_t count);

  /// The first earlier position with this pointer for which equal(position) is true. Otherwise inserts `position` and
  /// returns -1. `seen` is set to whether the table has the pointer.
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
  size_t mask_ = 0;
  int shift_ = 0;
};

/// The arrays of a list. A thread keeps them for its next list, because new memory costs more than filling it, and so that
/// a list of the same memory as the last one is recognized.
struct ListArrays {
  std::vector<c10::TensorImpl*> tensors;
  std::vector<void*> counters;     ///< the version counter of each tensor, or null
  Prepared prepared;               ///< of the last plain list
  int64_t elements = 0;            ///< of the last plain list
  bool distinct = false;           ///< whether the last list was plain, without duplicates
  PointerTable positions;
};

/// The common kind of list, prepared in the same walk: strided gradients on the CPU or on one CUDA device, of a dtype with a
/// kernel, each dense and filling its own storage. They need no further pass.
class PlainGradients {
 public:
  PlainGradients(ListArrays& arrays, size_t count);

  /// Sets the gradient of a position, which may be undefined. Returns false if it is not plain. Several threads may set
  /// positions.
  bool set(size_t position, const at::Tensor& grad);
  /// Finds duplicates, after all are set. Returns false if the list is not plain.
  bool finish();
  int64_t elements() const { return arrays_->elements; }
  /// The device of all gradients; the CPU if there are none.
  at::Device device() const { return cuda_ < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, at::DeviceIndex(cuda_)); }
  const Prepared& prepared() const { return arrays_->prepared; }

 private:
  static constexpr int32_t kUnknown = -2, kCpu = -1;

  bool is_on_same_device(const at::Tensor& grad);
  bool find_duplicates();

  ListArrays* arrays_;
  bool changed_;             ///< whether the memory is not that of the last list; several threads set it
  int32_t cuda_ = kUnknown;  ///< index of the device; several threads set it
};

/// One gradient for each position; undefined for a parameter without one.
///
/// Gradients are borrowed until own() is called: this thread holds the GIL and runs no Python code. Another thread must
/// not assign a parameter's .grad meanwhile, as for torch's own functions: torch may free the old one without the GIL.
class GradList {
 public:
  GradList();
  explicit GradList(at::TensorList owned);
  GradList(GradList&&) = default;
  GradList& operator=(GradList&&) = delete;
  ~GradList();

  /// Appends a gradient.
  void add(const at::Tensor& grad);

  /// A list of `count` positions to set, before finish(). Borrowed.
  explicit GradList(size_t count);
  /// Prefetches what set() reads of a gradient, beyond prefetch_tensor().
  void prefetch_memory(const at::Tensor& grad) const;
  /// Several threads may set positions. Returns false if the gradient is not plain.
  bool set(size_t position, const at::Tensor& grad);
  /// Called when all are set. `plain` is true if set() always returned true.
  void finish(bool plain);

  /// Takes ownership of the gradients, also of those that are added later.
  void own();

  size_t size() const { return arrays_->tensors.size(); }
  bool empty() const { return size() == 0; }
  const at::Tensor& operator[](size_t i) const { return begin()[i]; }
  const at::Tensor* begin() const {
    static_assert(sizeof(at::Tensor) == sizeof(c10::TensorImpl*));  // consists of this pointer
    return reinterpret_cast<const at::Tensor*>(arrays_->tensors.data());
  }
  const at::Tensor* end() const { return begin() + size(); }

  /// The prepared list if all gradients are plain, else null.
  const PlainGradients* plain() const { return plain_ ? &*plain_ : nullptr; }

  /// Increments the version counters of all gradients, as in-place operations do.
  void bump_versions() const;
  /// For a call that writes unless it fails: from now on, set() increments the version counters of plain gradients on CUDA,
  /// which it has to read anyway. Without a call of bump_versions(), this is undone. Only one thread may set positions.
  void bump_early() { bumps_early_ = true; }

 private:
  friend const Prepared& prepare(const CallSite& site, const GradList& grads);

  std::unique_ptr<ListArrays> arrays_;
  bool owned_ = false;
  std::optional<PlainGradients> plain_;
  mutable std::optional<Prepared> prepared_;  ///< of a list that is not plain
  bool bumps_early_ = false;
  mutable size_t bumped_ = 0;  ///< positions whose counters set() has incremented, without bump_versions()
};

/// Increments autograd's version counter, as in-place operations do. Inference tensors have none.
void bump_version(const at::Tensor& grad);

}  // namespace gradkern
