#include "bindings/grad_list.h"

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <atomic>

#include "core/prefetch.h"

namespace gradkern {
namespace {

/// Whether a tensor is an ordinary dense one on the CPU or on CUDA: no subclass, wrapper, lazy conjugation or negation.
bool is_ordinary(const at::Tensor& g) {
  constexpr c10::DispatchKeySet kCpu(c10::DispatchKey::CPU), kCuda(c10::DispatchKey::CUDA);
  constexpr c10::DispatchKeySet kUsual =  // every tensor has these keys
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  const c10::DispatchKeySet own = g.key_set() - kUsual;
  return own == kCpu || own == kCuda;
}

c10::StorageImpl* storage_of(const at::Tensor& g) { return g.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl(); }

/// Prefetches what set() reads of a storage, from its memory to its size.
void prefetch_storage(const at::Tensor& g) {
  if (!g.unsafeGetTensorImpl()->has_storage()) return;
  prefetch(reinterpret_cast<const char*>(storage_of(g)) + sizeof(c10::intrusive_ptr_target), sizeof(c10::DataPtr) + 10);
}

/// Whether the gradient fills its storage. Another gradient that shares its memory then starts at the same address.
bool fills_own_storage(const at::Tensor& g, DType dtype) {
  const c10::StorageImpl& storage = *storage_of(g);
  // A lazy clone shares memory until it is written.
  if (c10::impl::cow::is_cow_data_ptr(storage.data_ptr())) return false;
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

bool PlainGradients::is_on_same_device(const at::Tensor& grad) {
  const int32_t own = grad.is_cuda() ? grad.device().index() : kCpu;
  const std::atomic_ref<int32_t> device(cuda_);
  int32_t known = device.load(std::memory_order_relaxed);
  return known == own || (known == kUnknown && (device.compare_exchange_strong(known, own) || known == own));
}

bool PlainGradients::set(size_t position, const at::Tensor& grad) {
  if (!grad.defined()) return true;
  TensorRef& ref = prepared_.refs[position];
  if (!is_ordinary(grad) || !is_on_same_device(grad) || !has_kernel_dtype(grad.scalar_type(), ref.dtype) ||
      !grad.is_non_overlapping_and_dense() || !fills_own_storage(grad, ref.dtype))
    return false;
  ref.numel = grad.numel();
  if (ref.numel) ref.data = static_cast<char*>(storage_of(grad)->mutable_data()) + grad.storage_offset() * itemsize(ref.dtype);
  return true;
}

bool PlainGradients::finish(const std::vector<at::Tensor>& grads) {
  std::vector<TensorRef>& refs = prepared_.refs;
  PointerTable table(refs.size());
  prepared_.first.resize(refs.size());
  for (size_t i = 0; i < refs.size(); ++i) {
    prepared_.first[i] = int64_t(i);
    prepared_.any_double |= is_double(refs[i].dtype);
    if (refs[i].numel == 0) continue;
    bool seen;
    const int64_t same = table.find_or_insert(
        refs[i].data, int64_t(i), [&](int64_t j) { return refs[size_t(j)].data; },
        [&](int64_t j) { return grads[size_t(j)].is_same(grads[i]); }, seen);
    if (same < 0 && seen) return false;  // another view of the same memory
    if (same < 0) {
      elements_ += refs[i].numel;
      continue;
    }
    refs[i] = {};
    prepared_.first[i] = same;
    prepared_.any_duplicate = true;
  }
  return true;
}

GradList::GradList(size_t count) : tensors_(count) {
  if (!c10::impl::dispatch_mode_enabled()) plain_.emplace(count);
}

bool GradList::set_run(size_t begin, const at::Tensor* const* grads, size_t count) {
  for (size_t i = 0; i < count; ++i) prefetch_storage(*grads[i]);
  bool plain = plain_.has_value();
  for (size_t i = 0; i < count; ++i) {
    tensors_[begin + i] = c10::MaybeOwnedTraits<at::Tensor>::createBorrow(*grads[i]);
    plain = plain && plain_->set(begin + i, *grads[i]);
  }
  return plain;
}

void GradList::finish(bool plain) {
  if (plain_ && !(plain && plain_->finish(tensors_))) plain_.reset();
}

GradList::GradList(at::TensorList owned) : tensors_(owned.begin(), owned.end()), owned_(true) {}

GradList::~GradList() {
  if (owned_) return;
  for (at::Tensor& t : tensors_) c10::MaybeOwnedTraits<at::Tensor>::destroyBorrow(t);
}

void GradList::add(const at::Tensor& grad) {
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
