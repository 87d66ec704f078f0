// Test only: a CUDA device for a torch without CUDA. Its tensors lie in host memory, and torch's operations on them run
// on the CPU, so that the bindings' code for CUDA runs with csrc/cuda under the model of a GPU (cuda_shim).
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

constexpr c10::DeviceIndex kDevices = 2;

thread_local c10::DeviceIndex current = 0;

c10::Device cuda(c10::DeviceIndex index) { return c10::Device(c10::kCUDA, index < 0 ? current : index); }

/// Two devices with one stream each, whose work is done when it is enqueued.
struct ModelGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device d) const override { return cuda(std::exchange(current, cuda(d.index()).index())); }
  c10::Device getDevice() const override { return cuda(current); }
  void setDevice(c10::Device d) const override { exchangeDevice(d); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { exchangeDevice(d); }
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, cuda(d.index())); }
  c10::Stream getDefaultStream(c10::Device d) const override { return getStream(d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return getStream(s.device()); }
  void* getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, ModelGuard)

/// The other functions that torch needs of CUDA.
struct ModelHooks final : at::CUDAHooksInterface {
  explicit ModelHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
};

/// A storage of another device over the same memory.
c10::Storage moved(const c10::Storage& storage, c10::Device device) {
  auto* kept = new c10::Storage(storage);
  c10::DataPtr data(storage.mutable_data(), kept, [](void* k) { delete static_cast<c10::Storage*>(k); }, device);
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetAllocator(c10::kCPU),
                      storage.resizable());
}

/// A view of `storage` like `t`.
at::Tensor like(const at::Tensor& t, c10::Storage storage) {
  const auto key = storage.device_type() == c10::kCUDA ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), t.dtype());
  view.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
  view._set_conj(t.is_conj());
  view._set_neg(t.is_neg());
  return view;
}

/// One operation: its arguments on the CPU, and its results on the device.
class OnCpu {
 public:
  c10::IValue argument(const c10::IValue& value) {
    if (value.isTensor()) return argument(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(argument(t));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional(argument(*t)) : t);
      return list;
    }
    if (!value.isDevice() || !value.toDevice().is_cuda()) return value;
    if (!device_) device_ = cuda(value.toDevice().index());
    return c10::Device(c10::kCPU);
  }

  c10::IValue result(const c10::IValue& value) {
    if (value.isTensor()) return result(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : value.toTensorVector()) list.push_back(result(t));
    return list;
  }

  /// For tensors that the operation has given another shape or memory, as resize_ does.
  void take_changes() {
    for (const auto& [own, cpu] : tensors_) {
      if (own.sizes() == cpu.sizes() && own.strides() == cpu.strides() && own.const_data_ptr() == cpu.const_data_ptr())
        continue;
      c10::TensorImpl* impl = own.unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(on_device(cpu.storage()));
      impl->set_storage_offset(cpu.storage_offset());
      impl->set_sizes_and_strides(cpu.sizes(), cpu.strides());
    }
  }

 private:
  at::Tensor argument(const at::Tensor& t) {
    if (t.defined() && t.is_cpu()) host_.push_back(t);
    if (!t.defined() || !t.is_cuda()) return t;
    if (!device_) device_ = t.device();
    for (const auto& [own, cpu] : tensors_)
      if (own.is_same(t)) return cpu;
    tensors_.emplace_back(t, like(t, on_cpu(t.storage())));
    return tensors_.back().second;
  }

  at::Tensor result(const at::Tensor& t) {
    if (!t.defined() || !t.is_cpu() || !device_) return t;
    for (const at::Tensor& given : host_)
      if (given.is_same(t)) return t;
    for (const auto& [own, cpu] : tensors_)
      if (cpu.is_same(t)) return own;
    return like(t, on_device(t.storage()));
  }

  c10::Storage on_cpu(const c10::Storage& storage) {
    for (const auto& [own, cpu] : storages_)
      if (own.is_alias_of(storage)) return cpu;
    storages_.emplace_back(storage, moved(storage, c10::kCPU));
    return storages_.back().second;
  }
  c10::Storage on_device(const c10::Storage& storage) {
    for (const auto& [own, cpu] : storages_)
      if (cpu.is_alias_of(storage) && own.data() == storage.data()) return own;
    return moved(storage, *device_);
  }

  std::vector<at::Tensor> host_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;
  std::optional<c10::Device> device_;  ///< of the results
};

