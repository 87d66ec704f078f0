// The processor's flush-to-zero mode, which is per thread (torch.set_flush_denormal).
//
// Measuring turns it off, so that subnormal gradients count. Writing uses the caller's mode in all
// threads, so that the result does not depend on which thread scales a gradient.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gradkern::cpu {

struct FloatingPointMode {
  uint64_t flush_bits;

#if defined(__x86_64__)
  static constexpr uint64_t kFlush = 0x8040;  // MXCSR: flush-to-zero, denormals-are-zero
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t control) { _mm_setcsr(unsigned(control)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = uint64_t(1) << 24;  // FPCR.FZ
  static uint64_t read() {
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void write(uint64_t control) { asm volatile("msr fpcr, %0" ::"r"(control)); }
#else
  static constexpr uint64_t kFlush = 0;
  static uint64_t read() { return 0; }
  static void write(uint64_t) {}
#endif

  static FloatingPointMode exact() { return {0}; }
  static FloatingPointMode current() { return {read() & kFlush}; }
};

class ScopedFloatingPointMode {
 public:
  explicit ScopedFloatingPointMode(FloatingPointMode mode) : saved_(FloatingPointMode::read()) {
    FloatingPointMode::write((saved_ & ~FloatingPointMode::kFlush) | mode.flush_bits);
  }
  ~ScopedFloatingPointMode() { FloatingPointMode::write(saved_); }
  ScopedFloatingPointMode(const ScopedFloatingPointMode&) = delete;
  ScopedFloatingPointMode& operator=(const ScopedFloatingPointMode&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace gradkern::cpu
