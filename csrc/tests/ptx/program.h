// Test only: PTX, as nvcc writes it, decoded for execution on the host (warp.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

constexpr uint32_t kLanes = 32;

class Warp;
struct Instruction;
/// Executes an instruction in the active lanes of a warp.
using Handler = void (*)(Warp&, const Instruction&);

/// The place of a register, which has 64 bits in every lane, or of a constant.
using Slot = uint32_t;
constexpr Slot kConstant = 1u << 31;
constexpr Slot kNoSlot = kConstant - 1;
/// The first registers of every warp.
enum SpecialRegister : Slot { kTid, kNtid, kCtaid, kNctaid, kLaneid, kSink, kFirstFree };

/// Generic and global addresses are those of the host. In the other spaces they begin at zero.
enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParam };

struct Instruction {
  static constexpr int kMostTo = 4, kMostFrom = 5;
  Handler run = nullptr;
  Slot to[kMostTo] = {}, from[kMostFrom] = {};  ///< `from` of a load or a store begins with the address
  uint8_t to_count = 0, from_count = 0;
  Space space = Space::kGeneric;
  bool unless = false;    ///< executed where the guard is false
  Slot guard = kNoSlot;
  uint32_t target = 0;    ///< of a branch or a call
  uint32_t line = 0;      ///< in the text
  int64_t offset = 0;     ///< of the address
};

struct Entry {
  uint32_t begin = 0;
  size_t param_bytes = 0;
};

struct Program {
  std::string name;
  std::vector<std::string> lines;  ///< the text, for messages
  std::vector<Instruction> code;
  std::vector<uint64_t> constants;       ///< [n][kLanes]
  std::map<std::string, Entry> entries;  ///< the kernels, by demangled name
  uint32_t registers = kFirstFree;
  size_t local_bytes = 0;  ///< of a lane: local variables, and parameters of functions
  size_t shared_bytes = 0;
};

/// Throws std::runtime_error, with the line, for whatever it does not know.
Program parse(const std::string& name, const std::string& text);

// The handlers of instructions, by opcode, or null. Those with addresses set the space.
Handler lanewise(const std::string& opcode);
Handler collective(const std::string& opcode);
Handler memory_access(const std::string& opcode, Instruction& in);
Handler address_conversion(const std::string& opcode, Instruction& in);

// Control flow.
void branch(Warp&, const Instruction&);
void call(Warp&, const Instruction&);  ///< to: the register for the place to return to
void leave(Warp&, const Instruction&);  ///< from: likewise
void stop(Warp&, const Instruction&);
/// Parameters of calls, which are in local memory. from: constants: the places to and from, and the bytes.
void copy_local(Warp&, const Instruction&);

}  // namespace ptx
