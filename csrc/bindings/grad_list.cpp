#include "bindings/grad_list.h"

#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <array>
#include <atomic>
#include <utility>

#include "bindings/thread_pool.h"
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

void* counter_of(const c10::TensorImpl& impl) {
  static_assert(sizeof(c10::VariableVersion) == sizeof(void*));  // consists of one private pointer
  return *reinterpret_cast<void* const*>(&impl.version_counter());
}

void take_back_version(const at::Tensor& grad) {
  c10::VariableVersion counter = grad.unsafeGetTensorImpl()->version_counter();
  if (grad.defined() && counter.enabled()) counter.set_version(int64_t(counter.current_version()) - 1);
}

/// The arrays of this thread's last list.
thread_local std::unique_ptr<ListArrays> spare_arrays;

std::unique_ptr<ListArrays> take_arrays() {
  return spare_arrays ? std::move(spare_arrays) : std::make_unique<ListArrays>();
}

/// Whether the gradient fills its storage. Another gradient that shares its memory then starts at the same address.
bool fills_own_storage(const at::Tensor& g, DType dtype) {
  const c10::StorageImpl& storage = *storage_of(g);
  // A lazy clone shares memory until it is written.
  if (c10::impl::cow::is_cow_data_ptr(storage.data_ptr())) return false;
  return storage.resizable() && int64_t(storage.nbytes()) <= g.numel() * itemsize(dtype);
}

/// The type of kernels of each of torch's, or -1. A table, because a switch would jump to an address that is not known.
constexpr auto kKernelTypes = [] {
  std::array<int8_t, size_t(at::ScalarType::NumOptions)> types{};
  types.fill(-1);
  types[size_t(at::kFloat)] = int8_t(DType::kFloat32);
  types[size_t(at::kBFloat16)] = int8_t(DType::kBFloat16);
  types[size_t(at::kHalf)] = int8_t(DType::kFloat16);
  types[size_t(at::kDouble)] = int8_t(DType::kFloat64);
  types[size_t(at::kComplexFloat)] = int8_t(DType::kComplex64);
  types[size_t(at::kComplexDouble)] = int8_t(DType::kComplex128);
  return types;
}();

}  // namespace

bool has_kernel_dtype(at::ScalarType type, DType& dtype) {
  const int8_t own = size_t(type) < kKernelTypes.size() ? kKernelTypes[size_t(type)] : int8_t(-1);
  if (own >= 0) dtype = DType(own);
  return own >= 0;
}

void PointerTable::clear(size_t count) {
  size_t size = 16;
  for (shift_ = 60; size < 2 * count; size *= 2) --shift_;
  mask_ = size - 1;
  slots_.assign(size, {-1, 0});
}

PlainGradients::PlainGradients(ListArrays& arrays, size_t count) : arrays_(&arrays) {
  changed_ = !std::exchange(arrays.distinct, false) || arrays.prepared.refs.size() != count;
  arrays.prepared.refs.resize(count);
}

inline bool PlainGradients::is_on_same_device(const at::Tensor& grad) {
  const int32_t own = grad.is_cuda() ? grad.device().index() : kCpu;
  const std::atomic_ref<int32_t> device(cuda_);
  int32_t known = device.load(std::memory_order_relaxed);
  return known == own || (known == kUnknown && (device.compare_exchange_strong(known, own) || known == own));
}

inline bool PlainGradients::set(size_t position, const at::Tensor& grad) {
  TensorRef ref{nullptr, 0, DType::kFloat32};
  if (grad.defined()) {
    if (!is_ordinary(grad) || !is_on_same_device(grad) || !has_kernel_dtype(grad.scalar_type(), ref.dtype) ||
        !grad.is_non_overlapping_and_dense() || !fills_own_storage(grad, ref.dtype))
      return false;
    ref.numel = grad.numel();
    if (ref.numel) ref.data = static_cast<char*>(storage_of(grad)->mutable_data()) + grad.storage_offset() * itemsize(ref.dtype);
  }
  TensorRef& last = arrays_->prepared.refs[position];
  if (last.data != ref.data || last.numel != ref.numel || last.dtype != ref.dtype) {
    last = ref;
    std::atomic_ref(changed_).store(true, std::memory_order_relaxed);
  }
  return true;
}

bool PlainGradients::finish() {
  if (changed_ && !find_duplicates()) return false;
  arrays_->distinct = !arrays_->prepared.any_duplicate;
  return true;
}

