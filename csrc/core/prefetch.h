// Asking for memory before it is needed.
#pragma once

#include <cstdint>

namespace gradkern {

/// How far ahead a loop over elements asks: what a core reads while memory answers. The processor's
/// own look-ahead ends with the page. (Measured: 2 to 4 KiB alike, 1 KiB less, beyond nothing gained.)
constexpr int64_t kPrefetchBytes = 3072;

constexpr int64_t kCacheLine = 64;

/// Memory that is read next: a loop asks for it while it comes to its end.
struct Following {
  const void* data = nullptr;
  int64_t bytes = 0;
};

/// Starts bringing `bytes` from `address` on into the cache; any address will do, none is read.
inline void prefetch(const void* address, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t line = begin & ~uintptr_t(kCacheLine - 1); line < begin + uintptr_t(bytes); line += kCacheLine)
    __builtin_prefetch(reinterpret_cast<const void*>(line));
}

}  // namespace gradkern
