// Single instructions with literal operands, against results by the PTX ISA's description of them.
#include "instructions.h"

#include "grid.h"
#include "tests/kernel_case.h"

namespace ptx {
namespace {

struct Case {
  const char *opcode, *operands;
  uint32_t expected;
};

const std::vector<Case> kCases = {
    // Position and length, of which the lowest eight bits count. Bits beyond the operand are zero.
    {"bfe.u32", "0x12345678, 8, 12", 0x456},
    {"bfe.u32", "0xFEDCBA98U, 24, 8", 0xfe},
    {"bfe.u32", "0xFEDCBA98, 0, 32", 0xfedcba98},
    {"bfe.u32", "0xFEDCBA98, 28, 8", 0xf},
    {"bfe.u32", "0xFEDCBA98, 4, 255", 0x0fedcba9},
    {"bfe.u32", "0xFEDCBA98, 32, 8", 0},
    {"bfe.u32", "0xFEDCBA98, 255, 255", 0},
    {"bfe.u32", "0xFEDCBA98, 8, 0", 0},
    {"bfe.u32", "0x12345678, 0x108, 0x70C", 0x456},
    {"bfi.b32", "0xFF, 0x12345678, 8, 4", 0x12345f78},
    {"bfi.b32", "0xFF, 0x12345678, 0x11C, 0x208", 0xf2345678},
    {"bfi.b32", "0xFF, 0x12345678, 32, 8", 0x12345678},
    // Bytes of both registers in one, in nvcc's spelling; the fourth bit of a choice repeats the sign.
    {"prmt.b32", "0x03020100, 0x07060504, 0x3340U", 0x03030400},
    {"prmt.b32", "0x03020100, 0x07060504, 0x5410U", 0x05040100},
    {"prmt.b32", "0x80020100, 0x07060504, 0xB3A2U", 0xff800002},
    // Literals: hexadecimal, octal, decimal, negative.
    {"add.u32", "0xFFFFFFFFU, 2U", 1},
    {"add.u32", "017, -15", 0},
};

/// A kernel that stores every result.
std::string kernel() {
  std::string text =
      ".visible .entry test(.param .u64 to)\n{\n.reg .b32 %r<2>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd1, [to];\n";
  for (size_t i = 0; i < kCases.size(); ++i)
    text += std::string(kCases[i].opcode) + " %r1, " + kCases[i].operands + ";\nst.global.u32 [%rd1+" + std::to_string(4 * i) +
            "], %r1;\n";
  return text + "ret;\n}\n";
}

}  // namespace

void test_instructions() {
  gradkern::test::context = "instructions";
  std::vector<uint32_t> results(kCases.size(), 0xcdcdcdcd);
  const Program program = parse("instructions", kernel());
  const uint32_t* to = results.data();
  std::vector<uint8_t> executed(program.code.size());
  Pool pool;
  run_grid({&program, program.entries.at("test"), 1, 1, reinterpret_cast<const unsigned char*>(&to), executed.data()}, {}, pool);
  for (size_t i = 0; i < kCases.size(); ++i)
    CHECK(results[i] == kCases[i].expected, "%s %s: %#x, expected %#x", kCases[i].opcode, kCases[i].operands, results[i],
          kCases[i].expected);
}

}  // namespace ptx
