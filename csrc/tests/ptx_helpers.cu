// Each helper of csrc/cuda that is written in PTX, or that stands for an instruction, in a kernel of its own:
// scripts/check_kernels.py looks at what becomes of it. Nothing here is run.
#include "cuda/warp.h"

using namespace gradkern;
using namespace gradkern::cuda;

extern "C" {
__global__ void use_load_once(const char* from, uint4* to) { *to = load_once(from); }
__global__ void use_load_to_write(const char* from, uint4* to) { *to = load_to_write(from); }
__global__ void use_store_vector(char* to, uint4 v) { store_vector(to, v); }
__global__ void use_load_part(const char* from, uint4* to) { *to = load_part(from, 14); }
__global__ void use_store_part(char* to, uint4 v) { store_part(to, v, 14); }
__global__ void use_load_across(const char* from, uint4* to) { *to = load_across(from); }
__global__ void use_widen_half(const uint16_t* from, float* to) { *to = widen(Float16{*from}); }
__global__ void use_narrow_half(const float* from, uint16_t* to) { *to = narrow<Float16>(*from).bits; }
__global__ void use_narrow_bfloat16(const float* from, uint16_t* to) { *to = narrow<BFloat16>(*from).bits; }
__global__ void use_nearest(const float* from, int* to) { *to = nearest(*from); }
__global__ void use_arrives_last(uint32_t* counter, bool* to) { *to = arrives_last(counter, gridDim.x); }
__global__ void use_let_next_kernel_start() { let_next_kernel_start(); }
__global__ void use_wait_for_kernel_before(const int* from, int* to) {
  wait_for_kernel_before();
  *to = *from;
}
}
