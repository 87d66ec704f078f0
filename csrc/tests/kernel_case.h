// Test only: lists of tensors in guarded memory, and their exact norms.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/chunk_plan.h"
#include "core/norm.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#endif

namespace gradkern::test {

inline int failures = 0, checks = 0;
inline std::string context;

#define CHECK(condition, ...)                                           \
  do {                                                                  \
    ++gradkern::test::checks;                                           \
    if (!(condition) && ++gradkern::test::failures <= 40) {             \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, gradkern::test::context.c_str()); \
      std::printf(__VA_ARGS__);                                         \
      std::printf("\n");                                                \
    }                                                                   \
  } while (0)

enum class Fill { kNormal, kTiny, kHuge, kSubnormal, kSpread, kZeros, kSparse, kConstant, kNan, kInf, kNanAndInf };

struct Spec {
  DType dtype;
  int64_t numel;
  int64_t misalign = 0;  ///< bytes off a 64-byte boundary
  Fill fill = Fill::kNormal;
};

/// Memory with guard zones on both sides: writes are found by value, and under AddressSanitizer
/// reads as well.
class GuardedBuffer {
 public:
  GuardedBuffer(int64_t bytes, int64_t misalign) : bytes_(bytes) {
    const size_t size = size_t(bytes + misalign) + 3 * kGuard;
    memory_.reset(new unsigned char[size]);
    std::memset(memory_.get(), kPattern, size);
    const auto base = reinterpret_cast<uintptr_t>(memory_.get()) + kGuard;
    data_ = reinterpret_cast<unsigned char*>((base + kGuard - 1) / kGuard * kGuard) + misalign;
    // A zone is poisoned in steps of eight bytes; what the start shares with the data stays open.
    ASAN_POISON_MEMORY_REGION(memory_.get(), data_ - memory_.get() - misalign % 8);
    ASAN_POISON_MEMORY_REGION(data_ + bytes, memory_.get() + size - data_ - bytes);
  }
  ~GuardedBuffer() {
    open();
  }
  GuardedBuffer(GuardedBuffer&&) = delete;

  unsigned char* data() { return data_; }

  bool guards_intact() {
    open();
    bool intact = true;
    for (int64_t i = 1; i <= kGuard; ++i) intact &= data_[-i] == kPattern;
    for (int64_t i = 0; i < kGuard; ++i) intact &= data_[bytes_ + i] == kPattern;
    return intact;
  }

 private:
  static constexpr int64_t kGuard = 64;
  static constexpr unsigned char kPattern = 0xa5;
  void open() { ASAN_UNPOISON_MEMORY_REGION(data_ - kGuard, size_t(bytes_ + 2 * kGuard)); }

  int64_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_;
};

template <class T>
void store(unsigned char* to, int64_t i, T x) { std::memcpy(to + i * int64_t(sizeof(T)), &x, sizeof(T)); }
template <class T>
T fetch(const unsigned char* from, int64_t i) {
  T x;
  std::memcpy(&x, from + i * int64_t(sizeof(T)), sizeof(T));
  return x;
}

/// A value for a real part; `d` decides what tiny and huge mean.
inline double random_value(Fill fill, DType d, std::mt19937_64& rng, int64_t i) {
  const double normal = std::normal_distribution<double>()(rng);
  const double sign = rng() % 2 ? 1 : -1;
  const bool half = d == DType::kFloat16;
  switch (fill) {
    case Fill::kNormal: return normal;
    case Fill::kTiny: return normal * (is_double(d) ? 1e-300 : half ? 1e-6 : 1e-30);
    case Fill::kHuge: return normal * (is_double(d) ? 1e300 : half ? 1e4 : 1e30);
    case Fill::kSubnormal: return sign * double(rng() % 7) * (is_double(d) ? 0x1p-1074 : half ? 0x1p-24 : 0x1p-133);
    case Fill::kSpread: {
      const double range = is_double(d) ? 300 : half ? 3 : 30;
      return normal * std::pow(10.0, std::uniform_real_distribution<double>(-range, range)(rng));
    }
    case Fill::kZeros: return sign * 0.0;
    case Fill::kSparse: return rng() % 3 ? sign * 0.0 : normal;
    case Fill::kConstant: return i == 0 ? 1e3 : 0.1;
    case Fill::kNan: return i % 5 == 3 ? std::numeric_limits<double>::quiet_NaN() : normal;
    case Fill::kInf: return i % 5 == 3 ? sign * HUGE_VAL : normal;
    case Fill::kNanAndInf: return i % 7 == 2 ? HUGE_VAL : i % 5 == 3 ? std::nan("") : normal;
  }
  return 0;
}

inline void fill_real(unsigned char* data, DType real, int64_t n, Fill fill, DType d, std::mt19937_64& rng) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = random_value(fill, d, rng, i);
    if (real == DType::kFloat64) store(data, i, x);
    else if (real == DType::kFloat32) store(data, i, float(x));
    else if (real == DType::kBFloat16) store(data, i, from_float<BFloat16>(float(x)));
    else store(data, i, from_float<Float16>(float(x)));
  }
}

inline DType real_of(DType d) {
  return d == DType::kComplex64 ? DType::kFloat32 : d == DType::kComplex128 ? DType::kFloat64 : d;
}

