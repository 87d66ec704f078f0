// Instructions that the lanes of a warp, or the threads of a block, execute together.
#include "lanes.h"

namespace ptx {
namespace {

/// Calls execute(lanes) if all lanes are there that the mask in operand `mask` names.
template <class Execute>
void together(Warp& w, const Instruction& in, int mask, const Execute& execute) {
  const uint64_t* masks = w.at(in.from[mask]);
  const auto members = uint32_t(masks[__builtin_ctz(w.active())]);
  w.for_active([&](uint32_t lane) {
    if (uint32_t(masks[lane]) != members) w.fail(in, "lanes with different masks");
  });
  if (const uint32_t lanes = w.meet(in, members)) execute(lanes);
}

template <class Visit>
void for_each_lane(uint32_t lanes, const Visit& visit) {
  for (; lanes; lanes &= lanes - 1) visit(uint32_t(__builtin_ctz(lanes)));
}

enum class From { kIndex, kDown, kXor };

/// The lane whose value `lane` gets. PTX ISA, "shfl.sync"; segments of less than 32 lanes are not in use.
template <From kFrom>
uint32_t source_lane(uint32_t lane, uint32_t b) {
  return kFrom == From::kIndex ? b & 31 : kFrom == From::kDown ? lane + (b & 31) : lane ^ (b & 31);
}

template <From kFrom>
void shuffle(Warp& w, const Instruction& in) {
  together(w, in, 3, [&](uint32_t lanes) {
    const uint64_t *a = w.at(in.from[0]), *b = w.at(in.from[1]), *c = w.at(in.from[2]);
    uint64_t values[kLanes];
    std::memcpy(values, a, sizeof(values));
    for_each_lane(lanes, [&](uint32_t lane) {
      if ((c[lane] & 0x1f1f) != 31) w.fail(in, "a segment of less than a warp");
      const uint32_t from = source_lane<kFrom>(lane, uint32_t(b[lane]));
      const bool valid = from < kLanes;
      if (valid && !(lanes >> from & 1)) w.fail(in, "a value of a lane that is not there");
      w.at(in.to[0])[lane] = values[valid ? from : lane];
      if (in.to_count == 2) w.at(in.to[1])[lane] = valid;
    });
  });
}

/// All lanes get reduce(sum so far, value) over all of them.
template <class Reduce>
void reduce(Warp& w, const Instruction& in) {
  together(w, in, 1, [&](uint32_t lanes) {
    const uint64_t* values = w.at(in.from[0]);
    uint32_t result = 0;
    for_each_lane(lanes, [&](uint32_t lane) { result = Reduce()(result, uint32_t(values[lane]), lane); });
    for_each_lane(lanes, [&](uint32_t lane) { w.at(in.to[0])[lane] = result; });
  });
}

template <class Reduce>
Handler reduction(Reduce) { return reduce<Reduce>; }

void warp_barrier(Warp& w, const Instruction& in) {
  together(w, in, 0, [](uint32_t) {});
}

void block_barrier(Warp& w, const Instruction& in) {
  if (in.from_count != 1 || w.at(in.from[0])[0] != 0) w.fail(in, "a barrier other than that of all threads");
  w.wait_at_barrier();
}

/// Fences and hints: launches run one after the other, and memory is consistent.
void nothing(Warp&, const Instruction&) {}

}  // namespace

Handler collective(const std::string& opcode) {
  static const std::map<std::string, Handler> table = {
      {"shfl.sync.idx.b32", shuffle<From::kIndex>},
      {"shfl.sync.down.b32", shuffle<From::kDown>},
      {"shfl.sync.bfly.b32", shuffle<From::kXor>},
      {"vote.sync.ballot.b32", reduction([](uint32_t all, uint32_t own, uint32_t lane) { return all | (own & 1) << lane; })},
      {"redux.sync.add.u32", reduction([](uint32_t all, uint32_t own, uint32_t) { return all + own; })},
      {"redux.sync.max.u32", reduction([](uint32_t all, uint32_t own, uint32_t) { return all > own ? all : own; })},
      {"bar.warp.sync", warp_barrier},
      {"bar.sync", block_barrier},
      {"membar.gl", nothing},
      {"griddepcontrol.wait", nothing},
      {"griddepcontrol.launch_dependents", nothing},
  };
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace ptx
