// Checked calls of the CUDA runtime. Errors name the call and the operation.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace gradkern::cuda {

inline void check(cudaError_t status, const char* call, const char* operation) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, so that no later call reports it
  throw std::runtime_error(std::string("[") + operation + "] " + call + " failed: " +
                           cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

inline void require(bool condition, const char* message, const char* operation) {
  if (!condition) throw std::runtime_error(std::string("[") + operation + "] " + message);
}

/// Makes `device` current during its lifetime.
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* operation) : device_(device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice", operation);
    if (previous_ != device_) check(cudaSetDevice(device_), "cudaSetDevice", operation);
  }
  ~DeviceGuard() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, previous_ = 0;
};

/// Allows allocations, event queries and the loading of kernels, which could otherwise end a capture that another thread has
/// begun, or this one.
class DuringCaptures {
 public:
  DuringCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~DuringCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  DuringCaptures(const DuringCaptures&) = delete;
  DuringCaptures& operator=(const DuringCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

inline int multiprocessors(int device, const char* operation) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute", operation);
  return count;
}

/// The driver's CUDA version as the runtime writes it: 13020 is 13.2.
inline int driver_version(const char* operation) {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion", operation);
  return version;
}

/// Loads the code of the kernels on the current device. Returns the first error.
template <class... Kernels>
cudaError_t load_kernels(Kernels... kernels) {
  cudaError_t status = cudaSuccess;
  const auto load = [&](const void* kernel) {
    cudaFuncAttributes attributes;
    if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, kernel);
  };
  (load(reinterpret_cast<const void*>(kernels)), ...);
  return status;
}

/// kernel<<<blocks, threads, 0, stream>>>(params), checked. `name` is for the error, as "cudaLaunchKernel(kernel)".
template <class Params>
void launch_kernel(void (*kernel)(Params), unsigned blocks, unsigned threads, cudaStream_t stream,
                   const Params& params, const char* name, const char* operation) {
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, 0, stream), name,
        operation);
}

#if CUDART_VERSION >= 12030
/// The same with programmatic dependent launch: blocks may start before the previous kernel has ended. The kernel must
/// call wait_for_kernel_before() (warp.h).
template <class Params>
void launch_kernel_early(void (*kernel)(Params), unsigned blocks, unsigned threads, cudaStream_t stream,
                         const Params& params, const char* name, const char* operation) {
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, params), name, operation);
}
#endif

}  // namespace gradkern::cuda
