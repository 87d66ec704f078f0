// The kernels' synchronisation under ThreadSanitizer: every GPU thread is a fiber (cuda_shim/race_model.h). Fails by
// TSan's report. scripts/race_mutants.py removes each synchronisation in turn and expects that report.
#include <cstdio>
#include <vector>

// One translation unit, so that all of it is instrumented; the model itself is not.
#include "cuda/finish.cu"
#include "cuda/measure.cu"

namespace {

using namespace gradkern;

/// More tensors than a block has warps, one listed twice; if `large`, three of more chunks than a warp combines, all of one block.
void measure(double p, bool large) {
  std::vector<std::vector<float>> memory;
  std::vector<TensorRef> tensors;
  std::vector<int64_t> first;
  for (int i = 0; i < 12; ++i) {
    const bool repeat = i == 5;
    memory.emplace_back(repeat ? 0 : large && i % 4 == 3 ? 66 * 4096 : 40 + 1500 * (i % 3), 0.5f);
    tensors.push_back({memory.back().data(), int64_t(memory.back().size()), DType::kFloat32});
    first.push_back(repeat ? 1 : i);
  }
  std::vector<float> norm(12), l2(12), largest(12);
  float total = 0;
  cuda::MeasureLaunch m;
  m.list = {tensors.data(), 12, first.data(), 0, nullptr};
  m.options = {norm_order(p), false};
  m.max_norm = 1;
  m.results.norm = norm.data();
  m.results.l2 = l2.data();
  m.results.max_abs = largest.data();
  m.results.total_norm = &total;
  std::vector<char> workspace(cuda::measure_workspace_bytes(m.list, m.options));
  m.workspace = workspace.data();
  m.workspace_bytes = workspace.size();
  cuda::launch_measure(m);
  std::printf("order %g: %g\n", p, double(total));
}

}  // namespace

int main() {
  cuda_shim::multiprocessors = 1;  // four blocks
  measure(2, false);
  measure(2, true);
  measure(3, false);
}
