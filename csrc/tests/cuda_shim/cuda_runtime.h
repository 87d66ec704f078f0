// Test only: CUDA's execution model on the host, enough of it to run csrc/cuda/*.cu unchanged.
//
// A launch runs its blocks one after the other, every block with one fiber per thread. Barriers
// and warp operations are where fibers wait; between two of them threads run in a chosen order
// (Schedule), so that a result that depends on the order of threads or blocks shows. Kernels and copies
// run when they are enqueued or, while `deferred` is set, when a test lets their stream run; errors are
// synchronous. Under ThreadSanitizer (race_model.h) it also shows what is not synchronised. What it cannot
// show: speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <typeinfo>
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
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
  cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNotReady = 600, cudaErrorInvalidDeviceFunction = 98, cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209, cudaErrorUnsupportedPtxVersion = 222
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };
constexpr unsigned cudaEventDisableTiming = 2, cudaHostAllocDefault = 0;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76
};
struct cudaFuncAttributes {
  int ptxVersion;
};
using cudaStream_t = struct CUstream_st*;
struct CUevent_st {
  int pending = 0;  ///< records that are enqueued and not reached
};
using cudaEvent_t = CUevent_st*;
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

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
extern int ptx_version;          ///< of every kernel
extern bool capturing;           ///< every stream
extern bool copies_pending;      ///< no event is ever reached
extern int copies, allocations, early_launches;  ///< so far
extern size_t copied;            ///< bytes of the last copy
extern int loaded;               ///< kernels loaded so far
extern size_t largest_params;    ///< bytes of the largest arguments a kernel was launched with

using Work = std::vector<std::function<void()>>;
extern bool deferred;            ///< streams keep their work
extern int device;               ///< the current one, of two
extern bool skip_kernels;        ///< kernels are counted and not run
/// Does the work, or keeps it while `deferred` is set.
void enqueue(cudaStream_t stream, std::function<void()> work);
/// Removes and returns the work that a stream has kept: the work of a graph, if it was captured.
Work take_work(cudaStream_t stream);
void run(const Work& work);

/// Runs the kernel that the type of its parameters identifies.
using RunKernel = void (*)(const std::type_info& type, dim3 grid, dim3 block, const void* params, size_t bytes);
extern RunKernel run_kernel;     ///< in place of the kernel's source, if set: csrc/tests/ptx

/// Runs body(thread) for every thread of one block, as fibers.
void run_block(unsigned threads, const std::function<void()>& body);
void run_grid(dim3 grid, dim3 block, const std::function<void()>& body);

void block_barrier();
void fence();
void note_atomic(const void* location);
void* shared_memory(const void* variable, size_t bytes);
/// Every lane of the warp gives a value. Returns the address of the 32 values.
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
  return *status = cuda_shim::capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  return *id = reinterpret_cast<unsigned long long>(stream), cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cuda_shim::take_error(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = cuda_shim::device, cuda_shim::take_error(); }
inline cudaError_t cudaSetDevice(int device) {
  return device < 0 || device > 1 ? cudaErrorInvalidDevice : (cuda_shim::device = device, cudaSuccess);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? cuda_shim::multiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor ? 7 : 5;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = cuda_shim::driver_version, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = cuda_shim::ptx_version;
  return ++cuda_shim::loaded, cuda_shim::load_error;
}

// Memory is never freed, as by csrc/cuda.
cudaError_t cudaMalloc(void** memory, size_t bytes);
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
/// From pinned memory, which is read when the copy runs.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t e = cuda_shim::take_error()) return e;
  cuda_shim::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  cuda_shim::copied = bytes;
  return ++cuda_shim::copies, cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new CUevent_st, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ++event->pending;
  cuda_shim::enqueue(stream, [=] { --event->pending; });
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return cuda_shim::copies_pending || event->pending ? cudaErrorNotReady : cudaSuccess;
}

/// As on a device, the parameters are copied when the kernel is launched.
template <class Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             size_t, cudaStream_t stream) {
  if (const cudaError_t e = cuda_shim::take_error()) return e;
  if (sizeof(Params) > 32764 || grid.x == 0 || block.x > 1024) return cudaErrorInvalidValue;
  if (sizeof(Params) > cuda_shim::largest_params) cuda_shim::largest_params = sizeof(Params);
  ++cuda_shim::launches;
  if (cuda_shim::skip_kernels) return cudaSuccess;
  cuda_shim::enqueue(stream, [=, params = *static_cast<const Params*>(arguments[0])] {
    if (cuda_shim::run_kernel) cuda_shim::run_kernel(typeid(Params), grid, block, &params, sizeof(Params));
    else cuda_shim::run_grid(grid, block, [&] { kernel(params); });
  });
  return cudaSuccess;
}
template <class Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params), const Params& params) {
  ++cuda_shim::early_launches;
  void* arguments[] = {const_cast<Params*>(&params)};
  return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, arguments, 0, config->stream);
}

inline void __syncthreads() { cuda_shim::block_barrier(); }
inline void __threadfence() { cuda_shim::fence(); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <class T>
T __shfl_down_sync(unsigned, T value, int delta) {
  const unsigned lane = threadIdx.x % 32, from = lane + unsigned(delta);
  return cuda_shim::from_bits<T>(cuda_shim::warp_exchange(cuda_shim::to_bits(value))[from < 32 ? from : lane]);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_shim::from_bits<T>(cuda_shim::warp_exchange(cuda_shim::to_bits(value))[lane]);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return cuda_shim::from_bits<T>(cuda_shim::warp_exchange(cuda_shim::to_bits(value))[threadIdx.x % 32 ^ unsigned(lanes)]);
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const uint64_t* all = cuda_shim::warp_exchange(value);
  return unsigned(*std::max_element(all, all + 32));
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const uint64_t* all = cuda_shim::warp_exchange(value);
  return unsigned(std::accumulate(all, all + 32, uint64_t(0)));
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const uint64_t* all = cuda_shim::warp_exchange(value);
  unsigned lanes = 0;
  for (int i = 0; i < 32; ++i) lanes |= unsigned(all[i] != 0) << i;
  return lanes;
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  cuda_shim::note_atomic(at);
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
inline unsigned atomicExch(unsigned* at, unsigned value) {
  cuda_shim::note_atomic(at);
  return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}
