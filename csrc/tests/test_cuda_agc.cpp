// Adaptive gradient clipping under the model of a GPU, against sums in long double and against csrc/cpu.
#include <algorithm>
#include <random>

#include "core/policies.h"
#include "cpu/units.h"
#include "tests/kernel_runs.h"

namespace gradkern::test {
namespace {

constexpr double kEps = 1e-3;

/// A gradient of `rows` units of `length` elements and its weights.
struct Pair {
  int64_t rows, length;
  DType grad_dtype = DType::kFloat32, weights_dtype = DType::kFloat32;
  int64_t grad_misalign = 0, weights_misalign = 0;
  Fill grad_fill = Fill::kNormal, weights_fill = Fill::kNormal;
};

struct Case {
  explicit Case(const std::vector<Pair>& pairs, uint64_t seed = 1)
      : grads(specs(pairs, true), seed), weights(specs(pairs, false), seed + 1) {
    for (size_t i = 0; i < pairs.size(); ++i)
      units.push_back({grads[int64_t(i)].data, weights[int64_t(i)].data, pairs[i].rows, pairs[i].length,
                       pairs[i].grad_dtype, pairs[i].weights_dtype});
  }

  static std::vector<Spec> specs(const std::vector<Pair>& pairs, bool grad) {
    std::vector<Spec> out;
    for (const Pair& p : pairs)
      out.push_back(grad ? Spec{p.grad_dtype, p.rows * p.length, p.grad_misalign, p.grad_fill}
                         : Spec{p.weights_dtype, p.rows * p.length, p.weights_misalign, p.weights_fill});
    return out;
  }

