// The prefetches of a loop over the elements of a chunk.
//
// The hardware prefetcher stops at the end of a page, and the next chunk may be anywhere. The loop therefore prefetches
// the lines kPrefetchBytes ahead in its chunk and, near its end, the beginning of what is read next.
#pragma once

#include "core/prefetch.h"
#include "cpu/vectors.h"

namespace gradkern::cpu {
namespace {

/// For a loop over [0, whole) in steps of kStep elements, which is run in three parts: one that prefetches the chunk,
/// which ends at `end`, one that prefetches `following`, and one that prefetches nothing.
///
///     while (prefetches.next_part(i))
///       for (; i < prefetches.until; i += kStep) { prefetches.at(i); … }
template <class T, int64_t kStep>
class Prefetches {
 public:
  int64_t until = 0;  ///< the end of the part

  GRADKERN_HD Prefetches(const T* data, int64_t whole, const T* end, Following following)
      : whole_(whole), own_(end - data - kAhead), following_(own_ + following.bytes / int64_t(sizeof(T))),
        data_(reinterpret_cast<uintptr_t>(data)), following_data_(reinterpret_cast<uintptr_t>(following.data)) {}

  /// Begins the part that has step `i`. False at the end of the loop.
  GRADKERN_HD bool next_part(int64_t i) {
    if (i >= whole_) return false;
    any_ = i < following_;
    base_ = i < own_ ? data_ + kPrefetchBytes : following_data_ - uintptr_t(own_) * sizeof(T);
    until = i < own_ ? own_ : any_ ? following_ : whole_;
    if (until > whole_) until = whole_;
    return true;
  }

  /// The prefetches of step `i`.
  GRADKERN_HD void at(int64_t i) const {
    if (!any_) return;
#pragma GCC unroll 4
    for (int64_t line = 0; line < kStep; line += kPerLine)
      __builtin_prefetch(reinterpret_cast<const void*>(base_ + uintptr_t(i + line) * sizeof(T)));
  }

 private:
  static constexpr int64_t kAhead = kPrefetchBytes / int64_t(sizeof(T)), kPerLine = kCacheLine / int64_t(sizeof(T));
  static_assert(kStep % kPerLine == 0);

  int64_t whole_, own_, following_;  // elements: all steps, those that prefetch the chunk, those that prefetch anything
  uintptr_t data_, following_data_, base_ = 0;
  bool any_ = false;
};

}  // namespace
}  // namespace gradkern::cpu
