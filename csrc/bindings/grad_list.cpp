#include "bindings/grad_list.h"

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "core/prefetch.h"

namespace gradkern {
namespace {

/// A dense tensor on the CPU of which nothing is unusual: no subclass, wrapper, lazy conjugate or negation.
bool is_plain_cpu(const at::Tensor& g) {
  constexpr c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);
  constexpr c10::DispatchKeySet kUsual =  // every tensor has these keys
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  return g.key_set() - kUsual == kCpu;
}

/// Whether no other gradient can share its memory without starting where it starts.
bool fills_own_storage(const at::Tensor& g, DType dtype) {
  const c10::StorageImpl& storage = *g.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  return storage.resizable() && int64_t(storage.nbytes()) <= g.numel() * itemsize(dtype);
}

}  // namespace

bool has_kernel_dtype(at::ScalarType type, DType& dtype) {
  switch (type) {
    case at::kFloat: dtype = DType::kFloat32; return true;
    case at::kBFloat16: dtype = DType::kBFloat16; return true;
    case at::kHalf: dtype = DType::kFloat16; return true;
    case at::kDouble: dtype = DType::kFloat64; return true;
    case at::kComplexFloat: dtype = DType::kComplex64; return true;
    case at::kComplexDouble: dtype = DType::kComplex128; return true;
    default: return false;
  }
}

PointerTable::PointerTable(size_t count) {
  size_t size = 16;
  for (shift_ = 60; size < 2 * count; size *= 2) --shift_;
  mask_ = size - 1;
  slots_.assign(size, {-1, 0});
}

PlainGradients::PlainGradients(size_t count) : table_(count) {
  prepared_.refs.reserve(count);
  prepared_.first.reserve(count);
}

bool PlainGradients::add(const at::Tensor& grad, const std::vector<at::Tensor>& grads) {
  const int64_t position = int64_t(prepared_.refs.size());
  TensorRef& ref = prepared_.refs.emplace_back();
  prepared_.first.push_back(position);
  if (!grad.defined()) return true;
  if (!is_plain_cpu(grad) || !has_kernel_dtype(grad.scalar_type(), ref.dtype) ||
      !grad.is_non_overlapping_and_dense() || !fills_own_storage(grad, ref.dtype))
    return false;
  prepared_.any_double |= is_double(ref.dtype);
  if (grad.numel() == 0) return true;
  ref.data = grad.mutable_data_ptr();  // a clone gets its own memory now, not after its address was noted
  ref.numel = grad.numel();
  bool seen;
  const int64_t same = table_.find_or_insert(
      ref.data, position, [&](int64_t j) { return prepared_.refs[size_t(j)].data; },
      [&](int64_t j) { return grads[size_t(j)].is_same(grad); }, seen);
  if (same < 0) {
    elements_ += ref.numel;
    return !seen;  // another view of the same memory
  }
  ref = {};
  prepared_.first.back() = same;
  prepared_.any_duplicate = true;
  return true;
}

GradList::GradList(size_t count) {
  tensors_.reserve(count);
  if (!c10::impl::dispatch_mode_enabled()) plain_.emplace(count);
}

GradList::GradList(at::TensorList owned) : tensors_(owned.begin(), owned.end()), owned_(true) {}

GradList::~GradList() {
  if (owned_) return;
  for (at::Tensor& t : tensors_) c10::MaybeOwnedTraits<at::Tensor>::destroyBorrow(t);
}

void GradList::add(const at::Tensor& grad) {
  if (plain_ && !plain_->add(grad, tensors_)) plain_.reset();
  if (owned_) tensors_.push_back(grad);
  else tensors_.push_back(c10::MaybeOwnedTraits<at::Tensor>::createBorrow(grad));
}

void GradList::own() {
  if (owned_) return;
  owned_ = true;
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (i + kAhead < tensors_.size()) prefetch(tensors_[i + kAhead].unsafeGetTensorImpl(), 64);
    if (tensors_[i].defined()) c10::raw::intrusive_ptr::incref(tensors_[i].unsafeGetTensorImpl());
  }
}

}  // namespace gradkern
