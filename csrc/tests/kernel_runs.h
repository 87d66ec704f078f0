// Test only: runs csrc/cuda on a TensorSet, and judges the results.
#pragma once

#include <cuda_runtime.h>

#include "core/clip.h"
#include "cpu/driver.h"
#include "cuda/launch.h"
#include "tests/kernel_case.h"

namespace gradkern::test {

struct Measured {
  bool is_double = false;
  std::vector<double> norm, l2, max_abs;
  std::vector<int64_t> nonfinite, zeros;
  double total = -1, decision_norm = -1, coef = -1;
  int64_t total_nonfinite = -1;
  bool skip_step = false;
  Partial partial;
  std::vector<unsigned char> raw;  ///< all results' bytes, for bit comparisons
};

template <class Real>
std::vector<double> widened(const std::vector<unsigned char>& raw, int64_t n) {
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(fetch<Real>(raw.data(), i));
  return out;
}

inline std::vector<double> reals(const std::vector<unsigned char>& raw, int64_t n, bool is_double) {
  return is_double ? widened<double>(raw, n) : widened<float>(raw, n);
}

inline cuda::TensorList list_of(const TensorSet& set, const int64_t* first = nullptr) {
  return {set.refs(), set.count(), first, 0, nullptr};
}

struct Request {
  double p = 2, max_norm = 1, inv_scale = 1;
  bool count_zeros = false;
  const int64_t* first = nullptr;
};

/// Whether no bit of the results depends on a library's pow() or hypot().
inline bool same_everywhere(const cuda::TensorList& list, double p) {
  bool any_complex128 = false;
  for (int64_t i = 0; i < list.count; ++i) any_complex128 |= list.tensors[i].dtype == DType::kComplex128;
  return !any_complex128 && (p == 0 || p == 1 || p == 2 || std::isinf(p));
}

/// A call with the memory of its results and its workspace, which have to live until it has run.
class MeasureCall {
 public:
  MeasureCall(const cuda::TensorList& list, bool is_double, const Request& request)
      : count_(list.count), same_everywhere_(same_everywhere(list, request.p)),
        workspace_(workspace_bytes(list, request), 0) {
    const size_t n = size_t(count_), real = is_double ? 8 : 4;
    for (auto* row : {&norm_, &l2_, &max_abs_}) row->resize(n * real);
    for (auto* one : {&total_, &coef_}) one->resize(real);
    m_.is_double = is_double;
    m_.nonfinite.assign(n, -1);
    m_.zeros.assign(n, -1);
    cuda::MeasureLaunch launch;
    launch.list = list;
    launch.options = options_of(request);
    launch.max_norm = request.max_norm;
    launch.inv_scale = request.inv_scale;
    launch.results = {is_double, norm_.data(), l2_.data(), max_abs_.data(), m_.nonfinite.data(),
                      request.count_zeros ? m_.zeros.data() : nullptr, total_.data(), &m_.decision_norm, coef_.data(),
                      &m_.total_nonfinite, &m_.skip_step, &m_.partial};
    launch.workspace = workspace_.data();
    launch.workspace_bytes = size_t(workspace_bytes(list, request));
    cuda::launch_measure(launch);
  }
  MeasureCall(const MeasureCall&) = delete;
  MeasureCall& operator=(const MeasureCall&) = delete;

  Measured results() {
    CHECK(workspace_.guards_intact(), "wrote outside the workspace");
    Measured m = m_;
    m.norm = reals(norm_, count_, m.is_double);
    m.l2 = reals(l2_, count_, m.is_double);
    m.max_abs = reals(max_abs_, count_, m.is_double);
    m.total = reals(total_, 1, m.is_double)[0];
    m.coef = reals(coef_, 1, m.is_double)[0];
    for (const auto* part : {&norm_, &l2_, &max_abs_, &total_, &coef_}) m.raw.insert(m.raw.end(), part->begin(), part->end());
    const DType real = m.is_double ? DType::kFloat64 : DType::kFloat32;
    if (same_everywhere_) note(m.raw.data(), real, int64_t(m.raw.size()) / itemsize(real));
    return m;
  }

 private:
  static cuda::MeasureOptions options_of(const Request& r) { return {norm_order(r.p), r.count_zeros}; }
  static int64_t workspace_bytes(const cuda::TensorList& list, const Request& r) {
    return int64_t(cuda::measure_workspace_bytes(list, options_of(r)));
  }

