// Instructions that combine registers lane by lane, by opcode. PTX ISA, "Instruction Set".
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dtype.h"
#include "lanes.h"

namespace ptx {
namespace {

using Table = std::map<std::string, Handler>;
template <class Function>
Handler op(Function) { return each_lane<Function>; }

// -------------------------------------------------------------------------------- integers

template <class T>
void add_integers(Table& t, const std::string& type) {
  using U = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;  // neither overflows nor is promoted
  t["add." + type] = op([](T a, T b) { return T(U(a) + U(b)); });
  t["sub." + type] = op([](T a, T b) { return T(U(a) - U(b)); });
  t["neg." + type] = op([](T a) { return T(U(0) - U(a)); });
  t["mul.lo." + type] = op([](T a, T b) { return T(U(a) * U(b)); });
  t["mad.lo." + type] = op([](T a, T b, T c) { return T(U(a) * U(b) + U(c)); });
  t["div." + type] = op([](T a, T b) { return b ? T(a / b) : T(-1); });
  t["rem." + type] = op([](T a, T b) { return b ? T(a % b) : a; });
  t["min." + type] = op([](T a, T b) { return a < b ? a : b; });
  t["max." + type] = op([](T a, T b) { return a > b ? a : b; });
  t["selp." + type] = op([](T a, T b, bool p) { return p ? a : b; });
  t["setp.eq." + type] = op([](T a, T b) { return a == b; });
  t["setp.ne." + type] = op([](T a, T b) { return a != b; });
  t["setp.lt." + type] = op([](T a, T b) { return a < b; });
  t["setp.le." + type] = op([](T a, T b) { return a <= b; });
  t["setp.gt." + type] = op([](T a, T b) { return a > b; });
  t["setp.ge." + type] = op([](T a, T b) { return a >= b; });
  // Larger shifts shift out all bits.
  t["shr." + type] = op([](T a, uint32_t n) { return n < 8 * sizeof(T) ? T(a >> n) : T(a < 0 ? -1 : 0); });
}

template <class Wide, class T>
void add_wide(Table& t, const std::string& type) {
  t["mul.wide." + type] = op([](T a, T b) { return Wide(Wide(a) * Wide(b)); });
  t["mad.wide." + type] = op([](T a, T b, Wide c) { return Wide(uint64_t(Wide(a) * Wide(b)) + uint64_t(c)); });
}

template <class T>
void add_bits(Table& t, const std::string& bits) {
  const std::string type = "b" + bits;
  t["and." + type] = op([](T a, T b) { return T(a & b); });
  t["or." + type] = op([](T a, T b) { return T(a | b); });
  t["xor." + type] = op([](T a, T b) { return T(a ^ b); });
  t["not." + type] = op([](T a) { return T(~a); });
  t["shl." + type] = op([](T a, uint32_t n) { return n < 8 * sizeof(T) ? T(a << n) : T(0); });
  for (const char* same : {"selp.", "setp.eq.", "setp.ne."}) t[same + type] = t[same + ("u" + bits)];
}

uint64_t insert(uint64_t a, uint64_t b, uint32_t at, uint32_t length, uint32_t bits) {
  at &= 255;
  length &= 255;
  for (uint32_t i = 0; i < length && at + i < bits; ++i) b = (b & ~(1ull << (at + i))) | (a >> i & 1) << (at + i);
  return b;
}

/// `length` bits of a from bit `at` on, and zeros for those that a does not have.
uint32_t extract(uint32_t a, uint32_t at, uint32_t length) {
  at &= 255;
  length &= 255;
  uint32_t result = 0;
  for (uint32_t i = 0; i < length && at + i < 32; ++i) result |= (a >> (at + i) & 1) << i;
  return result;
}

/// Four bytes out of eight, chosen by four bits each, of which the highest asks for the byte's sign.
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> 4 * i, byte = uint32_t(bytes >> 8 * (choice & 7)) & 255;
    result |= (choice & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return result;
}

/// Every bit of the result by the table of truth `lut`.
uint32_t logic(uint32_t a, uint32_t b, uint32_t c, uint32_t lut) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i)
    if (lut >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}

// ------------------------------------------------------------------------- floating point

/// Operations on float32 have one NaN.
float canonical(float x) { return x == x ? x : get<float>(0x7fffffffu); }
double canonical(double x) { return x; }

template <class T>
T larger(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a > b || (a == b && std::signbit(b)) ? a : b;
}
template <class T>
T smaller(T a, T b) { return -larger(T(-a), T(-b)); }
template <class T>
T larger_or_nan(T a, T b) { return canonical(a != a ? a : b != b ? b : larger(a, b)); }

template <class T>
void add_floats(Table& t, const std::string& type) {
  for (const std::string rounding : {"", "rn."}) {
    t["add." + rounding + type] = op([](T a, T b) { return canonical(a + b); });
    t["sub." + rounding + type] = op([](T a, T b) { return canonical(a - b); });
    t["mul." + rounding + type] = op([](T a, T b) { return canonical(a * b); });
  }
  t["fma.rn." + type] = op([](T a, T b, T c) { return canonical(std::fma(a, b, c)); });
  t["div.rn." + type] = op([](T a, T b) { return canonical(a / b); });
  t["rcp.rn." + type] = op([](T a) { return canonical(T(1) / a); });
  t["sqrt.rn." + type] = op([](T a) { return canonical(std::sqrt(a)); });
  t["abs." + type] = op([](T a) { return std::fabs(a); });
  t["neg." + type] = op([](T a) { return -a; });
  t["min." + type] = op([](T a, T b) { return canonical(smaller(a, b)); });
  t["max." + type] = op([](T a, T b) { return canonical(larger(a, b)); });
  t["max.NaN." + type] = op([](T a, T b) { return larger_or_nan(a, b); });
  t["selp." + type] = op([](T a, T b, bool p) { return p ? a : b; });
  t["setp.eq." + type] = op([](T a, T b) { return a == b; });
  t["setp.ne." + type] = op([](T a, T b) { return a < b || a > b; });
  t["setp.lt." + type] = op([](T a, T b) { return a < b; });
  t["setp.le." + type] = op([](T a, T b) { return a <= b; });
  t["setp.gt." + type] = op([](T a, T b) { return a > b; });
  t["setp.ge." + type] = op([](T a, T b) { return a >= b; });
  // Unordered: true also with a NaN.
  t["setp.equ." + type] = op([](T a, T b) { return !(a < b || a > b); });
  t["setp.neu." + type] = op([](T a, T b) { return !(a == b); });
  t["setp.ltu." + type] = op([](T a, T b) { return !(a >= b); });
  t["setp.leu." + type] = op([](T a, T b) { return !(a > b); });
  t["setp.gtu." + type] = op([](T a, T b) { return !(a <= b); });
  t["setp.geu." + type] = op([](T a, T b) { return !(a < b); });
  t["setp.num." + type] = op([](T a, T b) { return a == a && b == b; });
  t["setp.nan." + type] = op([](T a, T b) { return a != a || b != b; });
}

/// The upper half of a float64, as far as approximations see and give it; subnormal numbers are zero.
double coarse(double x) {
  const double upper = get<double>(put(x) & ~0xffffffffull);
  return std::fabs(upper) < std::numeric_limits<double>::min() ? std::copysign(0.0, upper) : upper;
}

using gradkern::BFloat16;
using gradkern::Float16;

/// The larger of two halves of each register, with the NaN of the type. kMagnitudes: of |a| and |b|, with the product of
/// their signs.
template <class Half, bool kMagnitudes>
uint32_t larger_halves(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (const int shift : {0, 16}) {
    float x = gradkern::to_float(Half{uint16_t(a >> shift)}), y = gradkern::to_float(Half{uint16_t(b >> shift)});
    const bool negative = kMagnitudes && std::signbit(x) != std::signbit(y);
    if (kMagnitudes) x = std::fabs(x), y = std::fabs(y);
    const float most = larger_or_nan(x, y);
    const uint32_t bits = most == most ? gradkern::from_float<Half>(most).bits | (negative ? 0x8000u : 0u) : 0x7fffu;
    result |= bits << shift;
  }
  return result;
}

/// The smaller of two float16 of each register; of a number and a NaN, the number.
uint32_t smaller_halves(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (const int shift : {0, 16}) {
    const auto x = gradkern::to_float(Float16{uint16_t(a >> shift)}), y = gradkern::to_float(Float16{uint16_t(b >> shift)});
    const float least = std::fmin(x, y);
    result |= uint32_t(least == least ? gradkern::from_float<Float16>(least).bits : 0x7fffu) << shift;
  }
  return result;
}

/// 0xffff for each half of a that is less than that of b.
template <class Half>
uint32_t less_halves(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (const int shift : {0, 16})
    if (gradkern::to_float(Half{uint16_t(a >> shift)}) < gradkern::to_float(Half{uint16_t(b >> shift)})) result |= 0xffffu << shift;
  return result;
}

// ------------------------------------------------------------------------------ conversions

/// Nearest, ties to even, or towards zero; numbers out of the range become its ends.
template <class To, class From, bool kNearest>
To to_integer(From x) {
  constexpr bool kWide = sizeof(To) == 8 || sizeof(From) == 8;
  if (x != x) return kWide ? To(uint64_t(1) << (8 * sizeof(To) - 1)) : To(0);
  const From whole = kNearest ? std::nearbyint(x) : std::trunc(x);
  if (whole <= From(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (whole >= std::ldexp(From(1), std::numeric_limits<To>::digits)) return std::numeric_limits<To>::max();
  return To(whole);
}

template <class To>
void add_conversions_to(Table& t, const std::string& to) {
  t["cvt." + to + ".u8"] = op([](uint8_t x) { return To(x); });
  t["cvt." + to + ".s8"] = op([](int8_t x) { return To(x); });
  t["cvt." + to + ".u16"] = op([](uint16_t x) { return To(x); });
  t["cvt." + to + ".s16"] = op([](int16_t x) { return To(x); });
  t["cvt." + to + ".u32"] = op([](uint32_t x) { return To(x); });
  t["cvt." + to + ".s32"] = op([](int32_t x) { return To(x); });
  t["cvt." + to + ".u64"] = op([](uint64_t x) { return To(x); });
  t["cvt." + to + ".s64"] = op([](int64_t x) { return To(x); });
}
template <class To>
void add_conversions_to_integer(Table& t, const std::string& to) {
  add_conversions_to<To>(t, to);
  t["cvt.rzi." + to + ".f32"] = op([](float x) { return to_integer<To, float, false>(x); });
  t["cvt.rzi." + to + ".f64"] = op([](double x) { return to_integer<To, double, false>(x); });
  t["cvt.rni." + to + ".f32"] = op([](float x) { return to_integer<To, float, true>(x); });
  t["cvt.rni." + to + ".f64"] = op([](double x) { return to_integer<To, double, true>(x); });
}
template <class T>
void add_integer_type(Table& t, const std::string& type) {
  add_integers<T>(t, type);
  add_conversions_to_integer<T>(t, type);
}

void add_conversions(Table& t) {
  add_conversions_to_integer<uint8_t>(t, "u8");
  add_conversions_to_integer<int8_t>(t, "s8");
  add_conversions_to<float>(t, "rn.f32");
  add_conversions_to<double>(t, "rn.f64");
  t["cvt.f64.f32"] = op([](float x) { return double(x); });
  t["cvt.rn.f32.f64"] = op([](double x) { return canonical(float(x)); });
  t["cvt.rzi.f64.f64"] = op([](double x) { return std::trunc(x); });
  t["cvt.f32.f16"] = op([](uint16_t x) { return canonical(gradkern::to_float(Float16{x})); });
  t["cvt.f32.bf16"] = op([](uint16_t x) { return canonical(gradkern::to_float(BFloat16{x})); });
  t["cvt.rn.f16.f32"] = op([](float x) { return x == x ? gradkern::from_float<Float16>(x).bits : uint16_t(0x7fff); });
  t["cvt.rn.bf16.f32"] = op([](float x) { return x == x ? gradkern::from_float<BFloat16>(x).bits : uint16_t(0x7fff); });
}

// ------------------------------------------------------------------------------------ moves

/// One register to another, into parts of kBits / n bits or out of them.
template <uint32_t kBits>
void move(Warp& w, const Instruction& in) {
  const uint32_t parts = in.to_count > in.from_count ? in.to_count : in.from_count, bits = kBits / parts;
  const uint64_t mask = bits == 64 ? ~0ull : (1ull << bits) - 1;
  w.for_active([&](uint32_t lane) {
    uint64_t all = 0;
    for (uint32_t i = 0; i < in.from_count; ++i) all |= (w.at(in.from[i])[lane] & (in.from_count == 1 ? ~0ull : mask)) << i * bits;
    for (uint32_t i = 0; i < in.to_count; ++i) w.at(in.to[i])[lane] = in.to_count == 1 ? all : all >> i * bits & mask;
  });
}

Table make_table() {
  Table t;
  add_integer_type<uint16_t>(t, "u16"), add_integer_type<uint32_t>(t, "u32"), add_integer_type<uint64_t>(t, "u64");
  add_integer_type<int16_t>(t, "s16"), add_integer_type<int32_t>(t, "s32"), add_integer_type<int64_t>(t, "s64");
  add_wide<uint32_t, uint16_t>(t, "u16"), add_wide<uint64_t, uint32_t>(t, "u32"), add_wide<int64_t, int32_t>(t, "s32");
  add_bits<uint16_t>(t, "16"), add_bits<uint32_t>(t, "32"), add_bits<uint64_t>(t, "64");
  add_floats<float>(t, "f32"), add_floats<double>(t, "f64");
  add_conversions(t);
  t["and.pred"] = op([](bool a, bool b) { return a && b; });
  t["or.pred"] = op([](bool a, bool b) { return a || b; });
  t["xor.pred"] = op([](bool a, bool b) { return a != b; });
  t["not.pred"] = op([](bool a) { return !a; });
  t["popc.b32"] = op([](uint32_t a) { return uint32_t(__builtin_popcount(a)); });
  t["bfi.b32"] = op([](uint32_t a, uint32_t b, uint32_t at, uint32_t n) { return uint32_t(insert(a, b, at, n, 32)); });
  t["bfi.b64"] = op([](uint64_t a, uint64_t b, uint32_t at, uint32_t n) { return insert(a, b, at, n, 64); });
  t["bfe.u32"] = op([](uint32_t a, uint32_t at, uint32_t n) { return extract(a, at, n); });
  t["prmt.b32"] = op([](uint32_t a, uint32_t b, uint32_t c) { return permute(a, b, c); });
  t["lop3.b32"] = op([](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return logic(a, b, c, d); });
  t["rcp.approx.ftz.f64"] = op([](double x) { return coarse(1 / coarse(x)); });
  t["rsqrt.approx.ftz.f64"] = op([](double x) { return coarse(1 / std::sqrt(coarse(x))); });
  t["abs.f16x2"] = op([](uint32_t a) { return a & 0x7fff7fffu; });
  t["abs.bf16x2"] = t["abs.f16x2"];
  t["set.lt.u32.f16x2"] = op([](uint32_t a, uint32_t b) { return less_halves<Float16>(a, b); });
  t["set.lt.u32.bf16x2"] = op([](uint32_t a, uint32_t b) { return less_halves<BFloat16>(a, b); });
  t["min.f16x2"] = op([](uint32_t a, uint32_t b) { return smaller_halves(a, b); });
  t["max.NaN.f16x2"] = op([](uint32_t a, uint32_t b) { return larger_halves<Float16, false>(a, b); });
  t["max.NaN.bf16x2"] = op([](uint32_t a, uint32_t b) { return larger_halves<BFloat16, false>(a, b); });
  t["max.NaN.xorsign.abs.f16x2"] = op([](uint32_t a, uint32_t b) { return larger_halves<Float16, true>(a, b); });
  t["max.NaN.xorsign.abs.bf16x2"] = op([](uint32_t a, uint32_t b) { return larger_halves<BFloat16, true>(a, b); });
  for (const char* type : {"pred", "b16", "u16", "s16"}) t[std::string("mov.") + type] = move<16>;
  for (const char* type : {"b32", "u32", "s32", "f32"}) t[std::string("mov.") + type] = move<32>;
  for (const char* type : {"b64", "u64", "s64", "f64"}) t[std::string("mov.") + type] = move<64>;
  return t;
}

}  // namespace

Handler lanewise(const std::string& opcode) {
  static const Table table = make_table();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx
