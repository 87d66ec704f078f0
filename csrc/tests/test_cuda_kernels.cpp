// The CUDA kernels' logic, run on the host under tests/cuda_shim: every shape, type, alignment and
// order of the correctness suite, against exact references and against csrc/cpu.
#include <cuda_runtime.h>

#include "core/clip.h"
#include "cpu/driver.h"
#include "cuda/launch.h"
#include "cuda/table.h"
#include "tests/kernel_case.h"

namespace gradkern::test {
namespace {

struct Measured {
  bool is_double = false;
  std::vector<double> norm, l2, max_abs;
  std::vector<int64_t> nonfinite, zeros;
  double total = -1, coef = -1;
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

std::vector<double> reals(const std::vector<unsigned char>& raw, int64_t n, bool is_double) {
  return is_double ? widened<double>(raw, n) : widened<float>(raw, n);
}

cuda::TensorList list_of(const TensorSet& set, const int64_t* first = nullptr) {
  return {set.refs(), set.count(), first, 0, nullptr};
}

struct Request {
  double p = 2, max_norm = 1, inv_scale = 1;
  bool count_zeros = false;
  const int64_t* first = nullptr;
};

Measured run_measure(const TensorSet& set, const Request& request = {}) {
  const size_t n = size_t(set.count());
  Measured m;
  m.is_double = set.any_double();
  const size_t real = m.is_double ? 8 : 4;
  std::vector<unsigned char> norm(n * real), l2(n * real), max_abs(n * real), total(real), coef(real);
  m.nonfinite.assign(n, -1);
  m.zeros.assign(n, -1);

  cuda::MeasureLaunch launch;
  launch.list = list_of(set, request.first);
  launch.options = {norm_order(request.p), request.count_zeros};
  launch.max_norm = request.max_norm;
  launch.inv_scale = request.inv_scale;
  launch.results = {m.is_double, norm.data(), l2.data(), max_abs.data(), m.nonfinite.data(),
                    request.count_zeros ? m.zeros.data() : nullptr, total.data(), coef.data(),
                    &m.total_nonfinite, &m.skip_step, &m.partial};
  const int64_t bytes = int64_t(cuda::measure_workspace_bytes(launch.list, launch.options));
  GuardedBuffer workspace(bytes, 0);
  launch.workspace = workspace.data();
  launch.workspace_bytes = size_t(bytes);
  cuda::launch_measure(launch);
  CHECK(workspace.guards_intact(), "wrote outside the workspace");

  m.norm = reals(norm, set.count(), m.is_double);
  m.l2 = reals(l2, set.count(), m.is_double);
  m.max_abs = reals(max_abs, set.count(), m.is_double);
  m.total = reals(total, 1, m.is_double)[0];
  m.coef = reals(coef, 1, m.is_double)[0];
  for (const auto* part : {&norm, &l2, &max_abs, &total, &coef}) m.raw.insert(m.raw.end(), part->begin(), part->end());
  return m;
}

/// The contract's tolerance; general p is judged by what pow can give (docs: 1e-6 relative).
double tolerance(double p, bool is_double, bool total) {
  const bool power = p != 2 && p != 1 && p != 0 && std::isfinite(p);
  if (is_double) return power ? 4000 : 45;  // 1e-14 relative is 45 units at worst
  return power || total ? 2 : 1;
}

void check_norm(double got, long double want, double p, bool is_double, bool total, const char* what) {
  const double error = error_ulp(got, want, is_double);
  CHECK(error <= tolerance(p, is_double, total), "%s: got %.17g, want %.17Lg, %.3g ulp", what, got, want, error);
}

void check_against_reference(const TensorSet& set, const Request& r, const Measured& m) {
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
  const double coef = decide_clip(r.max_norm, m.total, total.nonfinite, OnNonfinite::kPropagate).coef;
  CHECK(m.coef == (m.is_double ? coef : double(float(coef))) || (coef != coef && m.coef != m.coef), "coef: got %.17g, want %.17g", m.coef, coef);
}

cpu::ThreadPool serial() { return {1, nullptr}; }

void check_against_cpu(const TensorSet& set, const Request& r, const Measured& m) {
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

std::vector<int64_t> sizes_of(DType d) {
  const int64_t chunk = (16 << 10) / itemsize(d);
  return {0, 1, 2, 3, 31, 32, 33, 127, 1009, chunk - 1, chunk, chunk + 1, 0, 3 * chunk + 7, 0};
}

void measure_and_check(const TensorSet& set, const Request& r) {
  const Measured m = run_measure(set, r);
  check_against_reference(set, r, m);
  check_against_cpu(set, r, m);
}

void test_sizes_types_orders() {
  for (DType d : kDTypes) {
    std::vector<Spec> specs;
    for (int64_t n : sizes_of(d)) specs.push_back({d, n});
    const TensorSet set(specs);
    for (double p : kOrders)
      for (bool zeros : {false, true}) {
        context = "sizes, dtype " + std::to_string(int(d)) + ", p " + std::to_string(p);
        Request r;
        r.p = p;
        r.count_zeros = zeros;
        measure_and_check(set, r);
      }
  }
}

/// One tensor a list: what a spread or a NaN does to the total must be visible.
void test_values() {
  for (DType d : kDTypes)
    for (Fill fill : kFills)
      for (double p : {2.0, 1.0, HUGE_VAL, -HUGE_VAL, 0.0, 3.0}) {
        context = "values, dtype " + std::to_string(int(d)) + ", fill " + std::to_string(int(fill)) + ", p " + std::to_string(p);
        const TensorSet set({{d, 2500, 0, fill}});
        Request r;
        r.p = p;
        r.count_zeros = p == 2;
        r.max_norm = 0.1;
        if (p == 3 && (fill == Fill::kSubnormal || fill == Fill::kSpread)) continue;  // pow's own range
        // A subnormal |z| is rounded to a whole unit: its sum is as coarse on every device.
        if (p == 1 && d == DType::kComplex128 && fill == Fill::kSubnormal) continue;
        measure_and_check(set, r);
      }
}

void test_mixed_list() {
  std::vector<Spec> specs;
  int64_t n = 1;
  for (int64_t misalign : {0, 2, 4, 8, 6, 0})
    for (DType d : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kComplex64})
      specs.push_back({d, n = (n * 7 + 3) % 5000, misalign, n % 3 ? Fill::kNormal : Fill::kTiny});
  context = "mixed list, float32 results";
  for (double p : kOrders) {
    Request r;
    r.p = p;
    measure_and_check(TensorSet(specs), r);
  }
  specs.push_back({DType::kFloat64, 777, 8, Fill::kHuge});
  specs.push_back({DType::kComplex128, 333, 8, Fill::kTiny});
  context = "mixed list, float64 results";
  measure_and_check(TensorSet(specs), {});
  Request scaled;
  scaled.inv_scale = 1.0 / 1024;
  measure_and_check(TensorSet(specs), scaled);
}

/// The same values at every alignment give the same bits.
void test_alignment() {
  for (DType d : kDTypes)
    for (int64_t n : {1, 9, 1023, 10007}) {
      context = "alignment, dtype " + std::to_string(int(d));
      Request r;
      r.p = 1;
      r.count_zeros = true;
      const Measured aligned = run_measure(TensorSet({{d, n}}), r);
      const int64_t step = itemsize(real_of(d));
      for (int64_t misalign = step; misalign < 16; misalign += step)
        CHECK(run_measure(TensorSet({{d, n, misalign}}), r).raw == aligned.raw, "offset %lld changes bits", (long long)misalign);
    }
}

/// Orders of threads and blocks and the number of multiprocessors must not show in the results.
void test_determinism() {
  std::vector<Spec> specs;
  for (DType d : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    specs.push_back({d, (66 * (16 << 10)) / itemsize(d) + 5});  // more chunks than a warp combines
    specs.push_back({d, 100});
  }
  const TensorSet set(specs);
  context = "determinism";
  for (double p : {2.0, 1.0, 3.0}) {
    Request r;
    r.p = p;
    const Measured first = run_measure(set, r);
    if (p != 3) check_against_reference(set, r, first);
    for (int processors : {1, 7, 132}) {
      cuda_shim::multiprocessors = processors;
      cuda_shim::schedule = {processors != 7, processors != 1};
      CHECK(run_measure(set, r).raw == first.raw, "bits depend on the schedule");
    }
    cuda_shim::multiprocessors = 3;
    cuda_shim::schedule = {};
  }
}

/// More tensors than a table of any size holds, with empty ones at every border.
void test_many_tensors() {
  for (int64_t count : {58, 59, 60, 251, 252, 253, 1018, 1019, 1020, 2041, 2042, 2043, 2044, 2050, 4100}) {
    context = "many tensors, " + std::to_string(count);
    std::vector<Spec> specs;
    for (int64_t i = 0; i < count; ++i) specs.push_back({i % 3 ? DType::kFloat32 : DType::kBFloat16, i % 5 == 4 ? 0 : i % 11});
    specs.back().numel = 5;
    const TensorSet set(specs);
    cuda_shim::launches = 0;
    const Measured m = run_measure(set);
    const int tables = int((count + 2041) / 2042);
    CHECK(cuda_shim::launches <= tables + 1, "%d launches", cuda_shim::launches);
    check_against_reference(set, {}, m);
    check_against_cpu(set, {}, m);
  }
}

void test_nothing() {
  context = "nothing";
  for (const TensorSet& set : {std::cref(*new TensorSet({})), std::cref(*new TensorSet({{DType::kFloat32, 0}, {DType::kFloat64, 0}}))})
    for (double p : kOrders) {
      Request r;
      r.p = p;
      const Measured m = run_measure(set, r);
      CHECK(m.total == 0 && m.total_nonfinite == 0, "total of nothing is %g", m.total);
      for (double norm : m.norm) CHECK(norm == 0, "norm of nothing is %g", norm);
    }
}

struct Scaling {
  double total, max_norm;
  bool is_double;
  OnNonfinite policy = OnNonfinite::kPropagate;
  int64_t nonfinite = 0;
};

void run_scale(const TensorSet& set, const Scaling& s) {
  const float narrow = float(s.total);
  cuda::ScaleLaunch launch;
  launch.list = list_of(set);
  launch.total_norm = s.is_double ? static_cast<const void*>(&s.total) : &narrow;
  launch.total_norm_is_double = s.is_double;
  launch.max_norm = s.max_norm;
  launch.on_nonfinite = s.policy;
  launch.total_nonfinite = &s.nonfinite;
  cuda::launch_scale(launch);
}

bool same_elements(const TensorSet& a, const TensorSet& b, int64_t i) {
  const auto x = a.bytes(i), y = b.bytes(i);
  const DType real = real_of(a[i].dtype);
  for (int64_t k = 0; k < a[i].numel * (is_complex(a[i].dtype) ? 2 : 1); ++k) {
    const double u = real_at(x.data(), real, k), v = real_at(y.data(), real, k);
    if (u != u && v != v) continue;  // payloads of NaN differ between processors
    if (std::memcmp(&u, &v, sizeof(u))) return false;
  }
  return true;
}

std::vector<Spec> specs_to_write(bool complex) {
  std::vector<Spec> specs;
  for (DType d : kDTypes)
    if (complex || !is_complex(d))
      for (int64_t n : {0, 1, 33, 1009, 4096, 20011})
        for (int64_t misalign : {0, 2, 4, 8})
          if (misalign % itemsize(real_of(d)) == 0)
            for (Fill fill : {Fill::kNormal, Fill::kSubnormal, Fill::kNanAndInf}) specs.push_back({d, n, misalign, fill});
  return specs;
}

void test_scale() {
  const auto specs = specs_to_write(true);
  for (const Scaling& s : {Scaling{3.7, 1, false}, Scaling{3.7, 1, true}, Scaling{HUGE_VAL, 1, false}, Scaling{std::nan(""), 1, false},
                           Scaling{2, 0, false}, Scaling{2, -1, true}}) {
    context = "scale, total " + std::to_string(s.total);
    TensorSet set(specs), want(specs);
    run_scale(set, s);
    const double total = s.is_double ? s.total : double(float(s.total));
    const ChunkPlan plan(want.refs(), want.count());
    cpu::apply(plan, decide_clip(s.max_norm, total, s.nonfinite, s.policy), serial());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

void test_no_write() {
  const auto specs = specs_to_write(true);
  for (const Scaling& s : {Scaling{0.5, 1, false}, Scaling{0, 0.001, true}, Scaling{5, HUGE_VAL, false},
                           Scaling{std::nan(""), HUGE_VAL, false}, Scaling{HUGE_VAL, HUGE_VAL, false},
                           Scaling{9, 1, false, OnNonfinite::kSkip, 3}}) {
    context = "no write, total " + std::to_string(s.total);
    TensorSet set(specs), want(specs);
    run_scale(set, s);
    for (int64_t i = 0; i < set.count(); ++i) CHECK(set.bytes(i) == want.bytes(i), "tensor %lld was written", (long long)i);
  }
  context = "zero";
  TensorSet set(specs);
  run_scale(set, {9, 1, false, OnNonfinite::kZero, 3});
  for (int64_t i = 0; i < set.count(); ++i)
    for (unsigned char byte : set.bytes(i)) CHECK(byte == 0, "tensor %lld is not zero", (long long)i);
  CHECK(set.guards_intact(), "wrote outside a tensor");
}

void test_clamp() {
  const auto specs = specs_to_write(false);
  for (double limit : {0.5, 0.0, 1e-7, 1e9, -1.0, HUGE_VAL}) {
    context = "clamp, limit " + std::to_string(limit);
    TensorSet set(specs), want(specs);
    cuda::launch_clamp({list_of(set), limit});
    std::unique_ptr<bool[]> changed(new bool[specs.size()]);
    cpu::clamp(ChunkPlan(want.refs(), want.count()), limit, serial(), changed.get());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

/// A tensor listed again repeats its row and counts once.
void test_repeats() {
  context = "repeats";
  const TensorSet set({{DType::kFloat32, 5000}, {DType::kFloat32, 0}, {DType::kBFloat16, 77}, {DType::kFloat32, 0}, {DType::kFloat32, 0}});
  const int64_t first[] = {0, 0, 2, 2, 4};
  Request r;
  r.first = first;
  const Measured m = run_measure(set, r), once = run_measure(set);
  CHECK(m.total == once.total, "total");
  for (size_t i = 0; i < 5; ++i) {
    const size_t k = size_t(first[i]);
    CHECK(m.norm[i] == once.norm[k] && m.l2[i] == once.l2[k] && m.max_abs[i] == once.max_abs[k] && m.nonfinite[i] == 0, "row %zu", i);
  }
}

/// Several devices: each its own launches, then one combination.
void test_combine() {
  const std::vector<Spec> first = {{DType::kFloat32, 5000}, {DType::kBFloat16, 100}}, second = {{DType::kFloat16, 3000, 0, Fill::kTiny}};
  for (double p : {2.0, 1.0, HUGE_VAL, 3.0}) {
    context = "combine, p " + std::to_string(p);
    Request r;
    r.p = p;
    const TensorSet a(first), b(second);
    const Partial totals[] = {run_measure(a, r).partial, run_measure(b, r).partial};
    float total = -1, coef = -1;
    int64_t nonfinite = -1;
    cuda::CombineLaunch launch;
    launch.totals = totals;
    launch.count = 2;
    launch.order = norm_order(p);
    launch.max_norm = 1;
    launch.results.total_norm = &total;
    launch.results.clip_coef = &coef;
    launch.results.total_nonfinite = &nonfinite;
    cuda::launch_combine(launch);
    Reference want;
    for (int64_t i = 0; i < a.count(); ++i) want.add(a[i]);
    want.add(b[0]);
    check_norm(total, want.norm(p), p, false, true, "total");
    CHECK(coef == float(decide_clip(1, total, 0, OnNonfinite::kPropagate).coef) && nonfinite == 0, "coef");
  }
}

/// Tables alone, over tensors that no test machine could hold.
void test_giant_tables() {
  context = "giant tables";
  const int64_t huge = 5'000'000'011;
  const TensorRef tensors[] = {{reinterpret_cast<void*>(0x100000000000), huge, DType::kBFloat16}, {nullptr, 0, DType::kFloat32},
                               {reinterpret_cast<void*>(0x200000000000), huge, DType::kComplex128}, {reinterpret_cast<void*>(0x300000000008), 3, DType::kFloat64}};
  const cuda::ChunkBytes chunk_bytes = cuda::chunk_bytes_of(tensors, 4);
  CHECK(chunk_bytes.narrow == 1u << 20 && chunk_bytes.wide == 1u << 18, "chunk bytes");
  struct Header { uint64_t unused; };
  std::unique_ptr<cuda::TableParams<Header, 1024>> p(new cuda::TableParams<Header, 1024>);
  CHECK(cuda::fill_table(*p, tensors, 4, chunk_bytes) == 4, "all fit");
  uint64_t next[4] = {}, covered[4] = {};
  for (uint32_t chunk = 0; chunk < p->chunks(); ++chunk) {
    const cuda::ChunkView view = cuda::chunk_view(*p, chunk);
    const int t = view.dtype == DType::kBFloat16 ? 0 : view.dtype == DType::kComplex128 ? 2 : 3;
    CHECK(view.data == reinterpret_cast<uint64_t>(tensors[t].data) + next[t], "chunk %u starts where the last one ended", chunk);
    next[t] += view.bytes;
    covered[t] += view.bytes;
  }
  for (int t : {0, 2, 3}) CHECK(covered[t] == uint64_t(tensors[t].numel * itemsize(tensors[t].dtype)), "tensor %d is covered", t);
}

/// A list large enough for the second chunk size.
void test_larger_chunks() {
  context = "larger chunks";
  std::vector<Spec> specs = {{DType::kBFloat16, 34 << 20, 0, Fill::kConstant}, {DType::kFloat32, 100003}, {DType::kFloat64, 20011}};
  const TensorSet set(specs);
  const Measured m = run_measure(set);
  check_against_cpu(set, {}, m);
}

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "no error";
}

void test_errors() {
  context = "errors";
  const TensorSet set({{DType::kFloat32, 10}});
  cuda_shim::next_error = cudaErrorInvalidValue;
  const std::string failed = message_of([&] { run_scale(set, {2, 1, false}); });
  CHECK(failed == "[scale] cudaGetDevice failed: a shim error (cudaErrorShim)", "%s", failed.c_str());
  const std::string small = message_of([&] { cuda::launch_measure({list_of(set), {}, 1, OnNonfinite::kPropagate, 1, {}, nullptr, 0}); });
  CHECK(small.find("[measure] the workspace is smaller") == 0, "%s", small.c_str());
  const TensorSet complex({{DType::kComplex64, 10}});
  const std::string refused = message_of([&] { cuda::launch_clamp({list_of(complex), 1}); });
  CHECK(refused == "[clamp] expected real tensors, got a complex one", "%s", refused.c_str());
  const TensorRef odd{reinterpret_cast<char*>(set[0].data) + 1, 1, DType::kFloat32};
  const std::string unaligned = message_of([&] { cuda::launch_clamp({{&odd, 1, nullptr, 0, nullptr}, 1}); });
  CHECK(unaligned.find("[clamp] a tensor's data pointer is odd") == 0, "%s", unaligned.c_str());
}

}  // namespace
}  // namespace gradkern::test

int main(int argc, char** argv) {
  using namespace gradkern::test;
  const struct { const char* name; void (*run)(); } tests[] = {
      {"sizes_types_orders", test_sizes_types_orders}, {"values", test_values}, {"mixed_list", test_mixed_list},
      {"alignment", test_alignment}, {"determinism", test_determinism}, {"many_tensors", test_many_tensors},
      {"nothing", test_nothing}, {"scale", test_scale}, {"no_write", test_no_write}, {"clamp", test_clamp},
      {"repeats", test_repeats}, {"combine", test_combine}, {"giant_tables", test_giant_tables}, {"larger_chunks", test_larger_chunks}, {"errors", test_errors}};
  for (const auto& test : tests) {
    if (argc > 1 && std::string(argv[1]) != test.name) continue;
    const clock_t begin = clock();
    test.run();
    std::printf("%-20s %6.1f s\n", test.name, double(clock() - begin) / CLOCKS_PER_SEC);
    std::fflush(stdout);
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
