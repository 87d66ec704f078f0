// The kernels' synchronisation under ThreadSanitizer: every GPU thread is a fiber (cuda_shim/race_model.h). Fails by
// TSan's report. scripts/race_mutants.py removes each synchronisation in turn and expects that report.
#include <cstdio>
#include <vector>

// One translation unit, so that all of it is instrumented; the model itself is not.
#include "cuda/measure.cu"
#include "cuda/tensor_table.cu"

namespace {

using namespace gradkern;

/// Tensors within a warp's span, across warps of a block and across blocks; one listed twice, or empty. Twice in a row:
/// the second call finds the counters as the first has left them.
void measure(double p, int64_t large, int multiprocessors, bool repeats) {
  cuda_shim::multiprocessors = multiprocessors;
  std::vector<std::vector<float>> memory;
  std::vector<TensorRef> tensors;
  std::vector<int64_t> first;
  for (int i = 0; i < 12; ++i) {
    const bool repeat = i == 5;
    memory.emplace_back(size_t(repeat ? 0 : i % 4 == 3 ? large : 40 + 500 * (i % 3)), 0.5f);
    tensors.push_back({memory.back().data(), int64_t(memory.back().size()), DType::kFloat32});
    first.push_back(repeat ? 3 : i);
  }
  std::vector<float> norm(12), l2(12), largest(12);
  float total = 0;
  cuda::MeasureLaunch m;
  m.list = {tensors.data(), 12, repeats ? first.data() : nullptr, 0, nullptr};
  m.options = {norm_order(p), false};
  m.max_norm = 1;
  m.results.norm = norm.data();
  m.results.l2 = l2.data();
  m.results.max_abs = largest.data();
  m.results.total_norm = &total;
  std::vector<char> workspace(cuda::measure_workspace_bytes(m.list, m.options));
  m.workspace = workspace.data();
  m.workspace_bytes = workspace.size();
  for (int call = 0; call < 2; ++call) {
    cuda::launch_measure(m);
    std::printf("order %g, %d multiprocessors: %g\n", p, multiprocessors, double(total));
    if (norm[5] != (repeats ? norm[3] : 0) || norm[3] == 0) std::printf("a row is missing\n"), std::exit(2);
  }
}

}  // namespace

int main() {
  for (const bool backwards : {false, true}) {
    cuda_shim::schedule = {backwards, backwards};
    for (const bool repeats : {true, false}) {
      measure(2, 8000, 1, repeats);   // two blocks
      measure(2, 80000, 2, repeats);  // tensors of several blocks
    }
  }
  measure(3, 8000, 1, true);
}
