// csrc/core: conversions, sums, norms, the clip decision, the chunk plan.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/chunk_plan.h"
#include "core/clip.h"
#include "core/exact_sum.h"
#include "core/norm.h"

using namespace gradkern;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The value of a 16-bit float by its definition.
double half_value(uint16_t bits, int exponent_bits, int fraction_bits) {
  const int sign = bits >> 15, exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
  double value;
  if (exponent == (1 << exponent_bits) - 1) value = fraction ? NAN : kInfinity;
  else if (exponent == 0) value = std::ldexp(fraction, 1 - bias - fraction_bits);
  else value = std::ldexp(1.0 + std::ldexp(fraction, -fraction_bits), exponent - bias);
  return sign ? -value : value;
}

void test_conversions_to_float() {
  for (int bits = 0; bits < 65536; ++bits) {
    CHECK_EQ(to_float(BFloat16{uint16_t(bits)}), half_value(uint16_t(bits), 8, 7));
    CHECK_EQ(to_float(Float16{uint16_t(bits)}), half_value(uint16_t(bits), 5, 10));
  }
}

/// from_float must give the nearest value, the even one of two equally near.
template <class T>
void check_rounding(float x) {
  const T rounded = from_float<T>(x);
  if (std::isnan(x)) return CHECK(std::isnan(to_float(rounded)));
  CHECK_EQ(std::signbit(to_float(rounded)), std::signbit(x));
  const uint16_t magnitude = rounded.bits & 0x7fff;
  // Neighbours by magnitude; above the largest finite value comes inf, at the next power of two.
  const double at = std::fabs(double(to_float(rounded)));
  const double target = std::fabs(double(x));
  const uint16_t infinite = from_float<T>(float(kInfinity)).bits;
  const auto value = [&](uint16_t bits) {
    const double v = to_float(T{bits});
    if (bits != infinite) return v;
    const double last = to_float(T{uint16_t(infinite - 1)}), before = to_float(T{uint16_t(infinite - 2)});
    return last + (last - before);
  };
  const double here = magnitude == infinite ? value(infinite) : at;
  if (magnitude == infinite && target >= here) return;
  if (magnitude < infinite) {
    const double gap = value(uint16_t(magnitude + 1)) - here;
    CHECK(target - here < gap / 2 || (target - here == gap / 2 && magnitude % 2 == 0));
  }
  if (magnitude > 0) {
    const double gap = here - value(uint16_t(magnitude - 1));
    CHECK(here - target < gap / 2 || (here - target == gap / 2 && magnitude % 2 == 0));
  }
}

void test_conversions_from_float() {
  for (int bits = 0; bits < 65536; ++bits) {  // exact values come back
    const BFloat16 b{uint16_t(bits)};
    const Float16 h{uint16_t(bits)};
    if (!std::isnan(to_float(b))) CHECK_EQ(from_float<BFloat16>(to_float(b)).bits, bits);
    if (!std::isnan(to_float(h))) CHECK_EQ(from_float<Float16>(to_float(h)).bits, bits);
  }
  std::mt19937 random(7);
  for (int i = 0; i < 300000; ++i) {
    const float x = bit_cast<float>(uint32_t(random()));
    check_rounding<BFloat16>(x);
    check_rounding<Float16>(x);
    check_rounding<Float16>(bit_cast<float>((uint32_t(random()) & 0x8fffffffu) | 0x30000000u));
  }
  for (float x : {65504.f, 65519.996f, 65520.f, 65536.f, 6.1035156e-5f, 5.9604645e-8f, 2.9802322e-8f,
                  2.9802326e-8f, 3.3961776e38f, 3.4028235e38f, 0.f, -0.f})
    for (float y : {x, -x}) {
      check_rounding<Float16>(y);
      check_rounding<BFloat16>(y);
    }
}

