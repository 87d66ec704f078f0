// Test only: a warp of a launch. Its lanes execute each instruction together as far as they are at the same place. Those
// at the lowest address go first, so that diverged lanes meet again.
#pragma once

#include <cstring>
#include <memory>

#include "program.h"

namespace ptx {

/// What every thread of a launch sees.
struct Launch {
  const Program* program;
  Entry entry;
  uint32_t blocks, threads;
  const unsigned char* params;
  uint8_t* executed;  ///< [instructions]: becomes 1
};

/// The memory of a warp: its registers and the local memory of its lanes. Not initialised.
struct WarpMemory {
  explicit WarpMemory(const Program& program);
  struct Free {
    void operator()(void* memory) const;
  };
  std::unique_ptr<uint64_t[], Free> registers;
  std::unique_ptr<unsigned char[], Free> local;
};

class Warp {
 public:
  Warp(const Launch& launch, uint32_t block, unsigned char* shared, uint32_t first_thread, std::unique_ptr<WarpMemory> memory);

  /// Executes instructions until no lane is ready, or `most` of them.
  void run(uint64_t most);
  bool ready() const { return ready_ != 0; }
  bool finished() const { return stopped_ == ~0u; }
  /// Whether every lane that has not stopped waits at the block's barrier.
  bool at_barrier() const { return (barrier_ | stopped_) == ~0u; }
  void pass_barrier();
  std::string where() const;  ///< the lines of lanes that have not stopped
  std::unique_ptr<WarpMemory> take_memory() { return std::move(memory_); }

  // For handlers.
  uint64_t* at(Slot slot) {
    return slot & kConstant ? constants_ + size_t(slot & ~kConstant) * kLanes : registers_ + size_t(slot) * kLanes;
  }
  uint32_t active() const { return active_; }
  template <class Visit>
  void for_active(const Visit& visit) const {
    if (active_ == ~0u) {
#pragma GCC ivdep
      for (uint32_t lane = 0; lane < kLanes; ++lane) visit(lane);
    } else {
      for (uint32_t left = active_; left; left &= left - 1) visit(uint32_t(__builtin_ctz(left)));
    }
  }
  /// The host address of an access, which is checked; at the given address of a space, whose lane matters for local memory.
  unsigned char* checked(const Instruction& in, uint32_t lane, uint64_t address, size_t bytes);
  /// The host address at which a space begins.
  uint64_t base(Space space, uint32_t lane) const;
  [[noreturn]] void fail(const Instruction& in, const std::string& what) const;

  void jump(uint32_t to);                     ///< the active lanes
  void jump(const uint64_t* to);              ///< each to its own place
  void stop();
  void wait_at_barrier();
  uint32_t next() const { return pc_; }
  /// The lanes that execute a collective instruction now: all `members`, or none until all are there.
  uint32_t meet(const Instruction& in, uint32_t members);

 private:
  bool choose();
  uint32_t guarded(const Instruction& in);
  void place(uint32_t lanes, uint32_t pc);

  const Launch& launch_;
  std::unique_ptr<WarpMemory> memory_;
  uint64_t *registers_, *constants_;
  unsigned char *shared_, *local_;
  // Lanes, as bits: those that can go on, wait for others of the warp, wait at the block's barrier, are at an end.
  uint32_t ready_ = ~0u, meeting_ = 0, barrier_ = 0, stopped_ = 0;
  uint32_t group_ = 0, active_ = 0;     ///< lanes at the current place, and those of them whose guard is true
  uint32_t pc_ = 0, others_at_ = 0;     ///< the next instruction, and the lowest place of other lanes
  bool regroup_ = false;                ///< the places of lanes are in place_
  uint32_t place_[kLanes];
};

}  // namespace ptx