/// Host memory of the current device. What is freed is kept for the next allocation of its size, as torch's allocator for
/// CUDA does: malloc would wait for the lock under which torch's own thread frees the graph of a backward.
struct ModelAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, cuda(current)};
    const size_t blocks = (bytes + kBlock - 1) / kBlock;
    char* const memory = take(blocks);
    *reinterpret_cast<size_t*>(memory) = blocks;
    return {memory + kHeader, memory, &release, cuda(current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static constexpr size_t kBlock = 512, kHeader = 64;

  static char* take(size_t blocks) {
    const std::lock_guard alone(in_use);
    std::vector<char*>& free = kept()[blocks];
    if (free.empty()) return static_cast<char*>(std::aligned_alloc(kHeader, kHeader + blocks * kBlock));
    char* const memory = free.back();
    free.pop_back();
    return memory;
  }
  static void release(void* memory) {
    const std::lock_guard alone(in_use);
    kept()[*static_cast<size_t*>(memory)].push_back(static_cast<char*>(memory));
  }
  static std::unordered_map<size_t, std::vector<char*>>& kept() {
    static auto& kept = *new std::unordered_map<size_t, std::vector<char*>>;
    return kept;
  }
  static inline std::mutex in_use;
};

/// As torch's own for CUDA, which takes no detour: a clip allocates its results with it.
at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  static ModelAllocator allocator;
  const c10::DeviceGuard guard(cuda(device ? device->index() : c10::DeviceIndex(-1)));
  return at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(at::get_default_dtype_as_scalartype()), format);
}

bool refuse_waiting = false;

/// Whether the host would wait for the device: `torch.cuda.set_sync_debug_mode`.
bool waits(const std::string& name, const c10::IValue* arguments) {
  if (name == "aten::copy_")
    return arguments[0].toTensor().is_cuda() != arguments[1].toTensor().is_cuda() && !arguments[2].toBool();
  for (const char* other : {"_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique", "_unique2"})
    if (name == std::string("aten::") + other) return true;
  return false;
}

extern "C" int PyGILState_Check();

std::array<int64_t, 2> waited;  ///< times that the host would have waited: without the GIL, and with it

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  OnCpu call;
  const size_t count = op.schema().arguments().size();
  if (waits(op.schema().name(), stack->data() + stack->size() - count)) {
    TORCH_CHECK(!refuse_waiting, "called a synchronizing operation: ", op.schema().name());
    ++waited[PyGILState_Check() ? 1 : 0];
  }
  for (size_t i = stack->size() - count; i < stack->size(); ++i) (*stack)[i] = call.argument((*stack)[i]);
  {
    const at::AutoDispatchBelowAutograd below;
    op.callBoxed(stack);
  }
  call.take_changes();
  const size_t results = op.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) (*stack)[i] = call.result((*stack)[i]);
}

}  // namespace

namespace {

void fetch(const void* object, size_t begin, size_t end) {
  const char* const bytes = static_cast<const char*>(object);
  __builtin_prefetch(bytes + begin);
  __builtin_prefetch(bytes + end - 1);
}

/// All that a clip has to read of 64 parameters, and the version counters, by which torch knows of a write. Only the
/// cache lines that are needed, one pointer of all of them before the next, so that misses overlap.
uintptr_t read_run(c10::TensorImpl* const* params, size_t count) {
  std::array<c10::TensorImpl*, 64> grads;
  std::array<const at::Tensor*, 64> fields;
  uintptr_t sum = 0;
  for (size_t i = 0; i < count; ++i) fetch(params[i], 24, 32);
  for (size_t i = 0; i < count; ++i) {
    fields[i] = &static_cast<torch::autograd::AutogradMeta*>(params[i]->autograd_meta())->grad_;
    fetch(fields[i], 0, 8);
  }
  for (size_t i = 0; i < count; ++i) {
    grads[i] = fields[i]->unsafeGetTensorImpl();
    fetch(grads[i], 16, 48);
    fetch(grads[i], sizeof(c10::TensorImpl) - 32, sizeof(c10::TensorImpl));
  }
  for (size_t i = 0; i < count; ++i) {
    fetch(grads[i]->unsafe_storage().unsafeGetStorageImpl(), 16, 58);
    fetch(*reinterpret_cast<void* const*>(&grads[i]->version_counter()), 16, 20);
  }
  for (size_t i = 0; i < count; ++i) {
    const c10::StorageImpl& storage = *grads[i]->unsafe_storage().unsafeGetStorageImpl();
    sum += reinterpret_cast<uintptr_t>(storage.data()) + storage.nbytes() + storage.resizable() + size_t(grads[i]->numel()) +
           grads[i]->dtype().itemsize() + grads[i]->is_non_overlapping_and_dense_default() + grads[i]->key_set().raw_repr() +
           c10::impl::cow::is_cow_data_ptr(storage.data_ptr());
    grads[i]->bump_version();
  }
  return sum;
}

}  // namespace

/// For benchmarks, the floor of the host's time: a walk over parameters that have gradients.
extern "C" __attribute__((visibility("default"))) uintptr_t model_gpu_walk(c10::TensorImpl* const* params, size_t count) {
  uintptr_t sum = 0;
  for (size_t begin = 0; begin < count; begin += 64) sum += read_run(params + begin, std::min<size_t>(count - begin, 64));
  return sum;
}

extern "C" __attribute__((visibility("default"))) int64_t model_gpu_waited(int with_gil) { return waited[with_gil != 0]; }

extern "C" __attribute__((visibility("default"))) void model_gpu_refuse_waiting(int refuse) { refuse_waiting = refuse != 0; }

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, ModelHooks)
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

// An operation for all devices that asks for a kernel of the device itself.
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  m.impl("empty.memory_format", &empty);
}
