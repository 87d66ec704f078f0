// A small run of every kernel on a GPU, for compute-sanitizer: odd sizes, types and alignments, with
// allocations of exactly the size of the data. Checks one norm and one scaled value besides.
//
//     nvcc -std=c++20 -arch=native -Icsrc -o sanitize_cuda csrc/tests/sanitize_cuda.cpp csrc/cuda/*.cu
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch.h"

namespace {

using namespace gradkern;

void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <class T>
T* device(const std::vector<T>& values) {
  T* at = nullptr;
  require(cudaMalloc(&at, values.size() * sizeof(T)), "cudaMalloc");
  require(cudaMemcpy(at, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  return at;
}

template <class T>
T fetch(const void* from) {
  T value;
  require(cudaMemcpy(&value, from, sizeof(T), cudaMemcpyDeviceToHost), "copy");
  return value;
}

/// Every type at several sizes, the odd ones one element off alignment.
std::vector<TensorRef> tensors(int repeat) {
  std::vector<TensorRef> refs;
  for (int d = 0; d < 6; ++d)
    for (int64_t n : {0, 1, 33, 4097, 20011}) {
      const DType dtype = DType(d);
      const int64_t offset = n % 2 ? itemsize(dtype) / (is_complex(dtype) ? 2 : 1) : 0;
      char* memory = device(std::vector<char>(size_t(n * itemsize(dtype) + offset), 1));
      for (int i = 0; i < (n < 40 ? repeat : 1); ++i) refs.push_back({memory + offset, n, dtype});
    }
  return refs;
}

void run(const std::vector<TensorRef>& refs, double p, bool clamp, double limit = 0) {
  const int64_t count = int64_t(refs.size());
  cuda::MeasureLaunch m;
  m.list = {refs.data(), count, nullptr, 0, nullptr};
  m.options = {norm_order(p), true};
  m.max_norm = 1e-3;
  auto* counts = device(std::vector<int64_t>(size_t(3 * count + 1)));
  double* reals = device(std::vector<double>(size_t(3 * count + 2)));
  m.results = {true, reals, reals + count, reals + 2 * count, counts, counts + count, reals + 3 * count,
               reals + 3 * count + 1, counts + 2 * count, nullptr, nullptr};
  m.workspace_bytes = cuda::measure_workspace_bytes(m.list, m.options);
  m.workspace = device(std::vector<char>(m.workspace_bytes, char(0x5a)));
  cuda::launch_measure(m);
  cuda::ScaleLaunch s;
  s.list = m.list;
  s.total_norm = m.results.total_norm;
  s.total_norm_is_double = true;
  s.max_norm = 1e-3;
  if (!clamp) cuda::launch_scale(s);  // lists with repeated pointers would race
  std::vector<TensorRef> reals_only;
  for (const TensorRef& t : refs)
    if (!is_complex(t.dtype)) reals_only.push_back(t);
  if (clamp) cuda::launch_clamp({{reals_only.data(), int64_t(reals_only.size()), nullptr, 0, nullptr}, limit});
  require(cudaDeviceSynchronize(), "run");
  cudaFree(m.workspace);
  cudaFree(reals);
  cudaFree(counts);
}

/// Adaptive gradient clipping: gradients of one type and weights of another, rows of every length.
void run_agc() {
  std::vector<UnitsRef> units;
  for (int d = 0; d < 6; ++d)
    for (int64_t length : {1, 33, 577, 9001}) {
      const DType grad = DType(d), weights = DType((d + 1) % 4);
      units.push_back({device(std::vector<char>(size_t(7 * length * itemsize(grad)), 1)),
                       device(std::vector<char>(size_t(7 * length * itemsize(weights)), 1)), 7, length, grad, weights});
    }
  cuda::AgcLaunch agc;
  agc.list = units.data();
  agc.count = int64_t(units.size());
  agc.clip_factor = 1e-3;
  agc.eps = 1e-3;
  agc.norms = device(std::vector<double>(2 * units.size()));
  agc.workspace_bytes = cuda::agc_workspace_bytes(agc);
  agc.workspace = device(std::vector<char>(agc.workspace_bytes, char(0x5a)));
  cuda::launch_agc(agc);
  require(cudaDeviceSynchronize(), "agc");
}

/// Steps of every adaptive policy, and the totals of two devices combined.
void run_policies() {
  const struct { PolicyKind kind; std::vector<double> constants; } cases[] = {
      {PolicyKind::kAutoClip, {25, 5}},
      {PolicyKind::kZClip, {0.97, 2.5, 2, 1, 5, 1e-6, 1, 0}},
      {PolicyKind::kSkipOutliers, {3, 5, 2, 0, 1}},
      {PolicyKind::kAdaGC, {0.98, 1, 1.05, 2}}};
  for (const auto& c : cases) {
    PolicyStep step{};
    step.kind = c.kind;
    step.rows = 700;
    step.total_is_double = step.norms_are_double = true;
    std::copy(c.constants.begin(), c.constants.end(), step.constants);
    step.total = device(std::vector<double>{2});
    step.norms = device(std::vector<double>(700, 2));
    step.state = device(std::vector<double>(size_t(policy_state_size(step))));
    step.result = device(std::vector<double>(size_t(policy_result_size(step))));
    for (int i = 0; i < 8; ++i) cuda::launch_policy(step, 0, nullptr);
  }
  cuda::CombineLaunch combine;
  combine.totals = device(std::vector<Partial>(2));
  combine.count = 2;
  combine.order = norm_order(2.0);
  combine.results.total_norm = device(std::vector<float>(1));
  cuda::launch_combine(combine);
  require(cudaDeviceSynchronize(), "policies");
}

}  // namespace

int main() {
  run_agc();
  run_policies();
  for (double p : {2.0, 1.0, HUGE_VAL, 3.0}) run(tensors(1), p, false);
  run(tensors(1), 2.0, true);
  run(tensors(400), 2.0, true, 1e30);  // several tables; nothing is outside the limit, nothing is written
  std::vector<float> ones(10007, 2.0f);
  float* data = device(ones);
  float total = 2.0f * std::sqrt(10007.0f);
  const TensorRef ref{data, 10007, DType::kFloat32};
  cuda::ScaleLaunch s;
  s.list = {&ref, 1, nullptr, 0, nullptr};
  s.total_norm = device(std::vector<float>{total});
  s.max_norm = total / 2;
  cuda::launch_scale(s);
  require(cudaDeviceSynchronize(), "scale");
  const float last = fetch<float>(data + 10006);
  s.factor = device(std::vector<double>{3});
  cuda::launch_scale(s);
  require(cudaDeviceSynchronize(), "scale by a factor");
  const float tripled = fetch<float>(data + 10006);
  std::printf("last element %g and %g, expected 1 and 3\n", last, tripled);
  return std::fabs(last - 1.0f) < 1e-5f && std::fabs(tripled - 3.0f) < 3e-5f ? 0 : 1;
}
