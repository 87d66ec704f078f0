// Each helper of csrc/cuda that is written in PTX, or that stands for an instruction, in a kernel of its own:
// scripts/check_kernels.py looks at what becomes of it. Nothing here is run.
#include "cuda/finish.cu"

using namespace gradkern;
using namespace gradkern::cuda;

extern "C" {
__global__ void use_load_once(const uint4* from, uint4* to) { *to = load_once(from); }
__global__ void use_load_to_write(const uint4* from, uint4* to) { *to = load_to_write(from); }
__global__ void use_load_across(const char* from, uint4* to) { *to = load_across(from); }
__global__ void use_widen_half(const uint16_t* from, float* to) { *to = widen(Float16{*from}); }
__global__ void use_narrow_half(const float* from, uint16_t* to) { *to = narrow<Float16>(*from).bits; }
__global__ void use_narrow_bfloat16(const float* from, uint16_t* to) { *to = narrow<BFloat16>(*from).bits; }
__global__ void use_warp_max(uint32_t* value) { *value = warp_max<32>(*value); }
__global__ void use_last_block(uint32_t* blocks_done, bool* to) { *to = last_block(blocks_done); }
}