  int64_t count_;
  bool same_everywhere_;
  GuardedBuffer workspace_;
  std::vector<unsigned char> norm_, l2_, max_abs_, total_, coef_;
  Measured m_;
};

inline Measured run_measure_of(const cuda::TensorList& list, bool is_double, const Request& request) {
  return MeasureCall(list, is_double, request).results();
}

inline Measured run_measure(const TensorSet& set, const Request& request = {}) {
  return run_measure_of(list_of(set, request.first), set.any_double(), request);
}

/// The contract's tolerance; general p is judged by what pow can give (docs: 1e-6 relative).
inline double tolerance(double p, bool is_double, bool total) {
  const bool power = p != 2 && p != 1 && p != 0 && std::isfinite(p);
  if (is_double) return power ? 4000 : 45;  // 1e-14 relative is 45 units at worst
  return power || total ? 2 : 1;
}

inline void check_norm(double got, long double want, double p, bool is_double, bool total, const char* what) {
  const double error = error_ulp(got, want, is_double);
  CHECK(error <= tolerance(p, is_double, total), "%s: got %.17g, want %.17Lg, %.3g ulp", what, got, want, error);
}

inline void check_against_reference(const TensorSet& set, const Request& r, const Measured& m) {
  Reference total;
  for (int64_t i = 0; i < set.count(); ++i) {
    Reference one;
    one.add(set[i]);
    if (set.count() <= 64) total.add(set[i]);
    const size_t k = size_t(i);
    const long double scale = r.inv_scale;
    check_norm(m.norm[k], one.norm(r.p) * (r.p == 0 ? 1 : scale), r.p, m.is_double, false, "norm");
    check_norm(m.l2[k], one.norm(2) * scale, 2, m.is_double, false, "l2");
    check_norm(m.max_abs[k], one.norm(HUGE_VAL) * scale, HUGE_VAL, m.is_double, false, "max_abs");
    CHECK(m.nonfinite[k] == one.nonfinite, "nonfinite: got %lld, want %lld", (long long)m.nonfinite[k], (long long)one.nonfinite);
    if (r.count_zeros) CHECK(m.zeros[k] == one.zeros, "zeros: got %lld, want %lld", (long long)m.zeros[k], (long long)one.zeros);
  }
  if (set.count() > 64) return;
  check_norm(m.total, total.norm(r.p) * (r.p == 0 ? 1 : (long double)r.inv_scale), r.p, m.is_double, true, "total");
  CHECK(m.total_nonfinite == total.nonfinite, "total_nonfinite");
  CHECK(m.skip_step == (total.nonfinite > 0), "skip_step");
  CHECK((m.is_double ? m.decision_norm : double(float(m.decision_norm))) == m.total || m.total != m.total,
        "decision_norm: got %.17g beside a total of %.17g", m.decision_norm, m.total);
  if (is_finite(m.total)) CHECK(m.decision_norm == m.total, "decision_norm: not what is returned");
  const double coef = decide_clip(r.max_norm, m.decision_norm, total.nonfinite, OnNonfinite::kPropagate).coef;
  CHECK(m.coef == (m.is_double ? coef : double(float(coef))) || (coef != coef && m.coef != m.coef), "coef: got %.17g, want %.17g", m.coef, coef);
}

inline cpu::ThreadPool serial() { return {1, nullptr}; }

inline void check_against_cpu(const TensorSet& set, const Request& r, const Measured& m) {
  const ChunkPlan plan(set.refs(), set.count());
  std::vector<Partial> rows(size_t(set.count()) + 1);
  const NormOrder order = norm_order(r.p);
  const Partial total = cpu::measure(plan, {order, r.count_zeros}, serial(), rows.data());
  const auto agree = [&](double got, double want, const char* what) {
    check_norm(got, want, r.p, m.is_double, true, what);  // both are within 1 of the truth
  };
  for (int64_t i = 0; i < set.count(); ++i) {
    const size_t k = size_t(i);
    const double count_scale = order.kind == NormKind::kZero ? 1 : r.inv_scale;
    agree(m.norm[k], finish(order, rows[k]) * count_scale, "norm against the CPU");
    CHECK(m.nonfinite[k] == rows[k].nonfinite, "nonfinite against the CPU");
    if (r.count_zeros) CHECK(m.zeros[k] == rows[k].zeros, "zeros against the CPU");
  }
  agree(m.total, finish(order, total) * (order.kind == NormKind::kZero ? 1 : r.inv_scale), "total against the CPU");
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                             DType::kFloat64, DType::kComplex64, DType::kComplex128};
constexpr double kOrders[] = {2, 1, HUGE_VAL, -HUGE_VAL, 0, 3, 0.5, -1.5};
constexpr Fill kFills[] = {Fill::kNormal, Fill::kTiny, Fill::kHuge, Fill::kSubnormal, Fill::kSpread, Fill::kZeros,
                           Fill::kSparse, Fill::kConstant, Fill::kNan, Fill::kInf, Fill::kNanAndInf};

/// One named test; the executable is made of several files' lists.
struct NamedTest {
  const char* name;
  void (*run)();
};
extern const std::vector<NamedTest> kAgcTests, kMeasureTests, kTableTests, kWriteTests;

}  // namespace gradkern::test
