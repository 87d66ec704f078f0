// What lets one header serve the host compiler and nvcc.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GRADKERN_HD __host__ __device__ __forceinline__
#define GRADKERN_NOINLINE __noinline__
#elif defined(__GNUC__)
// always_inline, not just inline: csrc/cpu compiles these headers once per instruction set, and
// an out-of-line copy built for AVX-512 could be the one the linker keeps for everybody.
#define GRADKERN_HD inline __attribute__((always_inline))
#define GRADKERN_NOINLINE __attribute__((noinline))
#else
#define GRADKERN_HD inline
#define GRADKERN_NOINLINE
#endif

namespace gradkern {

template <class To, class From>
GRADKERN_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

}  // namespace gradkern
