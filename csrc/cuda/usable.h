// Whether the kernels of this build run on a GPU and its driver.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace gradkern::cuda {

/// Empty if they do, else the reason. Loads every kernel, because kernels cannot be loaded during a later capture of a
/// CUDA graph.
std::string why_unusable(int device);

// Load the kernels of one file on the current device.
cudaError_t load_agc_kernels();
cudaError_t load_measure_kernels();
cudaError_t load_policy_kernels();
cudaError_t load_table_kernels();
cudaError_t load_write_kernels();

}  // namespace gradkern::cuda
