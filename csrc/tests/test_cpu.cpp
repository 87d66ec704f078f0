// csrc/cpu: every instruction set against long double, over sizes, alignments, types and values;
// guard zones; the same bits for any thread count and alignment.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/driver.h"
#include "cpu/units.h"

using namespace gradkern;
using namespace gradkern::cpu;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const std::vector<int64_t> kSizes = {1, 2, 31, 32, 33, 63, 64, 65, 1009, kChunkElements - 1, kChunkElements};
const std::vector<DType> kTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                   DType::kFloat64, DType::kComplex64, DType::kComplex128};

std::vector<const ChunkKernels*> supported_kernels() {
  std::vector<const ChunkKernels*> all = {&kBaselineKernels};
#if defined(GRADKERN_AVX512_MODEL)  // without which only a processor that has it runs this code
  if (std::string(chunk_kernels().name) != "baseline") all = {&kAvx512Kernels};
#elif defined(__x86_64__)
  const std::string best = chunk_kernels().name;
  if (best != "baseline") all.push_back(&kAvx2Kernels);
  if (best == "avx512") all.push_back(&kAvx512Kernels);
#endif
  return all;
}

/// A buffer with guard bytes on both sides and a chosen misalignment.
class Buffer {
 public:
  Buffer(int64_t bytes, int64_t misalignment) : memory_(size_t(bytes + 192), 0xA5), bytes_(bytes) {
    const auto base = reinterpret_cast<uintptr_t>(memory_.data()) + 64;
    start_ = memory_.data() + 64 + (64 - base % 64) % 64 + misalignment;
  }
  unsigned char* data() { return start_; }
  bool guards_intact() const {
    for (const unsigned char* p = memory_.data(); p < memory_.data() + memory_.size(); ++p)
      if ((p < start_ || p >= start_ + bytes_) && *p != 0xA5) return false;
    return true;
  }

 private:
  std::vector<unsigned char> memory_;
  unsigned char* start_;
  int64_t bytes_;
};

/// Writes real number `value` as real component `i`; returns what was stored.
double put(void* data, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kComplex128: std::memcpy(static_cast<char*>(data) + 8 * i, &value, 8); return value;
    case DType::kFloat32:
    case DType::kComplex64: {
      const float f = float(value);
      std::memcpy(static_cast<char*>(data) + 4 * i, &f, 4);
      return f;
    }
    case DType::kBFloat16: {
      const BFloat16 b = from_float<BFloat16>(float(value));
      std::memcpy(static_cast<char*>(data) + 2 * i, &b, 2);
      return to_float(b);
    }
    case DType::kFloat16: {
      const Float16 h = from_float<Float16>(float(value));
      std::memcpy(static_cast<char*>(data) + 2 * i, &h, 2);
      return to_float(h);
    }
  }
  return 0;
}

struct Reference {
  long double sum_squares = 0, sum = 0, sum_cubes = 0;
  double largest = 0, smallest = kInfinity;
  int64_t nonfinite = 0, zeros = 0;
};

Reference reference_of(const std::vector<double>& reals, bool complex) {
  Reference r;
  for (size_t i = 0; i < reals.size(); i += complex ? 2 : 1) {
    const long double re = reals[i], im = complex ? reals[i + 1] : 0.0;
    const long double m = complex ? std::sqrt(re * re + im * im) : std::fabs(re);
    r.sum_squares += m * m;
    r.sum += m;
    r.sum_cubes += m * m * m;
    const double d = double(m);
    if (std::isnan(d) || std::isnan(r.largest)) r.largest = r.smallest = NAN;
    else {
      r.largest = std::max(r.largest, d);
      r.smallest = std::min(r.smallest, d);
    }
    r.nonfinite += !std::isfinite(re) || !std::isfinite(im);
    r.zeros += m == 0;
  }
  return r;
}

std::vector<double> fill(void* data, DType dtype, int64_t numel, double scale, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> stored;
  for (int64_t i = 0; i < numel * (is_complex(dtype) ? 2 : 1); ++i)
    stored.push_back(put(data, dtype, i, random() % 5 ? normal(random) * scale : 0.0));
  return stored;
}

