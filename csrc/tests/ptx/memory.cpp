// Loads, stores, atomic operations and addresses.
#include <sstream>

#include "grid.h"
#include "lanes.h"

namespace ptx {

uint64_t vectors_loaded = 0;

namespace {

template <class T>
void load(Warp& w, const Instruction& in) {
  const uint64_t* address = w.at(in.from[0]);
  w.for_active([&](uint32_t lane) {
    const unsigned char* from = w.checked(in, lane, address[lane] + uint64_t(in.offset), in.to_count * sizeof(T));
    T values[Instruction::kMostTo];  // the address may be overwritten
    for (int i = 0; i < in.to_count; ++i) std::memcpy(&values[i], from + size_t(i) * sizeof(T), sizeof(T));
    for (int i = 0; i < in.to_count; ++i) w.at(in.to[i])[lane] = put(values[i]);
  });
  if (in.space == Space::kGlobal && in.to_count * sizeof(T) == 16) vectors_loaded += uint64_t(__builtin_popcount(w.active()));
}

template <class T>
void store(Warp& w, const Instruction& in) {
  const uint64_t* address = w.at(in.from[0]);
  const int count = in.from_count - 1;
  w.for_active([&](uint32_t lane) {
    unsigned char* to = w.checked(in, lane, address[lane] + uint64_t(in.offset), size_t(count) * sizeof(T));
    for (int i = 0; i < count; ++i) {
      const T value = get<T>(w.at(in.from[i + 1])[lane]);
      std::memcpy(to + size_t(i) * sizeof(T), &value, sizeof(T));
    }
  });
}

/// One lane after the other.
template <class Function>
void atomic(Warp& w, const Instruction& in) {
  using T = decltype(Function()(0, 0));
  const uint64_t *address = w.at(in.from[0]), *operand = w.at(in.from[1]);
  w.for_active([&](uint32_t lane) {
    unsigned char* at = w.checked(in, lane, address[lane] + uint64_t(in.offset), sizeof(T));
    T before;
    std::memcpy(&before, at, sizeof(T));
    const T after = Function()(before, get<T>(operand[lane]));
    std::memcpy(at, &after, sizeof(T));
    if (in.to_count) w.at(in.to[0])[lane] = put(before);
  });
}

template <class Function>
Handler atomic_of(Function) { return atomic<Function>; }

/// Between addresses of a space and generic ones.
template <bool kFromGeneric>
void convert_address(Warp& w, const Instruction& in) {
  uint64_t* to = w.at(in.to[0]);
  const uint64_t* from = w.at(in.from[0]);
  w.for_active([&](uint32_t lane) {
    const uint64_t base = w.base(in.space, lane);
    to[lane] = kFromGeneric ? from[lane] - base : from[lane] + base;
  });
}

using Handlers = std::map<std::string, std::pair<Handler, Handler>>;  // a load and a store
template <class T>
void both(Handlers& handlers, const char* letters, const char* bits) {
  for (; *letters; ++letters) handlers[std::string(1, *letters) + bits] = {load<T>, store<T>};
}

const Handlers& handlers_of_types() {
  static const Handlers all = [] {
    Handlers h;
    both<uint8_t>(h, "ub", "8"), both<uint16_t>(h, "ub", "16"), both<uint32_t>(h, "ubf", "32"), both<uint64_t>(h, "ubf", "64");
    both<int8_t>(h, "s", "8"), both<int16_t>(h, "s", "16"), both<int32_t>(h, "s", "32"), both<int64_t>(h, "s", "64");
    return h;
  }();
  return all;
}

bool space_named(const std::string& word, Space& space) {
  static const std::map<std::string, Space> all = {
      {"global", Space::kGlobal}, {"shared", Space::kShared}, {"local", Space::kLocal}, {"param", Space::kParam}};
  const auto found = all.find(word);
  if (found != all.end()) space = found->second;
  return found != all.end();
}

std::vector<std::string> parts_of(const std::string& opcode) {
  std::vector<std::string> parts;
  std::istringstream in(opcode);
  for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
  return parts;
}

}  // namespace

Handler memory_access(const std::string& opcode, Instruction& in) {
  static const std::map<std::string, Handler> atomics = {
      {"add.u32", atomic_of([](uint32_t a, uint32_t b) { return a + b; })},
      {"exch.b32", atomic_of([](uint32_t, uint32_t b) { return b; })},
  };
  const std::vector<std::string> parts = parts_of(opcode);
  const std::string& head = parts[0];
  if (head != "ld" && head != "st" && head != "atom" && head != "red") return nullptr;
  size_t i = parts.size() > 1 && parts[1] == "volatile" ? 2 : 1;  // what is executed as written is volatile in any case
  if (i < parts.size() && space_named(parts[i], in.space)) ++i;
  if (head == "atom" || head == "red") {
    const auto found = parts.size() == i + 2 ? atomics.find(parts[i] + "." + parts[i + 1]) : atomics.end();
    return found == atomics.end() ? nullptr : found->second;
  }
  // The number of operands tells the vector's length; hints change nothing.
  for (; i + 1 < parts.size(); ++i)
    if (parts[i] != "v2" && parts[i] != "v4" && parts[i] != "nc" && parts[i] != "L1::no_allocate") return nullptr;
  const auto found = handlers_of_types().find(parts.back());
  if (found == handlers_of_types().end()) return nullptr;
  return head == "ld" ? found->second.first : found->second.second;
}

Handler address_conversion(const std::string& opcode, Instruction& in) {
  const std::vector<std::string> parts = parts_of(opcode);
  if (parts[0] != "cvta" || parts.back() != "u64") return nullptr;
  const bool from_generic = parts[1] == "to";
  if (parts.size() != (from_generic ? 4 : 3) || !space_named(parts[from_generic ? 2 : 1], in.space)) return nullptr;
  return from_generic ? convert_address<true> : convert_address<false>;
}

void copy_local(Warp& w, const Instruction& in) {
  const size_t bytes = w.at(in.from[2])[0];
  w.for_active([&](uint32_t lane) {
    unsigned char* local = reinterpret_cast<unsigned char*>(w.base(Space::kLocal, lane));
    std::memcpy(local + w.at(in.from[0])[0], local + w.at(in.from[1])[0], bytes);
  });
}

}  // namespace ptx
