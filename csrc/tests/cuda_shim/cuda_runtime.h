// Test only: CUDA's execution model on the host, enough of it to run csrc/cuda/*.cu unchanged.
//
// A launch runs its blocks one after the other, every block with one fiber per thread. Barriers
// and warp operations are where fibers wait; between two of them threads run in a chosen order
// (Schedule), so that a result that depends on the order of threads or blocks shows. Kernels,
// copies and errors are synchronous. Under ThreadSanitizer
// (race_model.h) it also shows what is not synchronised. What it cannot show: speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __CUDA_SHIM__ 1
#define CUDART_VERSION 13000

#define __global__ static
#define __device__
#define __host__
// Always: what is passed by value to a call is not instrumented by gcc.
#define __forceinline__ inline __attribute__((always_inline))
/// A block's shared memory: `name` is a reference into what run_block has set aside for this block.
#define GRADKERN_SHARED(type, name)  \
  static const char name##_tag = 0; \
  type& name = *static_cast<type*>(cuda_shim::shared_memory(&name##_tag, sizeof(type)))
#define __grid_constant__
#define __launch_bounds__(...)

struct uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
  cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDeviceFunction = 98, cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209, cudaErrorUnsupportedPtxVersion = 222
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76
};
struct cudaFuncAttributes {};
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t e) { return e ? "a shim error" : "no error"; }
inline const char* cudaGetErrorName(cudaError_t e) { return e ? "cudaErrorShim" : "cudaSuccess"; }

namespace cuda_shim {

struct Schedule {
  bool threads_backwards = false, blocks_backwards = false;
};
extern Schedule schedule;
extern int multiprocessors;      ///< what the device claims to have
extern int launches;             ///< kernels launched so far
extern cudaError_t next_error;   ///< what the next call returns
extern cudaError_t load_error;   ///< what loading a kernel returns
extern int driver_version;
extern const float* watched;     ///< if set: its value after every launch is appended to `seen`
extern std::vector<float> seen;
extern int loaded;               ///< kernels loaded so far
extern size_t largest_params;    ///< bytes of the largest arguments a kernel was launched with

/// Runs body(thread) for every thread of one block, as fibers.
void run_block(unsigned threads, const std::function<void()>& body);
void run_grid(dim3 grid, dim3 block, const std::function<void()>& body);

void block_barrier();
void fence();
void note_atomic(const void* location);
void* shared_memory(const void* variable, size_t bytes);
/// Every lane of the warp gives a value; returned is where the 32 values are.
const uint64_t* warp_exchange(uint64_t value);

inline cudaError_t take_error() {
  const cudaError_t e = next_error;
  next_error = cudaSuccess;
  return e;
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "at most eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_shim

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cuda_shim::take_error(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cuda_shim::take_error(); }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? cuda_shim::multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor ? 7 : 5;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = cuda_shim::driver_version, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return ++cuda_shim::loaded, cuda_shim::load_error;
}

/// As on a device, the parameters are copied when the kernel is launched.
template <class Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             size_t, cudaStream_t) {
  if (const cudaError_t e = cuda_shim::take_error()) return e;
  if (sizeof(Params) > 32764 || grid.x == 0 || block.x > 1024) return cudaErrorInvalidValue;
  const Params& params = *static_cast<const Params*>(arguments[0]);
  if (sizeof(Params) > cuda_shim::largest_params) cuda_shim::largest_params = sizeof(Params);
  cuda_shim::run_grid(grid, block, [&] { kernel(params); });
  if (cuda_shim::watched) cuda_shim::seen.push_back(*cuda_shim::watched);
  return cudaSuccess;
}

inline void __syncthreads() { cuda_shim::block_barrier(); }
inline void __threadfence() { cuda_shim::fence(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  const unsigned lane = threadIdx.x % 32;
  return cuda_shim::from_bits<T>(cuda_shim::warp_exchange(cuda_shim::to_bits(value))[lane ^ unsigned(lane_mask)]);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const unsigned lane = threadIdx.x % 32, from = lane + unsigned(delta);
  return cuda_shim::from_bits<T>(cuda_shim::warp_exchange(cuda_shim::to_bits(value))[from < 32 ? from : lane]);
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const uint64_t* all = cuda_shim::warp_exchange(value);
  unsigned largest = 0;
  for (int i = 0; i < 32; ++i) largest = all[i] > largest ? unsigned(all[i]) : largest;
  return largest;
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  cuda_shim::note_atomic(at);
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
