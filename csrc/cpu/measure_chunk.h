// Reads one chunk: the sum of squares, the largest magnitude, the number of non-finite elements, and the
// sum that the order needs.
//
// Element i of a chunk is added to lane i % kLanes for every register width and alignment, and lanes are
// combined in order. For the types whose squares are exact in float64, the bits are the same on every
// processor.
#pragma once

#include "core/chunk_plan.h"
#include "cpu/chunk_kernels.h"
#include "cpu/prefetches.h"
#include "cpu/vectors.h"

namespace gradkern::cpu {
namespace {

/// In a loop, because GCC 12 compiles the initializer {} to `rep stos`, which takes 20 ns.
template <class V, int N>
GRADKERN_HD void set_zero(V (&registers)[N]) {
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) registers[r] = V{};
}

/// The sum of the kLanes sums, as a tree in the order of the elements: the same for every register width.
template <class T>
GRADKERN_HD double sum_of(Block& sums) {
  in_element_order<T>(sums);
#pragma GCC unroll 8
  for (int half = kRegisters / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int r = 0; r < half; ++r) sums[r] += sums[r + half];
  double lanes[kWidth];
  __builtin_memcpy(lanes, &sums[0], sizeof(lanes));
#pragma GCC unroll 8
  for (int half = kWidth / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

/// The sum of compensated float64 lanes. The low part of an infinite lane is NaN and is ignored.
void reduce(const Block& sums_hi, const Block& sums_lo, double& hi, double& lo) {
  double high[kLanes], low[kLanes];
  __builtin_memcpy(high, sums_hi, sizeof(high));
  __builtin_memcpy(low, sums_lo, sizeof(low));
  for (int i = 0; i < kLanes; ++i) {
    add_compensated(hi, lo, high[i]);
    if (is_finite(high[i])) lo += low[i];
  }
}

/// hi + lo += sums in every lane (TwoSum, as in add_compensated). Sets sums to zero.
GRADKERN_HD void compensate(Block& sums, Block& hi, Block& lo) {
#pragma GCC unroll 16
  for (int r = 0; r < kRegisters; ++r) {
    const F64 sum = hi[r] + sums[r];
    const F64 rounded = sum - hi[r];
    lo[r] += (hi[r] - (sum - rounded)) + (sums[r] - rounded);
    hi[r] = sum;
    sums[r] = F64{};
  }
}

/// Calls take(q, register) for every register of the `length` elements at `data`. Register q of a block of kLanes
/// elements begins with its element q * kPerRaw<T>. The last register is padded with zeros, which do not change
/// sums and maxima. `end` is the end of the chunk, of which the elements may be a part; `following` is read next.
template <class T, class Take>
GRADKERN_HD void for_each_register(const T* data, int64_t length, const T* end, Following following, const Take& take) {
  Prefetches<T, kLanes> prefetches(data, length / kLanes * kLanes, end, following);
  int64_t i = 0;
  while (prefetches.next_part(i))
    for (; i < prefetches.until; i += kLanes) {
      prefetches.at(i);
#pragma GCC unroll 16
      for (int q = 0; q < kRaws<T>; ++q) take(q, load<Raw<T>>(data + i + q * kPerRaw<T>));
    }
#pragma GCC unroll 16
  for (int q = 0; q < kRaws<T>; ++q) {
    const int64_t rest = length - i - q * kPerRaw<T>;
    if (rest <= 0) break;
    const T* const from = data + i + q * kPerRaw<T>;
    take(q, rest >= kPerRaw<T> ? load<Raw<T>>(from) : load_first(from, rest));
  }
}

/// The larger of each lane.
template <class V>
GRADKERN_HD V larger(V a, V b) { return a > b ? a : b; }

/// The largest |x|, as bits, and the number of zeros, in integer registers of full width.
template <class T, bool kCountZeros>
struct Magnitudes {
  using Int = typename Bits<T>::Int;

  // One register each, because the sums need the others.
  Raw<T> largest = {};
  Raw<T> zero_lanes = {};

  GRADKERN_HD void take(Raw<T> raw) {
    const Raw<T> bits = raw & Bits<T>::kMagnitude;
    largest = larger(bits, largest);
    // A 16-bit lane counts at most kChunkElements / 8 = 4096 zeros.
    if (kCountZeros) zero_lanes -= (Raw<T>)(bits == 0);
  }

  GRADKERN_HD Int max_bits() const {
    Raw<T> all = largest;
#pragma GCC unroll 8
    for (int half = kPerRaw<T> / 2; half > 0; half /= 2) all = larger(all, lanes_from<T>(all, half));
    return all[0];
  }

  int64_t count_zeros(int64_t length) const {
    int64_t n = 0;
    for (int i = 0; i < kPerRaw<T>; ++i) n += zero_lanes[i];
    return n - (kPerRaw<T> - length % kPerRaw<T>) % kPerRaw<T>;  // without the padding
  }
};

template <class T>
int64_t count_nonfinite(const T* data, int64_t length) {
  using Int = typename Bits<T>::Int;
  int64_t count = 0;
  for (int64_t i = 0; i < length; ++i) {
    Int bits;
    __builtin_memcpy(&bits, data + i, sizeof(bits));
    count += (bits & Bits<T>::kMagnitude) >= Bits<T>::kInf;
  }
  return count;
}

/// float32, bfloat16, float16: squares and their sums are within float64's range (core/norm.h).
template <class T, bool kOne, bool kZeros>
void measure_narrow(const T* data, int64_t length, Following following, Partial& out) {
  Block squares, absolutes;
  set_zero(squares);
  set_zero(absolutes);
  Magnitudes<T, kZeros> magnitudes;
  for_each_register(data, length, data + length, following, [&](int q, Raw<T> raw) __attribute__((always_inline)) {
    Wide<T> x;
    widen<T>(raw, x);
#pragma GCC unroll 16
    for (int i = 0; i < kWides<T>; ++i) {
      const int r = q * kWides<T> + i;
      squares[r] += x[i] * x[i];
      if (kOne) absolutes[r] += x[i] < 0 ? -x[i] : x[i];
    }
    magnitudes.take(raw);
  });
  out.sq.hi = sum_of<T>(squares);
  if (kOne) out.power.hi = sum_of<T>(absolutes);
  if (kZeros) out.zeros = magnitudes.count_zeros(length);
  const auto largest = magnitudes.max_bits();
  out.max_bits = abs_bits(double_of(bit_cast<T>(largest)));
  if (largest >= Bits<T>::kInf) out.nonfinite = count_nonfinite(data, length);
}

/// float64: squares may leave float64's range, and long sums need compensation. Squares are those of the
/// elements times `scale`, a power of two. Magnitudes and their sums are those of the elements.
template <bool kOne, bool kZeros>
void measure_double_scaled(const double* data, int64_t length, double scale, Following following, Partial& out) {
  constexpr int64_t kRun = 16 * kLanes;  // 16 additions between two compensations, see core/norm.h
  Block squares = {}, squares_hi = {}, squares_lo = {};
  Block absolutes = {}, absolutes_hi = {}, absolutes_lo = {};
  Magnitudes<double, kZeros> magnitudes;
  for (int64_t begin = 0; begin < length; begin += kRun) {
    const int64_t rest = length - begin;
    const auto take = [&](int r, Raw<double> raw) __attribute__((always_inline)) {
      const F64 x = (F64)raw, y = x * scale;
      squares[r] += y * y;
      if (kOne) absolutes[r] += x < 0 ? -x : x;
      magnitudes.take(raw);
    };
    for_each_register(data + begin, rest < kRun ? rest : kRun, data + length, following, take);
    compensate(squares, squares_hi, squares_lo);
    if (kOne) compensate(absolutes, absolutes_hi, absolutes_lo);
  }
  out.sq = {};
  out.power = {};
  reduce(squares_hi, squares_lo, out.sq.hi, out.sq.lo);
  if (kOne) reduce(absolutes_hi, absolutes_lo, out.power.hi, out.power.lo);
  if (kZeros) out.zeros = magnitudes.count_zeros(length);
  out.max_bits = uint64_t(magnitudes.max_bits());
}

template <bool kOne, bool kZeros>
void measure_double(const double* data, int64_t length, Following following, Partial& out) {
  measure_double_scaled<kOne, kZeros>(data, length, 1.0, following, out);
  const int32_t bin = bin_of(bit_cast<double>(out.max_bits));
  if (bin != 0)  // rare, and the chunk is in the cache
    measure_double_scaled<kOne, kZeros>(data, length, bin_scale(bin), {}, out);
  out.sq.bin = bin;
  if (out.max_bits >= kInfBits) out.nonfinite = count_nonfinite(data, length);
}

/// The orders without vector code, -inf and any other p: one element at a time.
template <class Magnitude>
void measure_power(int64_t length, const NormOrder& order, double largest, Magnitude magnitude,
                   PowerSum& out) {
  double smallest = infinity();
  for (int64_t i = 0; i < length; ++i) {
    const double m = magnitude(i);
    if (!(m >= smallest)) smallest = m;
    if (m != m) { smallest = m; break; }
  }
  if (order.kind == NormKind::kNegInf) {
    out.ref = smallest;
    return;
  }
  out.ref = order.p > 0 ? largest : smallest;
  for (int64_t i = 0; i < length; ++i)
    add_compensated(out.hi, out.lo, power_term(magnitude(i), out.ref, order.p));
}

template <class T, bool kOne, bool kZeros>
GRADKERN_HD void measure_real(const T* data, int64_t length, Following following, Partial& out) {
  if constexpr (sizeof(T) == sizeof(double)) measure_double<kOne, kZeros>(data, length, following, out);
  else measure_narrow<T, kOne, kZeros>(data, length, following, out);
}

template <class T>
void measure_real(const T* data, int64_t length, const MeasureOptions& options, Following following, Partial& out) {
  const NormKind kind = options.order.kind;
  const bool zeros = options.count_zeros || kind == NormKind::kZero;
  if (kind == NormKind::kOne) {
    if (zeros) measure_real<T, true, true>(data, length, following, out);
    else measure_real<T, true, false>(data, length, following, out);
  } else {
    if (zeros) measure_real<T, false, true>(data, length, following, out);
    else measure_real<T, false, false>(data, length, following, out);
  }
  if (kind == NormKind::kZero) out.power.hi = double(length - out.zeros);
  if (kind == NormKind::kNegInf || kind == NormKind::kPower)
    measure_power(length, options.order, max_abs(out),
                  [data](int64_t i) { return fabs(double_of(data[i])); }, out.power);
}

/// The sum of |z|^2 is that of the squares of 2n reals. The other statistics use |z|.
template <class Real>
void measure_complex(const Complex<Real>* data, int64_t length, const MeasureOptions& options,
                     Following following, Partial& out) {
  const NormOrder& order = options.order;
  const Real* reals = reinterpret_cast<const Real*>(data);
  const int64_t half = length;  // two runs of `length` reals keep each within a chunk's bound
  Partial first, second;
  measure_real<Real, false, false>(reals, half, {reals + half, half * int64_t(sizeof(Real))}, first);
  measure_real<Real, false, false>(reals + half, half, following, second);
  out.sq = combine(first.sq, second.sq);

  for (int64_t i = 0; i < length; ++i) {
    const double m = magnitude(data[i]);
    const uint64_t bits = abs_bits(m);
    out.max_bits = bits > out.max_bits ? bits : out.max_bits;
    out.zeros += m == 0;
    if (order.kind == NormKind::kOne) add_compensated(out.power.hi, out.power.lo, m);
  }
  // |z| may overflow for finite parts of complex128, so the parts are tested.
  if (first.nonfinite + second.nonfinite)
    for (int64_t i = 0; i < length; ++i)
      out.nonfinite += !is_finite(double(data[i].re)) || !is_finite(double(data[i].im));
  if (order.kind == NormKind::kZero) out.power.hi = double(length - out.zeros);
  if (!options.count_zeros) out.zeros = 0;
  if (order.kind == NormKind::kNegInf || order.kind == NormKind::kPower)
    measure_power(length, order, max_abs(out), [data](int64_t i) { return magnitude(data[i]); },
                  out.power);
}

void measure_chunk(const void* data, DType dtype, int64_t length, const MeasureOptions& options,
                   Following following, Partial& out) {
  switch (dtype) {
    case DType::kFloat32: return measure_real(static_cast<const float*>(data), length, options, following, out);
    case DType::kBFloat16: return measure_real(static_cast<const BFloat16*>(data), length, options, following, out);
    case DType::kFloat16: return measure_real(static_cast<const Float16*>(data), length, options, following, out);
    case DType::kFloat64: return measure_real(static_cast<const double*>(data), length, options, following, out);
    case DType::kComplex64:
      return measure_complex(static_cast<const Complex<float>*>(data), length, options, following, out);
    case DType::kComplex128:
      return measure_complex(static_cast<const Complex<double>*>(data), length, options, following, out);
  }
}

template <class T>
double exact_squares(const T* data, int64_t length) {
  Block sums;
  set_zero(sums);
  for_each_register(data, length, data + length, {}, [&](int q, Raw<T> raw) __attribute__((always_inline)) {
    Wide<T> x;
    widen<T>(raw, x);
#pragma GCC unroll 16
    for (int i = 0; i < kWides<T>; ++i) sums[q * kWides<T> + i] += x[i] * x[i];
  });
  return sum_of<T>(sums);
}

double squares_chunk(const void* data, DType dtype, int64_t length) {
  switch (dtype) {
    case DType::kFloat32: return exact_squares(static_cast<const float*>(data), length);
    case DType::kBFloat16: return exact_squares(static_cast<const BFloat16*>(data), length);
    case DType::kFloat16: return exact_squares(static_cast<const Float16*>(data), length);
    case DType::kComplex64: return exact_squares(static_cast<const float*>(data), 2 * length);
    case DType::kFloat64:
    case DType::kComplex128: break;  // squares are rounded and may leave float64's range: see ScaledSum
  }
  return quiet_nan();
}

}  // namespace
}  // namespace gradkern::cpu
