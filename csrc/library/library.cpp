// The version of the library, how it was compiled, and its last error.
#include "cpu/chunk_kernels.h"
#include "library/guarded.h"
#include "library/kernels.h"

// Set by cmake/library.cmake; empty without CUDA.
#ifndef GRADKERN_CUDA_VERSION
#define GRADKERN_CUDA_VERSION ""
#define GRADKERN_CUDA_ARCHITECTURES ""
#endif

namespace gradkern::library {

std::string& last_error() noexcept {
  thread_local std::string message;
  return message;
}

}  // namespace gradkern::library

using namespace gradkern;

int32_t gradkern_abi_version() { return GRADKERN_ABI_VERSION; }

const char* gradkern_last_error() { return library::last_error().c_str(); }

gradkern_build gradkern_build_info() {
#if defined(__x86_64__)
  const char* const sets = "baseline avx2 avx512";
#else
  const char* const sets = "baseline";
#endif
  const char* in_use = nullptr;
  library::guarded([&] { in_use = cpu::chunk_kernels().name; });
  return {GRADKERN_COMPILER, sets, in_use, GRADKERN_CUDA_VERSION, GRADKERN_CUDA_ARCHITECTURES};
}
