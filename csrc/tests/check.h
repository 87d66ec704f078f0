// The smallest test framework that says where and with what values a check failed.
#pragma once

#include <cmath>
#include <cstdio>

namespace gradkern::test {

inline int failures = 0;
inline int checks = 0;

inline void report(bool ok, const char* file, int line, const char* what, double got, double expected) {
  ++checks;
  if (ok) return;
  if (++failures <= 20)
    std::printf("%s:%d: %s: got %.17g, expected %.17g\n", file, line, what, got, expected);
}

inline int finish(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, checks, failures);
  return failures == 0 ? 0 : 1;
}

inline void report_equal(double got, double expected, const char* file, int line, const char* what) {
  report(got == expected || (got != got && expected != expected), file, line, what, got, expected);
}

inline void report_near(double got, double expected, double relative, const char* file, int line,
                        const char* what) {
  const bool both_nan = got != got && expected != expected;
  const bool near = std::fabs(got - expected) <= relative * std::fabs(expected);
  report(got == expected || both_nan || near, file, line, what, got, expected);
}

}  // namespace gradkern::test

#define CHECK(condition) \
  ::gradkern::test::report(bool(condition), __FILE__, __LINE__, #condition, 0, 1)
#define CHECK_EQ(got, expected)                                                         \
  ::gradkern::test::report_equal(double(got), double(expected), __FILE__, __LINE__,     \
                                 #got " == " #expected)
#define CHECK_NEAR(got, expected, relative)                                             \
  ::gradkern::test::report_near(double(got), double(expected), relative, __FILE__, __LINE__, \
                                #got " ~ " #expected)
