// How fast the norm pass is with each way of adding up the squares of float32, bfloat16 and float16
// (csrc/cuda/accumulate.h), beside a copy of the same bytes. One program a way:
//
//     nvcc -std=c++20 -O3 -fmad=false -arch=native -Icsrc -DGRADKERN_COMPENSATED=0 -o accumulation \
//         benchmarks/accumulation.cu csrc/cuda/measure.cu csrc/cuda/tensor_table.cu
//
// GRADKERN_COMPENSATED=0 is float64, 1 is pairs of float32. Prints one JSON object a line: median
// microseconds between two events, over buffers that together exceed the L2 cache.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch.h"

namespace {

using namespace gradkern;

constexpr size_t kRotatedBytes = size_t(512) << 20;
constexpr int kRounds = 15, kCalls = 10;  ///< calls between two events: the host stays ahead of them

void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

/// Median microseconds of run(call).
template <class Run>
double median_time(const Run& run) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int round = 0; round < kRounds + 3; ++round) {
    require(cudaEventRecord(begin), "cudaEventRecord");
    for (int call = 0; call < kCalls; ++call) run(round * kCalls + call);
    require(cudaEventRecord(end), "cudaEventRecord");
    require(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (round >= 3) times.push_back(milliseconds * 1e3f / kCalls);
  }
  std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
  require(cudaEventDestroy(begin), "cudaEventDestroy");
  require(cudaEventDestroy(end), "cudaEventDestroy");
  return times[kRounds / 2];
}

/// `data` holds copies * bytes, all of them the bits of small finite numbers of every type.
void measure(char* data, size_t bytes, size_t copies, DType dtype, const char* name) {
  cuda::MeasureLaunch launch;
  TensorRef ref{data, int64_t(bytes) / itemsize(dtype), dtype};
  launch.list = {&ref, 1};
  launch.max_norm = 1;
  require(cudaMalloc(&launch.results.total_norm, sizeof(float)), "cudaMalloc");
  launch.workspace_bytes = cuda::measure_workspace_bytes(launch.list, launch.options);
  require(cudaMalloc(&launch.workspace, launch.workspace_bytes), "cudaMalloc");
  const double pass = median_time([&](int call) {
    ref.data = data + size_t(call) % copies * bytes;
    cuda::launch_measure(launch);
  });
  const double copy = median_time([&](int call) {
    char* half = data + size_t(call) % copies * bytes;
    require(cudaMemcpyAsync(half, half + bytes / 2, bytes / 2, cudaMemcpyDeviceToDevice), "cudaMemcpyAsync");
  });
  std::printf("{\"accumulation\": \"%s\", \"dtype\": \"%s\", \"bytes\": %zu, \"norm_pass_us\": %.2f, \"copy_half_us\": %.2f}\n",
              GRADKERN_COMPENSATED ? "float32 pairs" : "float64", name, bytes, pass, copy);
  require(cudaFree(launch.workspace), "cudaFree");
  require(cudaFree(launch.results.total_norm), "cudaFree");
}

}  // namespace

int main() {
  for (size_t bytes = size_t(16) << 20; bytes <= size_t(1) << 30; bytes <<= 2) {
    const size_t copies = std::max<size_t>(1, kRotatedBytes / bytes);
    char* data = nullptr;
    require(cudaMalloc(&data, copies * bytes), "cudaMalloc");
    require(cudaMemset(data, 0x3c, copies * bytes), "cudaMemset");  // 0.0115 in float32 and bfloat16, 1.06 in float16
    measure(data, bytes, copies, DType::kFloat32, "float32");
    measure(data, bytes, copies, DType::kBFloat16, "bfloat16");
    measure(data, bytes, copies, DType::kFloat16, "float16");
    require(cudaFree(data), "cudaFree");
  }
}
