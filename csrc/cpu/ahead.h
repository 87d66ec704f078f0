// What a loop over the elements of a chunk asks memory for ahead of its reads.
//
// The processor's own look-ahead ends with a page, and the next chunk lies elsewhere: a loop asks for the lines
// kPrefetchBytes ahead in its chunk and, towards its end, for the beginning of the one that follows.
#pragma once

#include "core/prefetch.h"
#include "cpu/vectors.h"

namespace gradkern::cpu {
namespace {

/// Of a loop over [0, whole) in steps of kStep elements, as its lines are asked for in parts: those of the chunk that
/// ends at `end`, those of what follows, and none.
///
///     while (ahead.next_part(i))
///       for (; i < ahead.until; i += kStep) { ahead.ask(i); … }
template <class T, int64_t kStep>
class AheadOf {
 public:
  int64_t until = 0;

  GRADKERN_HD AheadOf(const T* data, int64_t whole, const T* end, Following following)
      : whole_(whole), own_(end - data - kAhead), following_(own_ + following.bytes / int64_t(sizeof(T))),
        data_(reinterpret_cast<uintptr_t>(data)), following_data_(reinterpret_cast<uintptr_t>(following.data)) {}

  /// Whether anything is left of the loop at `i`.
  GRADKERN_HD bool next_part(int64_t i) {
    if (i >= whole_) return false;
    asks_ = i < following_;
    base_ = i < own_ ? data_ + kPrefetchBytes : following_data_ - uintptr_t(own_) * sizeof(T);
    until = i < own_ ? own_ : asks_ ? following_ : whole_;
    if (until > whole_) until = whole_;
    return true;
  }

  GRADKERN_HD void ask(int64_t i) const {
    if (!asks_) return;
#pragma GCC unroll 4
    for (int64_t line = 0; line < kStep; line += kPerLine)
      __builtin_prefetch(reinterpret_cast<const void*>(base_ + uintptr_t(i + line) * sizeof(T)));
  }

 private:
  static constexpr int64_t kAhead = kPrefetchBytes / int64_t(sizeof(T)), kPerLine = kCacheLine / int64_t(sizeof(T));
  static_assert(kStep % kPerLine == 0);

  int64_t whole_, own_, following_;
  uintptr_t data_, following_data_, base_ = 0;
  bool asks_ = false;
};

}  // namespace
}  // namespace gradkern::cpu
