// Test only: describes CUDA's synchronisation to ThreadSanitizer. Without it all of this is empty.
//
// Every GPU thread is a fiber with a clock of its own, new for each block as are its stack and the block's shared memory.
// A launch is ordered after what the host did and before what it does next; blocks are not ordered. A barrier orders the
// block's threads. A fence publishes nothing by itself: as in C++ and PTX, an atomic operation of the same
// thread after its fence carries what came before the fence, and another thread has it after an atomic operation on the
// same location and then a fence of its own. Shuffles exchange values and order no memory.
#pragma once

#include <cstddef>
#include <cstdlib>

#if defined(CUDA_SHIM_RACES)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_shim::race {

#if defined(CUDA_SHIM_RACES)
constexpr bool kOn = true;
inline void* current() { return __tsan_get_current_fiber(); }
inline void* create() { return __tsan_create_fiber(0); }
inline void destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }  // 1: orders nothing
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
#else
constexpr bool kOn = false;
inline void* current() { return nullptr; }
inline void* create() { return nullptr; }
inline void destroy(void*) {}
inline void switch_to(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
#endif

/// A list that allocates nothing: memory that a fiber allocates would be a race where another frees it.
template <class T, size_t kMost>
struct List {
  T items[kMost];
  size_t size = 0;
  T& add(const T& item) {
    if (size == kMost) std::abort();
    return items[size++] = item;
  }
  const T* begin() const { return items; }
  const T* end() const { return items + size; }
  T* begin() { return items; }
  T* end() { return items + size; }
};

using Tokens = List<void*, 16>;

/// Of one GPU thread: the clock at its last fence, and what it has seen in atomics and not yet fenced.
struct Fences {
  char clock = 0;
  bool fenced = false;
  Tokens seen;

  void fence() {
    for (void* token : seen) acquire(token);
    seen.size = 0;
    release(&clock);
    fenced = true;
  }
  /// An atomic read-modify-write of `location`, whose release sequence is `writers`.
  void atomic(Tokens& writers) {
    for (void* token : writers) seen.add(token);
    if (fenced) writers.add(&clock);
  }
};

}  // namespace cuda_shim::race
