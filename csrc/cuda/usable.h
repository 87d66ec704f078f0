// Whether the kernels of this build run on a GPU and its driver.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace gradkern::cuda {

/// Empty where they do, else the reason in words. Loads every kernel, which could not be done later, within the
/// capture of a CUDA graph. Makes no context on a GPU that has none of this build's code.
std::string why_unusable(int device);

// Of each file of kernels, on the current device.
cudaError_t load_agc_kernels();
cudaError_t load_measure_kernels();
cudaError_t load_policy_kernels();
cudaError_t load_table_kernels();
cudaError_t load_write_kernels();

}  // namespace gradkern::cuda
