// The shared library through its C interface alone: results, threads, errors, a build without CUDA.
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "library/kernels.h"

extern "C" int kernels_header_version(void);

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const gradkern_pool kSerial{1, nullptr};
const gradkern_pool kThreads{3, [](int32_t count, void (*body)(void*, int32_t), void* context) {
                               std::vector<std::thread> running;
                               for (int32_t i = 0; i < count; ++i) running.emplace_back(body, context, i);
                               for (std::thread& t : running) t.join();
                             }};

/// Three tensors, of which the last repeats the first.
struct Gradients {
  std::vector<float> a = std::vector<float>(100'000, 3.0f);
  std::vector<double> b = {-4.0, 0.0};
  gradkern_tensor tensors[3] = {{a.data(), int64_t(a.size()), GRADKERN_FLOAT32},
                                {b.data(), 2, GRADKERN_FLOAT64},
                                {nullptr, 0, GRADKERN_FLOAT32}};
  int64_t first[3] = {0, 1, 0};
  gradkern_list list{tensors, 3, first};
};

gradkern_measure measure_of(double norm_type) {
  gradkern_measure m{};
  m.norm_type = norm_type;
  m.inv_scale = 1;
  m.max_norm = kInfinity;
  return m;
}

void test_measure(const gradkern_pool& pool) {
  Gradients g;
  double norm[3], l2[3], largest[3], total = 0, decision = 0, coef = 0;
  int64_t nonfinite[3], zeros[3], total_nonfinite = -1;
  uint8_t skip = 9;
  gradkern_measure m = measure_of(1.0);
  m.inv_scale = -0.5;
  m.max_norm = 15'000.2;
  m.count_zeros = 1;
  m.results.is_double = 1;
  m.results.norm = norm;
  m.results.l2 = l2;
  m.results.max_abs = largest;
  m.results.nonfinite = nonfinite;
  m.results.zeros = zeros;
  m.results.total_norm = &total;
  m.results.decision_norm = &decision;
  m.results.clip_coef = &coef;
  m.results.total_nonfinite = &total_nonfinite;
  m.results.skip_step = &skip;
  CHECK_EQ(gradkern_cpu_measure(&g.list, &m, &pool), GRADKERN_OK);
  CHECK_EQ(norm[0], 150'000.0);
  CHECK_EQ(norm[1], 2.0);
  CHECK_EQ(norm[2], norm[0]);
  CHECK_NEAR(l2[0], 1.5 * std::sqrt(1e5), 1e-15);
  CHECK_EQ(largest[1], 2.0);
  CHECK_EQ(zeros[1], 1);
  CHECK_EQ(nonfinite[0] + nonfinite[1] + nonfinite[2], 0);
  CHECK_EQ(total, 150'002.0);
  CHECK_EQ(decision, total);
  CHECK_NEAR(coef, 0.1, 1e-6);
  CHECK_EQ(total_nonfinite, 0);
  CHECK_EQ(skip, 0);
}

void test_rows_are_optional_and_float() {
  Gradients g;
  float total = 0;
  gradkern_measure m = measure_of(2.0);
  m.results.total_norm = &total;
  CHECK_EQ(gradkern_cpu_measure(&g.list, &m, &kSerial), GRADKERN_OK);
  CHECK_EQ(total, float(std::sqrt(9e5 + 16)));
}

void test_scale(const gradkern_pool& pool) {
  Gradients g;
  gradkern_scale by_norm{};
  const double norm = 6.0;
  by_norm.total_norm = &norm;
  by_norm.total_norm_is_double = 1;
  by_norm.max_norm = 6.0;  // the coefficient is a little below 1: 6 / (6 + 1e-6)
  CHECK_EQ(gradkern_cpu_scale(&g.list, &by_norm, &pool), GRADKERN_OK);
  CHECK_EQ(g.b[0], -4.0 * (6.0 / (6.0 + 1e-6)));
  by_norm.max_norm = 7.0;
  const double before = g.b[0];
  CHECK_EQ(gradkern_cpu_scale(&g.list, &by_norm, &pool), GRADKERN_OK);
  CHECK_EQ(g.b[0], before);

  const double factors[3] = {0.5, 2.0, 1.0};
  gradkern_scale each{};
  each.factor = factors;
  each.factor_per_tensor = 1;
  CHECK_EQ(gradkern_cpu_scale(&g.list, &each, &pool), GRADKERN_OK);
  CHECK_EQ(g.b[0], 2 * before);
  CHECK_NEAR(g.a[99'999], 1.5, 1e-6);
  CHECK_EQ(gradkern_cpu_clamp(&g.list, 1.0, &pool), GRADKERN_OK);
  CHECK_EQ(g.b[0], -1.0);
  CHECK_EQ(g.a[0], 1.0);

  const int64_t nonfinite = 1;
  gradkern_scale zeroing = by_norm;
  zeroing.total_nonfinite = &nonfinite;
  zeroing.on_nonfinite = GRADKERN_ZERO;
  CHECK_EQ(gradkern_cpu_scale(&g.list, &zeroing, &pool), GRADKERN_OK);
  CHECK_EQ(g.a[50'000], 0.0);
}

void test_errors_stay_inside() {
  Gradients g;
  const gradkern_pool broken{2, [](int32_t, void (*)(void*, int32_t), void*) { throw std::bad_alloc(); }};
  gradkern_measure m = measure_of(2.0);
  CHECK_EQ(gradkern_cpu_measure(&g.list, &m, &broken), GRADKERN_ERROR);
  CHECK(std::string(gradkern_last_error()).find("bad_alloc") != std::string::npos);
}

/// The tests are built without CUDA kernels.
void test_without_cuda() {
  const gradkern_build built = gradkern_build_info();
  CHECK(std::strstr(built.instruction_sets, "baseline") && std::strlen(built.compiler) > 0);
  if (std::strlen(built.cuda_version) > 0) return;
  Gradients g;
  gradkern_cuda_plan plan;
  CHECK_EQ(gradkern_cuda_usable(0), GRADKERN_ERROR);
  CHECK_EQ(gradkern_cuda_plan_list(&g.list, &plan), GRADKERN_ERROR);
  CHECK(std::strstr(gradkern_last_error(), "no CUDA kernels"));
}

}  // namespace

int main() {
  CHECK_EQ(gradkern_abi_version(), GRADKERN_ABI_VERSION);
  CHECK_EQ(kernels_header_version(), GRADKERN_ABI_VERSION);
  for (const gradkern_pool& pool : {kSerial, kThreads}) {
    test_measure(pool);
    test_scale(pool);
  }
  test_rows_are_optional_and_float();
  test_errors_stay_inside();
  test_without_cuda();
  return gradkern::test::finish("test_library");
}