  TensorSet grads, weights;
  std::vector<UnitsRef> units;
};

/// The norms of gradients before, then after.
std::vector<double> run(const Case& c, double clip_factor) {
  std::vector<double> norms(2 * c.units.size(), -1);
  cuda::AgcLaunch launch;
  launch.list = c.units.data();
  launch.count = int64_t(c.units.size());
  launch.clip_factor = clip_factor;
  launch.eps = kEps;
  launch.norms = norms.data();
  const int64_t bytes = int64_t(cuda::agc_workspace_bytes(launch));
  GuardedBuffer workspace(bytes, 0);
  launch.workspace = workspace.data();
  launch.workspace_bytes = size_t(bytes);
  cuda::launch_agc(launch);
  CHECK(workspace.guards_intact(), "wrote outside the workspace");
  return norms;
}

long double unit_norm(const TensorRef& t, int64_t row, int64_t length) {
  Reference r;
  r.add({static_cast<char*>(t.data) + row * length * itemsize(t.dtype), length, t.dtype});
  return r.norm(2);
}

bool both_nan_or_close(double got, long double want, long double relative, long double absolute) {
  if (want != want || got != got) return want != want && got != got;
  if ((long double)got == want) return true;
  return std::fabs((long double)got - want) <= relative * std::fabs(want) + absolute;
}

/// What one rounding to the type may lose of a number, relative and near zero.
struct Rounding {
  long double relative, absolute;
};
Rounding rounding_of(DType d) {
  switch (real_of(d)) {
    case DType::kBFloat16: return {0x1p-8L, 0x1p-134L};
    case DType::kFloat16: return {0x1p-11L, 0x1p-25L};
    case DType::kFloat32: return {0x1p-24L, 0x1p-150L};
    default: return {0x1p-50L, 0x1p-1074L};
  }
}

/// Every element of the gradients and the reported norms, from the formula of the paper in long double.
void check_formula(const Case& before, const Case& after, const std::vector<double>& norms, double clip_factor) {
  const size_t count = before.units.size();
  for (size_t i = 0; i < count; ++i) {
    const UnitsRef& u = before.units[i];
    const DType real = real_of(u.grad_dtype);
    const int64_t reals = u.length * (is_complex(u.grad_dtype) ? 2 : 1);
    const auto old = before.grads.bytes(int64_t(i)), got = after.grads.bytes(int64_t(i));
    long double sq_before = 0, sq_after = 0;
    for (int64_t row = 0; row < u.rows; ++row) {
      const long double grad = unit_norm(before.grads[int64_t(i)], row, u.length);
      const long double weight = unit_norm(before.weights[int64_t(i)], row, u.length);
      const long double limit = clip_factor * (weight < kEps ? kEps : weight);
      const long double factor = grad < limit ? 1 : limit / (grad < 1e-6L ? 1e-6L : grad);
      sq_before += grad * grad;
      sq_after += grad * factor * grad * factor;
      // Half a unit and what the norms' own error may change.
      const Rounding r = rounding_of(u.grad_dtype);
      for (int64_t k = row * reals; k < (row + 1) * reals; ++k) {
        const long double want = factor == 1 ? real_at(old.data(), real, k) : real_at(old.data(), real, k) * factor;
        const double x = real_at(got.data(), real, k);
        CHECK(both_nan_or_close(x, want, 1.01L * r.relative, r.absolute), "tensor %zu, element %lld: %.9g, expected %.9Lg",
              i, (long long)k, x, want);
      }
    }
    constexpr long double kRowNorms = 0x1p-1070L;  // of the smallest numbers, each row's norm is rounded to 2^-1074
    CHECK(both_nan_or_close(norms[i], std::sqrt(sq_before), 1e-14L, kRowNorms), "norm before %zu: %.17g", i, norms[i]);
    CHECK(both_nan_or_close(norms[count + i], std::sqrt(sq_after), 1e-14L, kRowNorms), "norm after %zu: %.17g", i,
          norms[count + i]);
  }
}

void check(const std::vector<Pair>& pairs, double clip_factor, uint64_t seed = 1) {
  const Case before(pairs, seed);
  Case c(pairs, seed);
  check_formula(before, c, run(c, clip_factor), clip_factor);
  CHECK(c.grads.guards_intact() && c.weights.guards_intact(), "wrote outside a tensor");
  for (int64_t i = 0; i < c.weights.count(); ++i)
    CHECK(c.weights.bytes(i) == before.weights.bytes(i), "the weights of tensor %lld were written", (long long)i);
}

/// Every type beside every other, rows of every kind of length, at every alignment of the type.
void test_types_and_lengths() {
  for (DType grad : kDTypes)
    for (DType weights : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
      context = "agc, types " + std::to_string(int(grad)) + " and " + std::to_string(int(weights));
      std::vector<Pair> pairs;
      for (int64_t length : {1, 3, 9, 64, 577, 4096, 5000})
        for (int64_t misalign : {int64_t(0), itemsize(real_of(grad))})
          pairs.push_back({length > 1000 ? 3 : 11, length, grad, weights, misalign, misalign ? itemsize(weights) : 0});
      check(pairs, 0.3);
    }
}

void test_values() {
  for (Fill grad : {Fill::kTiny, Fill::kSubnormal, Fill::kZeros, Fill::kSparse, Fill::kConstant, Fill::kNan, Fill::kInf})
    for (Fill weights : {Fill::kNormal, Fill::kZeros, Fill::kTiny}) {
      context = "agc, fills " + std::to_string(int(grad)) + " and " + std::to_string(int(weights));
      std::vector<Pair> pairs;
      for (DType d : {DType::kFloat32, DType::kFloat64})
        for (int64_t length : {2, 40, 3000}) pairs.push_back({4, length, d, d, 0, 0, grad, weights});
      check(pairs, 0.01);
    }
}

void test_random_lists() {
  std::mt19937 random(7);
  const auto below = [&](uint32_t n) { return int64_t(random() % n); };
  for (int list = 0; list < 6; ++list) {
    context = "agc, random list " + std::to_string(list);
    std::vector<Pair> pairs;
    for (int i = 0; i < 30; ++i) {
      const DType grad = kDTypes[below(6)], weights = kDTypes[below(4)];
      pairs.push_back({below(30), below(4) ? below(90) : below(9000), grad, weights, below(3) * itemsize(real_of(grad)),
                       below(3) * itemsize(real_of(weights))});
    }
    check(pairs, list % 2 ? 0.02 : 1.0, uint64_t(list));
  }
}

/// More tensors than one launch has entries for, more rows than its blocks have threads, rows of many blocks.
void test_many() {
  context = "agc, many tensors";
  std::vector<Pair> pairs(400, Pair{3, 17});
  pairs[100] = {9000, 2};
  pairs[200] = {2, 70000};
  pairs[300] = {1, 0};
  check(pairs, 0.1);
  context = "agc, nothing";
  check({}, 0.1);
  check({{0, 5}, {4, 0}}, 0.1);
}

/// The bits do not depend on the schedule, on the number of multiprocessors or on a capture; and they are the CPU's.
void test_same_bits() {
  std::vector<Pair> pairs;
  for (DType d : kDTypes)
    for (int64_t length : {5, 300, 9000}) pairs.push_back({6, length, d, d});
  Case expected(pairs);
  std::vector<double> want(2 * pairs.size());
  std::vector<uint8_t> changed(pairs.size());
  cpu::clip_units(expected.units.data(), int64_t(pairs.size()), {0.3, kEps}, serial(), {want.data(), changed.data()});
  const int multiprocessors = cuda_shim::multiprocessors;
  for (int variant = 0; variant < 4; ++variant) {
    context = "agc, variant " + std::to_string(variant);
    cuda_shim::schedule = {variant == 1, variant == 1};
    cuda_shim::multiprocessors = variant == 2 ? 11 : multiprocessors;
    cuda_shim::capturing = variant == 3;
    Case c(pairs);
    const std::vector<double> norms = run(c, 0.3);
    for (size_t i = 0; i < norms.size(); ++i)
      CHECK(std::fabs(norms[i] - want[i]) <= 1e-14 * want[i], "norm %zu: %.17g, the CPU's %.17g", i, norms[i], want[i]);
    for (int64_t i = 0; i < c.grads.count(); ++i) {
      const auto got = c.grads.bytes(i), cpus = expected.grads.bytes(i);
      const DType real = real_of(c.grads[i].dtype);
      for (int64_t k = 0; k < c.grads[i].numel * (is_complex(c.grads[i].dtype) ? 2 : 1); ++k) {
        const double x = real_at(got.data(), real, k), y = real_at(cpus.data(), real, k);
        CHECK(both_nan_or_close(x, y, 2 * rounding_of(real).relative, 0), "tensor %lld differs from the CPU's", (long long)i);
      }
    }
  }
  cuda_shim::schedule = {};
  cuda_shim::multiprocessors = multiprocessors;
  cuda_shim::capturing = false;
}

/// Where nothing is above its limit, no gradient is written, and the norms are the same bits.
void test_nothing_to_clip() {
  context = "agc, nothing to clip";
  std::vector<Pair> pairs;
  for (DType d : kDTypes) pairs.push_back({7, 333, d, d});
  const Case before(pairs);
  Case c(pairs);
  const std::vector<double> norms = run(c, 1e6);
  for (int64_t i = 0; i < c.grads.count(); ++i) CHECK(c.grads.bytes(i) == before.grads.bytes(i), "written");
  for (size_t i = 0; i < pairs.size(); ++i) CHECK(norms[i] == norms[pairs.size() + i], "norm %zu", i);
}

/// One launch writes the table, one measures, one finds the factors, one measures whole gradients, one scales.
void test_launches() {
  context = "agc, launches";
  Case c(std::vector<Pair>(50, Pair{64, 64}));
  run(c, 0.1);  // the table of the second measurement is on the device from here on
  const int before = cuda_shim::launches;
  run(c, 0.1);
  CHECK(cuda_shim::launches - before == 5, "%d launches", cuda_shim::launches - before);
}

void test_errors() {
  context = "agc, errors";
  Case c({{3, 5}});
  const auto message = [&](const UnitsRef& units) {
    cuda::AgcLaunch launch;
    launch.list = &units;
    launch.count = 1;
    try {
      cuda::launch_agc(launch);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  UnitsRef units = c.units[0];
  CHECK(message(units) == "[agc] the workspace is smaller than agc_workspace_bytes() asks for", "%s", message(units).c_str());
  units.weights = static_cast<const char*>(units.weights) + 1;
  CHECK(message(units).find("[agc] a tensor's data pointer is odd") == 0, "%s", message(units).c_str());
  units = c.units[0];
  units.rows = int64_t(1) << 31;
  CHECK(message(units).find("[agc] the list has more than 16 TiB") == 0, "%s", message(units).c_str());
}

}  // namespace

const std::vector<NamedTest> kAgcTests = {
    {"agc_types", test_types_and_lengths}, {"agc_values", test_values},         {"agc_random_lists", test_random_lists},
    {"agc_many", test_many},               {"agc_same_bits", test_same_bits},   {"agc_nothing_to_clip", test_nothing_to_clip},
    {"agc_launches", test_launches},       {"agc_errors", test_errors}};

}  // namespace gradkern::test