inline double real_at(const unsigned char* data, DType real, int64_t i) {
  if (real == DType::kFloat64) return fetch<double>(data, i);
  if (real == DType::kFloat32) return fetch<float>(data, i);
  if (real == DType::kBFloat16) return to_float(fetch<BFloat16>(data, i));
  return to_float(fetch<Float16>(data, i));
}

/// Where kernels have written, and a digest of the bits except those of NaN. Kept by runs that will be compared.
struct Noted {
  std::string context;
  uint64_t digest;
};
inline std::vector<Noted>* noted = nullptr;

inline void note(const unsigned char* data, DType real, int64_t n) {
  if (!noted) return;
  uint64_t digest = 14695981039346656037u;  // FNV-1a
  for (int64_t i = 0; i < n; ++i) {
    const double x = real_at(data, real, i);
    digest = (digest ^ (x == x ? bit_cast<uint64_t>(x) : 1)) * 1099511628211u;
    digest ^= digest >> 32;
  }
  noted->push_back({context, digest});
}

/// The tensors of a list, and their places in memory.
class TensorSet {
 public:
  explicit TensorSet(const std::vector<Spec>& specs, uint64_t seed = 1) {
    std::mt19937_64 rng(seed);
    for (const Spec& s : specs) {
      const int64_t bytes = s.numel * itemsize(s.dtype);
      buffers_.emplace_back(new GuardedBuffer(bytes, s.misalign));
      fill_real(buffers_.back()->data(), real_of(s.dtype), s.numel * (is_complex(s.dtype) ? 2 : 1), s.fill, s.dtype, rng);
      refs_.push_back({buffers_.back()->data(), s.numel, s.dtype});
      any_double_ |= is_double(s.dtype);
    }
  }
  const TensorRef* refs() const { return refs_.data(); }
  int64_t count() const { return int64_t(refs_.size()); }
  const TensorRef& operator[](int64_t i) const { return refs_[size_t(i)]; }
  bool any_double() const { return any_double_; }
  bool guards_intact() {
    bool intact = true;
    for (auto& b : buffers_) intact &= b->guards_intact();
    return intact;
  }
  std::vector<unsigned char> bytes(int64_t i) const {
    const TensorRef& t = refs_[size_t(i)];
    const auto* data = static_cast<const unsigned char*>(t.data);
    note(data, real_of(t.dtype), t.numel * (is_complex(t.dtype) ? 2 : 1));
    return {data, data + t.numel * itemsize(t.dtype)};
  }

 private:
  std::vector<std::unique_ptr<GuardedBuffer>> buffers_;
  std::vector<TensorRef> refs_;
  bool any_double_ = false;
};

/// Exact enough to judge: 64-bit significands and 15-bit exponents where long double has them.
struct Reference {
  long double sq = 0, sum = 0, largest = 0, smallest = HUGE_VALL;
  int64_t nonfinite = 0, zeros = 0, numel = 0;
  bool nan = false;
  std::vector<long double> magnitudes;

  void add(const TensorRef& t) {
    const auto* data = static_cast<const unsigned char*>(t.data);
    const DType real = real_of(t.dtype);
    for (int64_t i = 0; i < t.numel; ++i) {
      long double s, m;
      bool finite;
      if (is_complex(t.dtype)) {
        const double re = real_at(data, real, 2 * i), im = real_at(data, real, 2 * i + 1);
        s = (long double)re * re + (long double)im * im;
        m = std::sqrt(s);
        finite = std::isfinite(re) && std::isfinite(im);
      } else {
        m = std::fabs((long double)real_at(data, real, i));
        s = m * m;
        finite = std::isfinite(double(m));
      }
      nan |= m != m;
      nonfinite += !finite;
      zeros += m == 0;
      sq += s;
      sum += m;
      if (m > largest) largest = m;
      if (m < smallest) smallest = m;
      magnitudes.push_back(m);
    }
    numel += t.numel;
  }

  long double norm(double p) const {
    if (numel == 0) return 0;
    if (p == 0) return numel - zeros;
    if (nan) return std::nan("");
    if (p == 2) return std::sqrt(sq);
    if (p == 1) return sum;
    if (p == HUGE_VAL) return largest;
    if (p == -HUGE_VAL) return smallest;
    long double total = 0;
    for (long double m : magnitudes) total += std::pow(m, (long double)p);
    return std::pow(total, 1 / (long double)p);
  }
};

/// |got - want| in units of the last place of float32 or float64; 0 for equal, also inf and NaN.
inline double error_ulp(double got, long double want, bool is_double) {
  if (want != want) return got != got ? 0 : HUGE_VAL;
  const long double rounded = is_double ? (long double)double(want) : (long double)float(want);
  if ((long double)got == rounded) return 0;
  if (!std::isfinite(double(rounded)) || !std::isfinite(got)) return HUGE_VAL;
  int exponent;
  std::frexp(want == 0 ? (long double)got : want, &exponent);
  const int least = is_double ? -1074 : -149, digits = is_double ? 53 : 24;
  const int unit = exponent - digits > least ? exponent - digits : least;
  return double(std::fabs((long double)got - want) / std::ldexp(1.0L, unit));
}

}  // namespace gradkern::test