bool PlainGradients::find_duplicates() {
  Prepared& prepared = arrays_->prepared;
  std::vector<TensorRef>& refs = prepared.refs;
  const c10::TensorImpl* const* const tensors = arrays_->tensors.data();
  arrays_->positions.clear(refs.size());
  arrays_->elements = 0;
  prepared.first.resize(refs.size());
  prepared.any_double = prepared.any_duplicate = false;
  for (size_t i = 0; i < refs.size(); ++i) {
    prepared.first[i] = int64_t(i);
    prepared.any_double |= is_double(refs[i].dtype);
    if (refs[i].numel == 0) continue;
    bool seen;
    const int64_t same = arrays_->positions.find_or_insert(
        refs[i].data, int64_t(i), [&](int64_t j) { return refs[size_t(j)].data; },
        [&](int64_t j) { return tensors[j] == tensors[i]; }, seen);
    if (same < 0 && seen) return false;  // another view of the same memory
    if (same < 0) {
      arrays_->elements += refs[i].numel;
      continue;
    }
    refs[i] = {};
    prepared.first[i] = same;
    prepared.any_duplicate = true;
  }
  return true;
}

GradList::GradList() : GradList(size_t(0)) { plain_.reset(); }

GradList::GradList(size_t count) : arrays_(take_arrays()) {
  arrays_->tensors.resize(count);
  arrays_->counters.resize(count);
  if (!c10::impl::dispatch_mode_enabled()) plain_.emplace(*arrays_, count);
}

GradList::GradList(at::TensorList owned) : GradList() {
  owned_ = true;
  for (const at::Tensor& grad : owned) add(grad);
}

GradList::~GradList() {
  if (!arrays_) return;  // moved
  for (size_t i = 0; i < bumped_; ++i) take_back_version((*this)[i]);
  if (owned_)
    for (c10::TensorImpl* tensor : arrays_->tensors)
      c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim(tensor);
  spare_arrays = std::move(arrays_);
}

void GradList::prefetch_memory(const at::Tensor& grad) const {
  const c10::TensorImpl& tensor = *grad.unsafeGetTensorImpl();
  if (!tensor.unsafe_storage()) return;
  prefetch_members(storage_of(grad), 0, sizeof(c10::DataPtr) + 13);  // its memory, size and flags
  if (bumps_early_) prefetch_member(counter_of(tensor), 0);
}

bool GradList::set(size_t position, const at::Tensor& grad) {
  c10::TensorImpl* const tensor = grad.unsafeGetTensorImpl();
  arrays_->tensors[position] = tensor;
  arrays_->counters[position] = grad.defined() ? counter_of(*tensor) : nullptr;
  if (!plain_ || !plain_->set(position, grad)) return false;
  if (bumps_early_ && bumped_ == position) {
    bump_version(grad);
    ++bumped_;
  }
  return true;
}

void GradList::finish(bool plain) {
  if (plain_ && !(plain && plain_->finish())) plain_.reset();
}

void GradList::add(const at::Tensor& grad) {
  c10::TensorImpl* const tensor = grad.unsafeGetTensorImpl();
  arrays_->tensors.push_back(tensor);
  if (owned_ && grad.defined()) c10::raw::intrusive_ptr::incref(tensor);
}

void GradList::own() {
  if (std::exchange(owned_, true)) return;
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < size(); ++i) {
    if (i + kAhead < size()) prefetch(arrays_->tensors[i + kAhead], 64);
    if ((*this)[i].defined()) c10::raw::intrusive_ptr::incref(arrays_->tensors[i]);
  }
}

void bump_version(const at::Tensor& grad) {
  if (grad.defined() && grad.unsafeGetTensorImpl()->version_counter().enabled()) grad.unsafeGetTensorImpl()->bump_version();
}

void GradList::bump_versions() const {
  const size_t done = std::exchange(bumped_, 0);
  const auto bump_run = [&](int64_t begin, int64_t end) {
    std::vector<void*>& counters = arrays_->counters;
    // While another thread may hold the GIL, it can replace a counter.
    const bool known = !owned_ && counters.size() == size();
    for (size_t i = done + size_t(begin); i < done + size_t(end); ++i)
      prefetch_member(known ? counters[i] : arrays_->tensors[i], 0);
    for (size_t i = done + size_t(begin); i < done + size_t(end); ++i) {
      if (!known) bump_version((*this)[i]);
      else if (counters[i]) reinterpret_cast<c10::VariableVersion&>(counters[i]).bump();
    }
  };
  for_each_run(int64_t(size() - done), bump_run);
}

}  // namespace gradkern