void compare(const Partial& p, const NormOrder& order, const Reference& r, double tolerance) {
  CHECK_NEAR(finish(p.sq), double(std::sqrt(r.sum_squares)), tolerance);
  CHECK_NEAR(max_abs(p), r.largest, tolerance);
  CHECK_EQ(p.nonfinite, r.nonfinite);
  CHECK_EQ(p.zeros, r.zeros);
  switch (order.kind) {
    case NormKind::kOne: CHECK_NEAR(finish(order, p), double(r.sum), tolerance); break;
    case NormKind::kNegInf: CHECK_NEAR(finish(order, p), r.smallest, tolerance); break;
    case NormKind::kPower: CHECK_NEAR(finish(order, p), double(std::cbrt(r.sum_cubes)), 4 * tolerance); break;
    default: break;
  }
}

void test_measure(const ChunkKernels& kernels) {
  for (DType dtype : kTypes)
    for (int64_t numel : kSizes)
      for (int64_t misalignment : {int64_t(0), itemsize(dtype)})
        for (double p : {2.0, 1.0, 0.0, kInfinity, -kInfinity, 3.0}) {
          if (numel > 1100 && p != 2.0 && p != 3.0) continue;  // keeps the run short
          Buffer buffer(numel * itemsize(dtype), misalignment);
          const double scale = dtype == DType::kFloat16 ? 1e-3 : 1e-12;
          const auto stored = fill(buffer.data(), dtype, numel, scale, unsigned(numel));
          const MeasureOptions options{norm_order(p), true};
          Partial out = empty_partial(options.order);
          kernels.measure(buffer.data(), dtype, numel, options, {}, out);
          out.numel = numel;
          compare(out, options.order, reference_of(stored, is_complex(dtype)), is_double(dtype) ? 3e-15 : 1e-13);
          CHECK(buffer.guards_intact());
        }
}

void test_special_values(const ChunkKernels& kernels) {
  for (DType dtype : kTypes)
    for (double special : {kInfinity, -kInfinity, double(NAN)})
      for (int64_t at : {int64_t(0), int64_t(40), int64_t(99)}) {
        Buffer buffer(100 * itemsize(dtype), 0);
        auto stored = fill(buffer.data(), dtype, 100, 1.0, 3);
        stored[size_t(at)] = put(buffer.data(), dtype, at, special);
        Partial out;
        kernels.measure(buffer.data(), dtype, 100, {norm_order(2.0), true}, {}, out);
        compare(out, norm_order(2.0), reference_of(stored, is_complex(dtype)), 1e-14);
      }
  for (double magnitude : {5e-324, 1e-310, 1e-200, 1e-121, 1e145, 1e200, 1e308}) {
    Buffer buffer(100 * 8, 8);
    for (int i = 0; i < 100; ++i) put(buffer.data(), DType::kFloat64, i, i % 2 ? magnitude : -magnitude);
    Partial out;
    kernels.measure(buffer.data(), DType::kFloat64, 100, {norm_order(2.0), false}, {}, out);
    CHECK_NEAR(finish(out.sq), magnitude * 10 < kInfinity ? magnitude * 10 : kInfinity, magnitude < 1e-307 ? 0.06 : 3e-15);
  }
}

void test_writes(const ChunkKernels& kernels) {
  for (DType dtype : kTypes)
    for (int64_t numel : kSizes) {
      const int64_t reals = numel * (is_complex(dtype) ? 2 : 1), bytes = numel * itemsize(dtype);
      Buffer buffer(bytes, itemsize(dtype)), expected(bytes, 0);
      const auto stored = fill(buffer.data(), dtype, numel, 1.0, unsigned(numel));
      const double coef = 0.3;
      const bool narrow = itemsize(dtype) == 2;  // those multiply in float32
      for (int64_t i = 0; i < reals; ++i) {
        const double x = stored[size_t(i)];
        put(expected.data(), dtype, i, narrow ? double(float(x) * float(coef)) : x * coef);
      }
      kernels.scale(buffer.data(), dtype, numel, coef, {});
      CHECK(!std::memcmp(buffer.data(), expected.data(), size_t(bytes)) && buffer.guards_intact());
      if (is_complex(dtype)) continue;
      Buffer clamped_buffer(bytes, itemsize(dtype));
      fill(clamped_buffer.data(), dtype, numel, 1.0, unsigned(numel));
      for (int64_t i = 0; i < reals; ++i) {
        const double x = stored[size_t(i)];
        put(expected.data(), dtype, i, x > 0.5 ? 0.5 : x < -0.5 ? -0.5 : x);
      }
      kernels.clamp(clamped_buffer.data(), dtype, numel, 0.5);
      CHECK(!std::memcmp(clamped_buffer.data(), expected.data(), size_t(bytes)) && clamped_buffer.guards_intact());
    }
}

