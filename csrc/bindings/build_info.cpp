#include "bindings/build_info.h"

#include "cpu/chunk_kernels.h"

// Set by cmake/python_extension.cmake; empty without CUDA.
#ifndef GRADKERN_CUDA_VERSION
#define GRADKERN_CUDA_VERSION ""
#define GRADKERN_CUDA_ARCHITECTURES ""
#endif

namespace gradkern {

std::map<std::string, std::string> build_info() {
#if defined(__x86_64__)
  const char* compiled = "baseline avx2 avx512";
#else
  const char* compiled = "baseline";
#endif
  return {
      {"torch", GRADKERN_TORCH_VERSION},
      {"compiler", GRADKERN_COMPILER},
      {"cpu_instruction_sets", compiled},
      {"cpu_instruction_set_in_use", cpu::chunk_kernels().name},
      {"cuda", GRADKERN_CUDA_VERSION},
      {"cuda_architectures", GRADKERN_CUDA_ARCHITECTURES},
  };
}

}  // namespace gradkern