void test_compensated_sum() {
  double hi = 0, lo = 0;
  add_compensated(hi, lo, 1.0);
  for (int i = 0; i < 1000000; ++i) add_compensated(hi, lo, 0x1p-60);
  CHECK_EQ(compensated_value(hi, lo), 1.0 + 1000000 * 0x1p-60);
  add_compensated(hi, lo, kInfinity);
  add_compensated(hi, lo, 1.0);
  CHECK_EQ(compensated_value(hi, lo), kInfinity);
  add_compensated(hi, lo, NAN);
  CHECK(std::isnan(compensated_value(hi, lo)));
}

/// A sum of squares of one magnitude, as a chunk would leave it.
ScaledSum squares(double magnitude, double count) {
  ScaledSum s;
  s.bin = bin_of(magnitude);
  const double scaled = magnitude * bin_scale(s.bin);
  s.hi = scaled * scaled * count;
  return s;
}

void test_scaled_sum() {
  for (double m : {1e-320, 1e-300, 1e-160, 0x1p-400, 1e-30, 1.0, 1e30, 1e150, 0x1p480, 1e160, 1e300})
    CHECK_NEAR(finish(squares(m, 4.0)), 2 * m, 1e-14);
  CHECK_EQ(finish(combine(squares(1e-300, 4), squares(0, 4))), finish(squares(1e-300, 4)));
  CHECK_EQ(finish(combine(squares(0, 4), squares(1e300, 4))), finish(squares(1e300, 4)));
  CHECK_NEAR(finish(combine(squares(3e-300, 1), squares(4e-300, 1))), 5e-300, 1e-14);
  CHECK_NEAR(finish(combine(squares(1e-300, 4), squares(5.0, 1))), 5.0, 1e-15);
  CHECK_NEAR(finish(combine(squares(5.0, 1), squares(1e300, 1))), 1e300, 1e-15);
  // Either side of a bin's edge.
  CHECK_NEAR(finish(combine(squares(0x1p-401, 1), squares(0x1p-400, 1))), std::hypot(0x1p-401, 0x1p-400), 1e-15);
  CHECK_NEAR(finish(combine(squares(0x1p480, 1), squares(0x1p481, 1))), std::hypot(0x1p480, 0x1p481), 1e-15);
  CHECK_EQ(finish(combine(squares(kInfinity, 1), squares(1, 1))), kInfinity);
  CHECK(std::isnan(finish(combine(squares(1, 1), squares(NAN, 1)))));
}

Partial element(const NormOrder& order, double magnitude) {
  Partial p = empty_partial(order);
  p.sq = squares(magnitude, 1);
  p.max_bits = abs_bits(magnitude);
  p.nonfinite = !std::isfinite(magnitude);
  p.numel = 1;
  switch (order.kind) {
    case NormKind::kOne: p.power.hi = magnitude; break;
    case NormKind::kZero: p.power.hi = magnitude != 0; break;
    case NormKind::kNegInf: p.power.ref = magnitude; break;
    case NormKind::kPower:
      p.power.ref = magnitude;
      p.power.hi = power_term(magnitude, magnitude, order.p);
      break;
    default: break;
  }
  return p;
}

double norm_of(double p, std::vector<double> magnitudes) {
  const NormOrder order = norm_order(p);
  Partial sum = empty_partial(order);
  for (double m : magnitudes) sum = combine(order, sum, element(order, m));
  return finish(order, sum);
}