/// Every number of 16 bits times factors of all kinds: the bits of core/clip.h.
template <class T>
void test_every_product(const ChunkKernels& kernels, DType dtype) {
  constexpr int64_t kNumbers = int64_t(1) << 16, kOdd = 3;  // beyond whole vectors, too
  for (double coef : {0.3, 1.7, -0.999, 0.0, 3e38, 0x1p-126, 1e-42, kInfinity, double(NAN)}) {
    std::vector<T> numbers(size_t(kNumbers + kOdd)), want(size_t(kNumbers + kOdd));
    for (int64_t i = 0; i < kNumbers + kOdd; ++i) {
      numbers[size_t(i)] = {uint16_t(i)};
      want[size_t(i)] = scaled(T{uint16_t(i)}, coef);
    }
    for (int64_t begin = 0; begin < kNumbers + kOdd; begin += kChunkElements)
      kernels.scale(numbers.data() + begin, dtype, std::min(kChunkElements, kNumbers + kOdd - begin), coef, {});
    for (size_t i = 0; i < want.size(); ++i) {
      const bool both_nan = std::isnan(to_float(numbers[i])) && std::isnan(to_float(want[i]));
      CHECK(both_nan || numbers[i].bits == want[i].bits);
    }
  }
}

ThreadPool pool_of(int threads) {
  return {threads, [](int32_t count, ThreadPool::Body body, void* context) {
            std::vector<std::thread> running;
            for (int i = 0; i < count; ++i) running.emplace_back(body, context, i);
            for (std::thread& t : running) t.join();
          }};
}

bool identical(const Partial& a, const Partial& b) {
  return a.sq.hi == b.sq.hi && a.sq.lo == b.sq.lo && a.sq.bin == b.sq.bin && a.max_bits == b.max_bits &&
         a.power.hi == b.power.hi && a.numel == b.numel && a.nonfinite == b.nonfinite;
}

void test_driver() {
  std::vector<int64_t> sizes = {0, 1, 33, 0, 3 * kChunkElements + 17, kChunkElements, 0};
  for (int i = 0; i < 300; ++i) sizes.push_back(i % 97);
  std::vector<std::vector<float>> data;
  std::vector<TensorRef> refs;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  long double squares = 0;
  for (int64_t n : sizes) {
    data.emplace_back(size_t(n));
    for (float& x : data.back()) {
      x = normal(random);
      squares += (long double)x * x;
    }
    refs.push_back({data.back().data(), n, DType::kFloat32});
  }
  const ChunkPlan plan(refs.data(), int64_t(refs.size()));
  const MeasureOptions options{norm_order(1.0), false};
  std::vector<Partial> serial(refs.size()), parallel(refs.size());
  const Partial total = measure(plan, options, ThreadPool{}, serial.data());
  CHECK_NEAR(finish(total.sq), double(std::sqrt(squares)), 1e-14);
  for (int threads : {2, 3, 8}) {
    CHECK(identical(measure(plan, options, pool_of(threads), parallel.data()), total));
    for (size_t i = 0; i < refs.size(); ++i) CHECK(identical(serial[i], parallel[i]));
  }
  const float before = data[4][3 * kChunkElements];
  apply(plan, {ClipAction::kNone, 0.5}, pool_of(2));
  CHECK_EQ(data[4][3 * kChunkElements], before);
  const std::vector<std::vector<float>> unscaled = data;
  apply(plan, {ClipAction::kScale, 0.5}, pool_of(2));
  for (size_t t = 0; t < data.size(); ++t)
    for (size_t i = 0; i < data[t].size(); ++i) CHECK_EQ(data[t][i], unscaled[t][i] * 0.5f);
  clamp(plan, 0.1, pool_of(2));
  CHECK(std::fabs(data[4][3 * kChunkElements]) <= 0.1f);
  apply(plan, {ClipAction::kZero, 0.0}, pool_of(2));
  CHECK_EQ(measure(plan, options, ThreadPool{}, serial.data()).max_bits, 0);
}

