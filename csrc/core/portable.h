// Macros and functions with which a header compiles for the host and with nvcc.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GRADKERN_HD __host__ __device__ __forceinline__
#define GRADKERN_NOINLINE __noinline__
#define GRADKERN_HD_LONG inline __host__ __device__ __noinline__  // what is long in a kernel, and rarely used
#elif defined(__GNUC__)
// always_inline, because csrc/cpu compiles these headers once per instruction set: of several
// out-of-line copies, the linker could keep the one for AVX-512.
#define GRADKERN_HD inline __attribute__((always_inline))
#define GRADKERN_NOINLINE __attribute__((noinline))
#define GRADKERN_HD_LONG GRADKERN_HD
#else
#define GRADKERN_HD inline
#define GRADKERN_NOINLINE
#define GRADKERN_HD_LONG GRADKERN_HD
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
