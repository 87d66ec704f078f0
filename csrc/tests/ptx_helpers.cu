// Each helper of csrc/cuda that is written in PTX, or that stands for an instruction, in a kernel of its own:
// scripts/check_kernels.py looks at what becomes of it. Nothing here is run.
#include "cuda/accumulate.h"

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
__global__ void use_larger_float(uint32_t* a, uint32_t w) { *a = larger_magnitude(*a, w, float()); }
__global__ void use_larger_bfloat16(uint32_t* a, uint32_t w) { *a = larger_magnitude(*a, w, BFloat16()); }
__global__ void use_larger_half(uint32_t* a, uint32_t w) { *a = larger_magnitude(*a, w, Float16()); }
__global__ void use_mask_and_set(uint32_t* w) { *w = mask_and_set(*w, 0x0fffe000u, 0x30000000u); }
__global__ void use_magnitudes_of_halves(uint32_t* w) { *w = magnitudes_of_halves(*w); }
__global__ void use_nonzero_halves(uint32_t* w) { *w = nonzero_halves(*w); }
__global__ void use_finite_halves(uint32_t* w) { *w = finite_halves<Float16>(*w); }
__global__ void use_finite_bfloat16(uint32_t* w) { *w = finite_halves<BFloat16>(*w); }
__global__ void use_warp_max(uint32_t* x) { *x = warp_max(x[threadIdx.x]); }
__global__ void use_warp_total(uint32_t* x) { *x = warp_sum(x[threadIdx.x]); }
__global__ void use_arrives_last(uint32_t* counter, bool* to) { *to = arrives_last(counter, gridDim.x); }
__global__ void use_let_next_kernel_start() { let_next_kernel_start(); }
__global__ void use_wait_for_kernel_before(const int* from, int* to) {
  wait_for_kernel_before();
  *to = *from;
}
}
