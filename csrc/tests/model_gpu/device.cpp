// Test only: a CUDA device for a torch without CUDA. Its tensors lie in host memory, and torch's operations on them run
// on the CPU, so that the bindings' code for CUDA runs with csrc/cuda under the model of a GPU (cuda_shim).
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <string>
#include <utility>
#include <vector>

namespace {

const c10::Device kCuda(c10::DeviceType::CUDA, 0);

/// One device. Streams have numbers; work on them is done when it is enqueued.
struct ModelGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kCuda.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return kCuda; }
  c10::Device getDevice() const override { return kCuda; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kCuda); }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(kCuda); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(kCuda); }
  void* getStreamNativeHandle(const c10::Stream) const override { return nullptr; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, ModelGuard)

/// What torch asks of CUDA besides.
struct ModelHooks final : at::CUDAHooksInterface {
  explicit ModelHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
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
  const bool cuda = storage.device_type() == kCuda.type();
  at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(cuda ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU), t.dtype());
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
    if (!value.isDevice() || value.toDevice().type() != kCuda.type()) return value;
    any_cuda_ = true;
    return c10::Device(c10::kCPU);
  }

  c10::IValue result(const c10::IValue& value) {
    if (value.isTensor()) return result(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor& t : value.toTensorVector()) list.push_back(result(t));
    return list;
  }

  /// Of tensors that the operation has given another shape or memory, as resize_ does.
  void take_changes() {
    for (const auto& [cuda, cpu] : tensors_) {
      if (cuda.sizes() == cpu.sizes() && cuda.strides() == cpu.strides() && cuda.const_data_ptr() == cpu.const_data_ptr())
        continue;
      c10::TensorImpl* impl = cuda.unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(on_device(cpu.storage()));
      impl->set_storage_offset(cpu.storage_offset());
      impl->set_sizes_and_strides(cpu.sizes(), cpu.strides());
    }
  }

 private:
  at::Tensor argument(const at::Tensor& t) {
    if (t.defined() && t.is_cpu()) host_.push_back(t);
    if (!t.defined() || !t.is_cuda()) return t;
    any_cuda_ = true;
    for (const auto& [cuda, cpu] : tensors_)
      if (cuda.is_same(t)) return cpu;
    tensors_.emplace_back(t, like(t, on_cpu(t.storage())));
    return tensors_.back().second;
  }

  at::Tensor result(const at::Tensor& t) {
    if (!t.defined() || !t.is_cpu() || !any_cuda_) return t;
    for (const at::Tensor& given : host_)
      if (given.is_same(t)) return t;
    for (const auto& [cuda, cpu] : tensors_)
      if (cpu.is_same(t)) return cuda;
    return like(t, on_device(t.storage()));
  }

  c10::Storage on_cpu(const c10::Storage& storage) {
    for (const auto& [cuda, cpu] : storages_)
      if (cuda.is_alias_of(storage)) return cpu;
    storages_.emplace_back(storage, moved(storage, c10::kCPU));
    return storages_.back().second;
  }
  c10::Storage on_device(const c10::Storage& storage) {
    for (const auto& [cuda, cpu] : storages_)
      if (cpu.is_alias_of(storage) && cuda.data() == storage.data()) return cuda;
    return moved(storage, kCuda);
  }

  std::vector<at::Tensor> host_;
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;
  bool any_cuda_ = false;
};

bool refuse_waiting = false;

/// Whether the host would wait for the device: `torch.cuda.set_sync_debug_mode`.
bool waits(const std::string& name, const c10::IValue* arguments) {
  if (name == "aten::copy_")
    return arguments[0].toTensor().is_cuda() != arguments[1].toTensor().is_cuda() && !arguments[2].toBool();
  for (const char* other : {"_local_scalar_dense", "equal", "masked_select", "nonzero", "_unique", "_unique2"})
    if (name == std::string("aten::") + other) return true;
  return false;
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  OnCpu call;
  const size_t count = op.schema().arguments().size();
  TORCH_CHECK(!refuse_waiting || !waits(op.schema().name(), stack->data() + stack->size() - count),
              "called a synchronizing operation: ", op.schema().name());
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

extern "C" __attribute__((visibility("default"))) void model_gpu_refuse_waiting(int refuse) { refuse_waiting = refuse != 0; }

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, ModelHooks)
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

// An operation for all devices that asks for a kernel of the device itself.
TORCH_LIBRARY_IMPL(aten, CUDA, m) { m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }
