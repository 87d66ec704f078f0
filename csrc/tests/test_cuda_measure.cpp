// The CUDA kernels' logic, run on the host under tests/cuda_shim: every shape, type, alignment and
// order of the correctness suite, against exact references and against csrc/cpu.
#include <algorithm>
#include <utility>

#include "core/packed.h"
#include "tests/kernel_runs.h"

namespace gradkern::test {
namespace {

std::vector<int64_t> sizes_of(DType d) {
  const int64_t batch = 2048 / itemsize(d), unit = cuda::kUnitBytes / itemsize(d);
  return {0, 1, 2, 31, 33, 127, 1009, batch - 1, batch, batch + 1, unit - batch, unit - 1, unit, unit + 1, 0, 9 * unit + 7, 0};
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

/// One NaN or infinity, wherever it is in a batch.
void test_one_nonfinite() {
  std::mt19937_64 rng(14);
  for (DType d : kDTypes) {
    const DType real = real_of(d);
    const int64_t n = cuda::kUnitBytes / itemsize(d), batch = 2048 / itemsize(real);
    const TensorSet set({{d, n}});
    auto* data = static_cast<unsigned char*>(set[0].data);
    const std::vector<unsigned char> before = set.bytes(0);
    for (int64_t i = 0; i < batch; i += 3) {
      context = "one not finite, dtype " + std::to_string(int(d)) + ", " + std::to_string(i);
      const bool nan = rng() % 2;
      unsigned char values[4 * sizeof(double)];  // the last of them is not finite
      fill_real(values, real, 4, nan ? Fill::kNan : Fill::kInf, d, rng);
      std::memcpy(data + i * itemsize(real), values + 3 * itemsize(real), size_t(itemsize(real)));
      const Measured m = run_measure(set);
      CHECK(m.nonfinite[0] == 1 && m.total_nonfinite == 1, "counted %lld", (long long)m.nonfinite[0]);
      CHECK(nan ? m.max_abs[0] != m.max_abs[0] : std::isinf(m.max_abs[0]), "the largest is %g", m.max_abs[0]);
      CHECK(nan ? m.norm[0] != m.norm[0] : std::isinf(m.norm[0]), "the norm is %g", m.norm[0]);
      std::memcpy(data, before.data(), before.size());
    }
  }
}

/// Sums that a long run of float32 gets wrong: constants (59 ulp), a spike and then small values
/// (123 ulp), magnitudes in turns; whole chunks of them, and at the ends of what float32 pairs hold.
void test_adversarial_sums() {
  const int64_t n = 3 * (16 << 10) + 5;
  for (DType d : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    for (double size : {1.0, 0x1p-90, 0x1p-83, 0x1p+25, 0x1p+27, 0x1p+60})
      for (int pattern = 0; pattern < 4; ++pattern) {
        if (d == DType::kFloat16 && size != 1.0) continue;
        context = "adversarial, dtype " + std::to_string(int(d)) + ", size " + std::to_string(size) + ", pattern " + std::to_string(pattern);
        const TensorSet set({{d, n}});
        auto* data = static_cast<unsigned char*>(set[0].data);
        for (int64_t i = 0; i < n; ++i) {
          const double turns[] = {1.0 / 3, i == 0 ? 4095.0 : 1.0 / 3, i % 2 ? 1 + 0x1p-7 : 0x1p-11, std::ldexp(1.1, -int(i % 14))};
          const auto x = float(turns[pattern] * size);
          if (d == DType::kFloat32) store(data, i, x);
          else if (d == DType::kBFloat16) store(data, i, from_float<BFloat16>(x));
          else store(data, i, from_float<Float16>(x));
        }
        measure_and_check(set, {});
      }
}

/// Units of every kind side by side: zeros, tiny, usual and huge elements, and some that are not finite.
void test_units_of_all_kinds() {
  std::mt19937_64 rng(13);
  for (DType d : kDTypes)
    for (int kinds = 0; kinds < 12; ++kinds) {
      context = "units of all kinds, dtype " + std::to_string(int(d)) + ", " + std::to_string(kinds);
      const DType real = real_of(d);
      const int64_t unit = cuda::kUnitBytes / itemsize(real), n = 7 * unit / (is_complex(d) ? 2 : 1) - 3;
      const TensorSet set({{d, n}});
      auto* data = static_cast<unsigned char*>(set[0].data);
      const Fill fills[] = {Fill::kZeros, Fill::kTiny, Fill::kNormal, Fill::kHuge, Fill::kSparse, Fill::kSubnormal, kinds % 3 ? Fill::kNormal : Fill::kNanAndInf};
      for (int64_t i = 0; i < n * (is_complex(d) ? 2 : 1);) {
        const int64_t end = std::min(i + unit, n * (is_complex(d) ? 2 : 1)), length = end - i;
        fill_real(data + i * itemsize(real), real, length, fills[rng() % 7], d, rng);
        i = end;
      }
      Request r;
      r.p = kinds % 2 ? 2 : 1;
      r.count_zeros = kinds % 4 == 3;
      measure_and_check(set, r);
    }
}

void test_mixed_list() {
  std::vector<Spec> specs;
  int64_t n = 1;
  for (int64_t misalign : {0, 2, 4, 8, 6, 0})
    for (DType d : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kComplex64}) {
      // csrc/cpu asks for the alignment of the type.
      const int64_t offset = misalign - misalign % itemsize(real_of(d));
      specs.push_back({d, n = (n * 7 + 3) % 5000, offset, n % 3 ? Fill::kNormal : Fill::kTiny});
    }
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

/// The order of threads and blocks never changes the results. Nor does the number of multiprocessors, except for the
/// orders whose terms are scaled by the largest so far.
void test_determinism() {
  std::vector<Spec> specs;
  for (DType d : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    specs.push_back({d, 18 * cuda::kUnitBytes / itemsize(d) + 5});
    specs.push_back({d, 100});
  }
  const TensorSet set(specs);
  for (double p : {2.0, 1.0, 3.0}) {
    context = "determinism, p " + std::to_string(p);
    Request r;
    r.p = p;
    const Measured first = run_measure(set, r);
    if (p != 3) check_against_reference(set, r, first);
    for (int processors : {3, 1, 7, 132}) {
      if (p == 3 && processors != 3) continue;
      cuda_shim::multiprocessors = processors;
      cuda_shim::schedule = {processors != 7, processors != 1};
      CHECK(run_measure(set, r).raw == first.raw, "bits depend on the schedule or on %d multiprocessors", processors);
    }
    cuda_shim::multiprocessors = 3;
    cuda_shim::schedule = {};
  }
}

std::vector<Spec> random_specs(std::mt19937_64& rng, bool doubles, int most) {
  std::vector<Spec> specs;
  const int count = 1 + int(rng() % unsigned(most));
  for (int i = 0; i < count; ++i) {
    const DType d = kDTypes[rng() % 6];
    if (is_double(d) && !doubles) continue;
    const int64_t unit = cuda::kUnitBytes / itemsize(d);
    const int64_t sizes[] = {0, 1, int64_t(rng() % 40), int64_t(rng() % unsigned(unit)), unit / 4 * int64_t(rng() % 12), int64_t(rng() % unsigned(12 * unit))};
    const int64_t step = itemsize(real_of(d));
    const Fill fills[] = {Fill::kNormal, Fill::kNormal, Fill::kTiny, Fill::kHuge, Fill::kSpread, Fill::kSparse, Fill::kZeros};
    specs.push_back({d, sizes[rng() % 6], int64_t(rng() % unsigned(16 / step)) * step, fills[rng() % 7]});
  }
  return specs;
}

/// Random shapes, types and alignments against exact sums and the CPU, on random numbers of multiprocessors.
void test_random_lists() {
  std::mt19937_64 rng(11);
  for (int turn = 0; turn < 60; ++turn) {
    const TensorSet set(random_specs(rng, turn % 2, 30), uint64_t(turn) + 5);
    cuda_shim::multiprocessors = 1 + int(rng() % 20);
    cuda_shim::schedule = {rng() % 2 != 0, rng() % 2 != 0};
    Request r;
    r.p = (double[]){2, 2, 1, HUGE_VAL, 0}[rng() % 5];
    r.count_zeros = rng() % 3 == 0;
    context = "random list " + std::to_string(turn) + ", p " + std::to_string(r.p);
    measure_and_check(set, r);
  }
  cuda_shim::multiprocessors = 3;
  cuda_shim::schedule = {};
}

/// A row has the bits that its tensor has alone.
void test_neighbours() {
  std::mt19937_64 rng(12);
  for (double p : {2.0, 1.0})
    for (int turn = 0; turn < 6; ++turn) {
      context = "neighbours, p " + std::to_string(p) + ", " + std::to_string(turn);
      std::vector<Spec> specs = random_specs(rng, true, 12);
      specs.push_back({DType::kFloat64, 9000 + turn, 0, Fill::kNormal});
      const TensorSet set(specs);
      Request r;
      r.p = p;
      cuda_shim::multiprocessors = 9;
      const Measured together = run_measure(set, r);
      cuda_shim::multiprocessors = 3;
      for (int64_t i = 0; i < set.count(); ++i) {
        const Measured alone = run_measure_of({&set[i], 1, nullptr, 0, nullptr}, true, r);
        const size_t k = size_t(i);
        const auto same = [](double a, double b) { return std::memcmp(&a, &b, sizeof(a)) == 0 || (a != a && b != b); };
        CHECK(same(together.norm[k], alone.norm[0]) && same(together.l2[k], alone.l2[0]) && together.max_abs[k] == alone.max_abs[0], "row %zu", k);
      }
    }
}

/// Any number of tensors is one launch, with empty ones at every border of 32.
void test_many_tensors() {
  for (int64_t count : {1, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 4100, 33000}) {
    context = "many tensors, " + std::to_string(count);
    std::vector<Spec> specs;
    for (int64_t i = 0; i < count; ++i) specs.push_back({i % 3 ? DType::kFloat32 : DType::kBFloat16, i % 5 == 4 || i % 32 == 0 ? 0 : i % 11});
    specs.back().numel = 5;
    const TensorSet set(specs);
    cuda_shim::launches = 0;
    const Measured m = run_measure(set);
    CHECK(cuda_shim::launches == 1, "%d launches", cuda_shim::launches);
    check_against_reference(set, {}, m);
    check_against_cpu(set, {}, m);
  }
}

void test_nothing() {
  context = "nothing";
  const TensorSet none({}), empty({{DType::kFloat32, 0}, {DType::kFloat64, 0}});
  for (const TensorSet* list : {&none, &empty})
    for (double p : kOrders) {
      Request r;
      r.p = p;
      const Measured m = run_measure(*list, r);
      CHECK(m.total == 0 && m.total_nonfinite == 0, "total of nothing is %g", m.total);
      for (double norm : m.norm) CHECK(norm == 0, "norm of nothing is %g", norm);
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
    double decision = -1;
    int64_t nonfinite = -1;
    cuda::CombineLaunch launch;
    launch.totals = totals;
    launch.count = 2;
    launch.order = norm_order(p);
    launch.max_norm = 1;
    launch.results.total_norm = &total;
    launch.results.decision_norm = &decision;
    launch.results.clip_coef = &coef;
    launch.results.total_nonfinite = &nonfinite;
    cuda::launch_combine(launch);
    Reference want;
    for (int64_t i = 0; i < a.count(); ++i) want.add(a[i]);
    want.add(b[0]);
    check_norm(total, want.norm(p), p, false, true, "total");
    CHECK(decision == double(total), "decision_norm");
    CHECK(coef == float(decide_clip(1, decision, 0, OnNonfinite::kPropagate).coef) && nonfinite == 0, "coef");
  }
}

/// The rows that ranks exchange are those of the CPU, within their compensation.
void check_packed(const TensorSet& set, double p, const int64_t* first) {
  const NormOrder order = norm_order(p);
  const size_t n = size_t(set.count());
  bool any_complex = false;
  for (size_t i = 0; i < n; ++i) any_complex |= is_complex(set[int64_t(i)].dtype);
  std::vector<double> sums((n + 1) * kPackedSums, -1), want(kPackedSums);
  std::vector<int64_t> keys((n + 1) * kPackedKeys, -7), want_keys(kPackedKeys);
  cuda::MeasureLaunch launch;
  launch.list = list_of(set, first);
  launch.options = {order, true};
  launch.results.packed_sums = sums.data();
  launch.results.packed_keys = keys.data();
  launch.results.packed_rows = true;
  std::vector<unsigned char> workspace(cuda::measure_workspace_bytes(launch.list, launch.options));
  launch.workspace = workspace.data();
  launch.workspace_bytes = workspace.size();
  cuda::launch_measure(launch);

  if (same_everywhere(launch.list, p)) note(reinterpret_cast<unsigned char*>(sums.data()), DType::kFloat64, int64_t(sums.size()));

  std::vector<Partial> rows(n + 1);
  rows[n] = cpu::measure(ChunkPlan(set.refs(), set.count()), {order, true}, serial(), rows.data());
  for (size_t i = 0; i <= n; ++i) {
    const size_t source = i < n && first ? size_t(first[i]) : i;
    pack(order, rows[source], want.data(), want_keys.data());
    const double* got = &sums[i * kPackedSums];
    for (int column : {kNonfinite, kZeros, kNumel}) CHECK(got[column] == want[size_t(column)], "row %zu, column %d: %g, expected %g", i, column, got[column], want[size_t(column)]);
    for (int bin = 0; bin < 3; ++bin) {
      const double value = got[kSqHi + bin] + got[kSqLo + bin], expected = want[size_t(kSqHi + bin)] + want[size_t(kSqLo + bin)];
      CHECK(value == expected || std::fabs(value - expected) <= 0x1p-40 * expected || (value != value && expected != expected), "row %zu, bin %d: %g, expected %g", i, bin, value, expected);
    }
    const int64_t largest = keys[i * kPackedKeys + kMaxBits], nan = int64_t(kInfBits) + 1;  // of any NaN, in the same order
    CHECK(std::min(largest, nan) == std::min(want_keys[kMaxBits], nan), "row %zu, largest", i);
    // |z| is that of a library's hypot(): keys are of neighbouring numbers.
    const int64_t apart = keys[i * kPackedKeys + kRefKey] - want_keys[kRefKey];
    CHECK(apart == 0 || (any_complex && std::llabs(apart) <= 2), "row %zu, reference", i);
    if (order.kind != NormKind::kTwo && order.kind != NormKind::kInf) {
      const double value = got[kPowerHi] + got[kPowerLo], expected = want[kPowerHi] + want[kPowerLo];
      CHECK(std::fabs(value - expected) <= 0x1p-40 * expected, "row %zu, power sum: %g, expected %g", i, value, expected);
    }
  }
}

void test_packed() {
  const TensorSet set({{DType::kFloat32, 50000}, {DType::kFloat32, 0}, {DType::kBFloat16, 77, 2}, {DType::kFloat64, 333, 0, Fill::kTiny}, {DType::kFloat32, 0}, {DType::kFloat64, 333, 0, Fill::kHuge}, {DType::kComplex64, 1000}});
  const int64_t first[] = {0, 0, 2, 3, 4, 5, 6};
  for (double p : kOrders)
    for (const int64_t* repeats : {static_cast<const int64_t*>(nullptr), static_cast<const int64_t*>(first)}) {
      context = "packed, p " + std::to_string(p);
      check_packed(set, p, repeats);
    }
  context = "packed, not finite";
  check_packed(TensorSet({{DType::kFloat32, 5000, 0, Fill::kInf}, {DType::kBFloat16, 5000, 0, Fill::kNan}}), 2, nullptr);
}

}  // namespace

const std::vector<NamedTest> kMeasureTests = {
    {"sizes_types_orders", test_sizes_types_orders}, {"values", test_values},
    {"one_nonfinite", test_one_nonfinite},           {"adversarial_sums", test_adversarial_sums},
    {"units_of_all_kinds", test_units_of_all_kinds},
    {"mixed_list", test_mixed_list},                 {"alignment", test_alignment},
    {"determinism", test_determinism},               {"many_tensors", test_many_tensors},
    {"nothing", test_nothing},                       {"repeats", test_repeats},
    {"combine", test_combine}, {"packed", test_packed},
    {"random_lists", test_random_lists}, {"neighbours", test_neighbours}};

}  // namespace gradkern::test