void test_orders() {
  const std::vector<double> x = {3, 0, 4, 12};
  CHECK_EQ(norm_of(2, x), 13);
  CHECK_EQ(norm_of(1, x), 19);
  CHECK_EQ(norm_of(0, x), 3);
  CHECK_EQ(norm_of(kInfinity, x), 12);
  CHECK_EQ(norm_of(-kInfinity, x), 0);
  CHECK_EQ(norm_of(-kInfinity, {3, 4}), 3);
  CHECK_NEAR(norm_of(3, x), std::cbrt(27 + 64 + 1728.0), 1e-15);
  CHECK_NEAR(norm_of(0.5, {1, 4}), 9, 1e-15);
  CHECK_EQ(norm_of(-1, x), 0);
  CHECK_NEAR(norm_of(-1, {2, 4}), 1 / (0.5 + 0.25), 1e-15);
  CHECK_NEAR(norm_of(1000, {1e300, 1e300}), 1e300 * std::pow(2, 1e-3), 1e-14);
  CHECK_NEAR(norm_of(3, {1e-300, 2e-300}), 1e-300 * std::cbrt(9.0), 1e-14);
  for (double p : {2.0, 1.0, 0.0, kInfinity, -kInfinity, 3.0, -1.0}) {
    CHECK_EQ(norm_of(p, {}), 0);
    if (p != 0) CHECK(std::isnan(norm_of(p, {1, NAN, 2})));
    if (p != 0) CHECK(std::isnan(norm_of(p, {NAN, kInfinity})));
    if (p > 0) CHECK_EQ(norm_of(p, {1, kInfinity, 2}), kInfinity);
    if (p != 0) CHECK_EQ(norm_of(p, {0, 0}), 0);
  }
  CHECK_EQ(norm_of(-1, {kInfinity, kInfinity}), kInfinity);
  // Beyond the range of float64 is the power alone, 2^1000 and more, or 2^-1100.
  CHECK_EQ(norm_of(1e-3, {0, 0, 0}), 0);
  CHECK_EQ(norm_of(1e-3, {1, 1, 1}), kInfinity);
  CHECK_NEAR(norm_of(1.0 / 1100, {0x1p-500, 0x1p-500}), 0x1p600, 1e-11);
  CHECK_NEAR(norm_of(-1.0 / 1100, {0x1p500, 0x1p500}), 0x1p-600, 1e-11);
  CHECK_EQ(norm_of(-1e-3, {kInfinity, kInfinity, kInfinity}), kInfinity);
  CHECK_EQ(norm_of(-1, {2, kInfinity}), 2);
}

void test_decisions() {
  const auto action = [](double max_norm, double total, int64_t bad, OnNonfinite policy) {
    return decide_clip(max_norm, total, bad, policy).action;
  };
  constexpr auto kPropagate = OnNonfinite::kPropagate;
  CHECK(action(1, 0.5, 0, kPropagate) == ClipAction::kNone);
  CHECK(action(1, 2, 0, kPropagate) == ClipAction::kScale);
  CHECK_EQ(decide_clip(1, 2, 0, kPropagate).coef, 1 / (2 + 1e-6));
  CHECK_EQ(decide_clip(0, 2, 0, kPropagate).coef, 0);
  CHECK(action(1, NAN, 1, kPropagate) == ClipAction::kScale);
  CHECK(std::isnan(decide_clip(1, NAN, 1, kPropagate).coef));
  for (double total : {2.0, kInfinity, double(NAN)})
    CHECK(action(kInfinity, total, 0, kPropagate) == ClipAction::kNone);
  CHECK(action(1, NAN, 1, OnNonfinite::kSkip) == ClipAction::kNone);
  CHECK(action(1, NAN, 1, OnNonfinite::kZero) == ClipAction::kZero);
  CHECK(action(1, kInfinity, 0, OnNonfinite::kSkip) == ClipAction::kScale);  // beyond float64
  CHECK(action(1, -1, 0, kPropagate) == ClipAction::kNone);
  CHECK(action(1, -kInfinity, 0, kPropagate) == ClipAction::kNone);
  CHECK_EQ(decision_norm(0.1, false), double(0.1f));
  CHECK_EQ(decision_norm(0.1, true), 0.1);
  CHECK_EQ(decision_norm(6.8e38, false), 6.8e38);
  CHECK_EQ(decision_norm(kInfinity, false), kInfinity);
  CHECK(std::isnan(decision_norm(NAN, false)));
  CHECK_EQ(clamped(double(NAN), 1.0), NAN);
  CHECK_EQ(clamped(-3.0, 2.0), -2.0);
  CHECK_EQ(clamped(3.0, 2.0), 2.0);
}

