// Chooses the kernels at run time, so that a wheel runs on any processor of its architecture.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/chunk_kernels.h"

namespace gradkern::cpu {
namespace {

struct Candidate {
  const ChunkKernels* kernels;
  bool supported;
};

const ChunkKernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const Candidate candidates[] = {
      {&kAvx512Kernels, avx512}, {&kAvx2Kernels, avx2}, {&kBaselineKernels, true}};
#else
  const Candidate candidates[] = {{&kBaselineKernels, true}};
#endif
  const char* wanted = std::getenv("GRADKERN_CPU_ISA");
  std::string usable;
  for (const Candidate& c : candidates) {
    if (!c.supported) continue;
    if (!wanted || !*wanted || !std::strcmp(wanted, c.kernels->name)) return *c.kernels;
    usable += std::string(usable.empty() ? "" : ", ") + c.kernels->name;
  }
  throw std::runtime_error("GRADKERN_CPU_ISA: expected one of " + usable + ", got '" + wanted + "'");
}

}  // namespace

const ChunkKernels& chunk_kernels() {
  static const ChunkKernels& chosen = choose();
  return chosen;
}

}  // namespace gradkern::cpu
