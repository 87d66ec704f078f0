// Software prefetch.
#pragma once

#include <cstdint>

namespace gradkern {

/// The prefetch distance of loops over elements. The hardware prefetcher stops at the end of a page.
/// Measured: 2 to 4 KiB are equally fast, 1 KiB is slower, more gains nothing.
constexpr int64_t kPrefetchBytes = 3072;

constexpr int64_t kCacheLine = 64;

/// The memory that is read next. A loop prefetches it before its own end.
struct Following {
  const void* data = nullptr;
  int64_t bytes = 0;
};

/// Prefetches `bytes` bytes at `address`. The address need not be valid.
inline void prefetch(const void* address, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t line = begin & ~uintptr_t(kCacheLine - 1); line < begin + uintptr_t(bytes); line += kCacheLine)
    __builtin_prefetch(reinterpret_cast<const void*>(line));
}

}  // namespace gradkern
