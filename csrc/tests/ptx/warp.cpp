#include "warp.h"

#include <cstdlib>
#include <stdexcept>

namespace ptx {

constexpr uint64_t kNoMemory = 1 << 16;  ///< addresses below are null pointers or those of another space

WarpMemory::WarpMemory(const Program& program)
    : registers(static_cast<uint64_t*>(std::calloc(program.registers, kLanes * sizeof(uint64_t)))),
      local(static_cast<unsigned char*>(std::calloc(program.local_bytes + 1, kLanes))) {}
void WarpMemory::Free::operator()(void* memory) const { std::free(memory); }

Warp::Warp(const Launch& launch, uint32_t block, unsigned char* shared, uint32_t first_thread, std::unique_ptr<WarpMemory> memory)
    : launch_(launch),
      memory_(std::move(memory)),
      registers_(memory_->registers.get()),
      constants_(const_cast<uint64_t*>(launch.program->constants.data())),
      shared_(shared),
      local_(memory_->local.get()) {
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    at(kTid)[lane] = first_thread + lane;
    at(kNtid)[lane] = launch.threads;
    at(kCtaid)[lane] = block;
    at(kNctaid)[lane] = launch.blocks;
    at(kLaneid)[lane] = lane;
    if (first_thread + lane >= launch.threads) stopped_ |= 1u << lane;
  }
  ready_ = ~stopped_;
  place(~0u, launch.entry.begin);
}

void Warp::place(uint32_t lanes, uint32_t pc) {
  for (; lanes; lanes &= lanes - 1) place_[__builtin_ctz(lanes)] = pc;
}

/// Chooses the ready lanes at the lowest place.
bool Warp::choose() {
  if (!ready_) return false;
  pc_ = others_at_ = ~0u;
  for (uint32_t left = ready_; left; left &= left - 1) {
    const auto lane = uint32_t(__builtin_ctz(left));
    if (place_[lane] < pc_) {
      others_at_ = pc_;
      pc_ = place_[lane];
      group_ = 0;
    }
    if (place_[lane] == pc_) group_ |= 1u << lane;
    else if (place_[lane] < others_at_) others_at_ = place_[lane];
  }
  regroup_ = false;
  return true;
}

uint32_t Warp::guarded(const Instruction& in) {
  const uint64_t* guard = at(in.guard);
  uint32_t lanes = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) lanes |= uint32_t(guard[lane] & 1) << lane;
  return group_ & (in.unless ? ~lanes : lanes);
}

void Warp::run(uint64_t most) {
  const Instruction* code = launch_.program->code.data();
  while (most && choose()) {
    do {
      launch_.executed[pc_] = 1;
      const Instruction& in = code[pc_++];
      active_ = in.guard == kNoSlot ? group_ : guarded(in);
      if (active_) in.run(*this, in);
      --most;
    } while (most && !regroup_ && pc_ < others_at_);
    if (!regroup_) place(group_, pc_);
  }
}

// ------------------------------------------------------------------------- control flow

void Warp::jump(uint32_t to) {
  if (active_ == group_) {
    pc_ = to;
    return;
  }
  place(group_, pc_);
  place(active_, to);
  regroup_ = true;
}

void Warp::jump(const uint64_t* to) {
  place(group_, pc_);
  for_active([&](uint32_t lane) { place_[lane] = uint32_t(to[lane]); });
  regroup_ = true;
}

void Warp::stop() {
  place(group_, pc_);
  stopped_ |= active_;
  ready_ &= ~active_;
  regroup_ = true;
}

void Warp::wait_at_barrier() {
  place(group_, pc_);
  barrier_ |= active_;
  ready_ &= ~active_;
  regroup_ = true;
}

void Warp::pass_barrier() {
  ready_ |= barrier_;
  barrier_ = 0;
}

uint32_t Warp::meet(const Instruction& in, uint32_t members) {
  if (active_ & ~members) fail(in, "a lane that is not in its own mask");
  const uint32_t here = pc_ - 1;
  uint32_t arrived = active_;
  for (uint32_t left = meeting_; left; left &= left - 1) {
    const auto lane = uint32_t(__builtin_ctz(left));
    if (place_[lane] == here) arrived |= 1u << lane;
  }
  const bool all = (arrived & members) == members;
  if (arrived == group_ && all) return arrived;
  place(group_, pc_);
  place(arrived, all ? pc_ : here);
  meeting_ = all ? meeting_ & ~arrived : meeting_ | arrived;
  ready_ = all ? ready_ | arrived : ready_ & ~arrived;
  regroup_ = true;
  return all ? arrived : 0;
}

void branch(Warp& w, const Instruction& in) { w.jump(in.target); }
void call(Warp& w, const Instruction& in) {
  uint64_t* to = w.at(in.to[0]);
  w.for_active([&](uint32_t lane) { to[lane] = w.next(); });
  w.jump(in.target);
}
void leave(Warp& w, const Instruction& in) { w.jump(w.at(in.from[0])); }
void stop(Warp& w, const Instruction&) { w.stop(); }

// ------------------------------------------------------------------------------- memory

uint64_t Warp::base(Space space, uint32_t lane) const {
  switch (space) {
    case Space::kShared: return reinterpret_cast<uint64_t>(shared_);
    case Space::kLocal: return reinterpret_cast<uint64_t>(local_) + lane * launch_.program->local_bytes;
    case Space::kParam: return reinterpret_cast<uint64_t>(launch_.params);
    default: return 0;
  }
}

unsigned char* Warp::checked(const Instruction& in, uint32_t lane, uint64_t address, size_t bytes) {
  if (address % bytes) fail(in, "an address that is not aligned");
  const Program& program = *launch_.program;
  const size_t sizes[] = {0, 0, program.shared_bytes, program.local_bytes, launch_.entry.param_bytes};
  const auto space = in.space;
  if (space <= Space::kGlobal && address < kNoMemory) fail(in, "an address without memory");
  if (space == Space::kGlobal) {
    const auto within = [&](Space other, size_t size) { return address - base(other, 0) < size; };
    if (within(Space::kShared, program.shared_bytes) || within(Space::kParam, launch_.entry.param_bytes) ||
        within(Space::kLocal, program.local_bytes * kLanes))
      fail(in, "an address that is not global");
  } else if (space != Space::kGeneric && address + bytes > sizes[size_t(space)]) {
    fail(in, "an address outside the memory");
  }
  return reinterpret_cast<unsigned char*>(base(space, lane) + address);
}

void Warp::fail(const Instruction& in, const std::string& what) const {
  const Program& p = *launch_.program;
  throw std::runtime_error(p.name + ":" + std::to_string(in.line) + ": " + what + ": " + p.lines[in.line - 1]);
}

std::string Warp::where() const {
  std::string text;
  for (uint32_t lane = 0; lane < kLanes; ++lane)
    if (!(stopped_ >> lane & 1)) text.append(" ").append(std::to_string(launch_.program->code[place_[lane]].line));
  return text;
}

}  // namespace ptx