struct UnitShape {
  int64_t rows, length;
  DType grad, weights;
};

/// Random gradients and weights, and the lists that the functions of cpu/units.h take.
struct UnitLists {
  explicit UnitLists(const std::vector<UnitShape>& shapes) {
    for (const UnitShape& s : shapes) {
      const int64_t numel = s.rows * s.length;
      grads.emplace_back(size_t(numel * itemsize(s.grad)));
      weights.emplace_back(size_t(numel * itemsize(s.weights)));
      fill(grads.back().data(), s.grad, numel, 1.0, unsigned(numel));
      fill(weights.back().data(), s.weights, numel, 1.0, unsigned(numel + 1));
      refs.push_back({grads.back().data(), numel, s.grad});
      units.push_back({grads.back().data(), weights.back().data(), s.rows, s.length, s.grad, s.weights});
      rows += s.rows;
    }
  }

  std::vector<std::vector<char>> grads, weights;
  std::vector<TensorRef> refs;
  std::vector<UnitsRef> units;
  int64_t rows = 0;
};

/// Measuring with units: the measurement of measure(), the factors and norms of clip_units(), no write before
/// scale_units(), and the same bits for any number of threads.
void test_units() {
  UnitLists lists({{300, 7, DType::kFloat32, DType::kFloat32},
                   {3, 70000, DType::kFloat32, DType::kBFloat16},
                   {40, 64, DType::kFloat64, DType::kFloat32},
                   {11, 33, DType::kComplex64, DType::kFloat64},
                   {0, 0, DType::kFloat32, DType::kFloat32},
                   {5, 9000, DType::kBFloat16, DType::kFloat32}});
  auto& [grads, weights, refs, units, all] = lists;
  const int64_t count = int64_t(refs.size());
  const std::vector<std::vector<char>> before = grads;
  const MeasureOptions options{norm_order(2.0), true};
  std::vector<Partial> want(refs.size()), got(refs.size());
  measure(ChunkPlan(refs.data(), count), options, ThreadPool{}, want.data());
  const std::vector<UnitLimits> limits(refs.size(), UnitLimits{0.9, 1e-3});
  std::vector<std::vector<double>> factors, norms;
  std::vector<uint8_t> changed(refs.size());
  for (int threads : {1, 3}) {
    factors.emplace_back(size_t(all));
    norms.emplace_back(2 * refs.size());
    measure_units(units.data(), limits.data(), count, options, pool_of(threads), got.data(), factors.back().data(),
                  {norms.back().data(), changed.data()});
    CHECK(grads == before);
    for (size_t t = 0; t < refs.size(); ++t) {
      if (refs[t].numel == 0) continue;
      CHECK_NEAR(finish(got[t].sq), finish(want[t].sq), 1e-14);
      CHECK(got[t].max_bits == want[t].max_bits && got[t].zeros == want[t].zeros && got[t].numel == want[t].numel);
      CHECK_EQ(norms.back()[t], finish(got[t].sq));
    }
  }
  CHECK(factors[0] == factors[1] && norms[0] == norms[1]);
  scale_units(units.data(), count, factors[0].data(), changed.data(), pool_of(2));
  const std::vector<std::vector<char>> scaled = grads;
  for (size_t t = 0; t < grads.size(); ++t) std::copy(before[t].begin(), before[t].end(), grads[t].begin());
  std::vector<double> at_once(2 * refs.size());
  clip_units(units.data(), count, limits[0], pool_of(2), {at_once.data(), changed.data()});
  CHECK(grads == scaled && grads != before && at_once == norms[0]);
}

}  // namespace

int main() {
  for (const ChunkKernels* kernels : supported_kernels()) {
    std::printf("instruction set: %s\n", kernels->name);
    test_measure(*kernels);
    test_special_values(*kernels);
    test_writes(*kernels);
    test_every_product<BFloat16>(*kernels, DType::kBFloat16);
    test_every_product<Float16>(*kernels, DType::kFloat16);
  }
  test_driver();
  test_units();
  return test::finish("test_cpu");
}
