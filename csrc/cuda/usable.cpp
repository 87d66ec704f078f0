#include "cuda/usable.h"

#include "cuda/check.h"

namespace gradkern::cuda {
namespace {

std::string dotted(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

cudaError_t load_all() {
  cudaError_t status = load_measure_kernels();
  if (status == cudaSuccess) status = load_table_kernels();
  if (status == cudaSuccess) status = load_policy_kernels();
  if (status == cudaSuccess) status = load_write_kernels();
  if (status == cudaSuccess) status = load_agc_kernels();
  return status;
}

std::string capability_of(int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return std::to_string(major) + "." + std::to_string(minor);
}

std::string reason(cudaError_t status, int device) {
  switch (status) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return "this build has no kernels for compute capability " + capability_of(device);
    default: return std::string("loading the kernels failed: ") + cudaGetErrorString(status);
  }
}

}  // namespace

std::string why_unusable(int device) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  // Within a major version, an older driver works with a newer runtime (CUDA's minor version compatibility).
  if (driver / 1000 < runtime / 1000)
    return "the driver supports CUDA " + dotted(driver) + ", and the kernels were built with CUDA " +
           dotted(runtime) + ", which needs a newer driver";
  try {
    const DuringCaptures allowed;
    const DeviceGuard guard(device, "why_unusable");
    const cudaError_t status = load_all();
    cudaGetLastError();  // clears the error, so that no later call reports it
    return status == cudaSuccess ? std::string() : reason(status, device);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

}  // namespace gradkern::cuda
