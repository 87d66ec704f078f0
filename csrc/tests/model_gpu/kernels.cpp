// Test only: controls of the library of kernels that runs csrc/cuda under the model of a GPU (cuda_shim).
#include <cuda_runtime.h>

#define EXPORTED __attribute__((visibility("default")))

extern "C" {
/// Kernels are counted and not run, so that only the host's work takes time.
EXPORTED void model_gpu_skip_kernels(int skip) { cuda_shim::skip_kernels = skip != 0; }
/// Calls behave as during the capture of a graph; their kernels run.
EXPORTED void model_gpu_capture(int capturing) { cuda_shim::capturing = capturing != 0; }
EXPORTED int model_gpu_launches() { return cuda_shim::launches; }
EXPORTED int model_gpu_copies() { return cuda_shim::copies; }
}