void test_chunk_plan() {
  const int64_t c = kChunkElements;
  std::vector<TensorRef> tensors;
  for (int64_t n : {int64_t(0), int64_t(1), int64_t(0), c - 1, c, c + 1, int64_t(0), int64_t(5) * 1000000000, int64_t(0)})
    tensors.push_back({nullptr, n, DType::kFloat32});
  const ChunkPlan plan(tensors.data(), int64_t(tensors.size()));
  CHECK_EQ(plan.chunks(), 1 + 1 + 1 + 2 + (5000000000 + c - 1) / c);
  std::vector<int64_t> covered(tensors.size(), 0);
  int64_t previous = -1;
  for (int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
    const int64_t t = plan.find(chunk);
    const Chunk at = plan.at(t, chunk);
    CHECK(t >= previous && at.length > 0 && at.length <= c);
    CHECK_EQ(at.begin, covered[size_t(t)]);
    covered[size_t(t)] += at.length;
    previous = t;
  }
  for (size_t i = 0; i < tensors.size(); ++i) CHECK_EQ(covered[i], tensors[i].numel);
  const ChunkPlan none(tensors.data(), 0);
  CHECK_EQ(none.chunks(), 0);
}

/// Terms in random order, divided among several sums, which are combined in random order.
ExactSum in_parts(std::vector<Term> terms, std::mt19937_64& rng) {
  std::shuffle(terms.begin(), terms.end(), rng);
  std::vector<ExactSum> parts(1 + rng() % 5);
  for (const Term& term : terms) deposit(parts[rng() % parts.size()], term);
  std::shuffle(parts.begin(), parts.end(), rng);
  ExactSum sum;
  for (const ExactSum& part : parts) sum = combine(sum, part);
  return sum;
}

/// The same bits for every order and division, and the right sum: of terms near and far, zeros, and scaled ones.
void test_exact_sum() {
  std::mt19937_64 rng(5);
  for (int turn = 0; turn < 400; ++turn) {
    const int spread = turn % 5 == 0 ? 900 : 1 + turn % 90, count = int(rng() % 60);
    const int32_t bin = turn % 7 == 0 ? int32_t(rng() % 3) - 1 : 0;
    std::vector<Term> terms;
    long double want = 0;
    for (int i = 0; i < count; ++i) {
      const double x = rng() % 6 == 0 ? 0.0 : std::ldexp(double(rng() >> 11), int(rng() % unsigned(spread)) - 500);
      terms.push_back(term_of(x, bin));
      want += x;
    }
    const ExactSum first = in_parts(terms, rng);
    const ScaledSum got = value_of(first, bin);
    CHECK(std::fabs((long double)got.hi + got.lo - want) <= want * 0x1p-57L);
    for (int again = 0; again < 3; ++again) {
      const ScaledSum other = value_of(in_parts(terms, rng), bin);
      CHECK(other.hi == got.hi && other.lo == got.lo);
    }
  }
  CHECK_EQ(value_of(ExactSum(), 0).hi, 0.0);
}

/// From the smallest to the largest of float64, alone and side by side.
void test_exact_sum_range() {
  for (const double x : {0x1p-1074, 0x1p-1022, 1.0, std::numeric_limits<double>::max()})
    for (const double y : {0.0, 0x1p-1074, 1.0}) {
      ExactSum s;
      deposit(s, term_of(x));
      deposit(s, term_of(y));
      CHECK_EQ(value_of(s, 0).hi, x + y);
    }
  ExactSum many;
  for (int i = 0; i < 100000; ++i) deposit(many, term_of(1 - 0x1p-53));
  CHECK_EQ(value_of(many, 0).hi, 100000 * (1 - 0x1p-53));
}

}  // namespace

int main() {
  test_conversions_to_float();
  test_conversions_from_float();
  test_compensated_sum();
  test_scaled_sum();
  test_orders();
  test_decisions();
  test_chunk_plan();
  test_exact_sum();
  test_exact_sum_range();
  return test::finish("test_core");
}
