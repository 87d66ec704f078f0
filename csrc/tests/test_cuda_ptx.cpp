// The tests of the CUDA kernels once more, with what nvcc has made of the kernels in place of their source: its PTX is
// executed on the host (csrc/tests/ptx). Every test judges the results, and they must be those of the source bit for bit.
//
//     test_cuda_ptx [--seed N] FILE.ptx ... [NAME ...]
//
// With a seed, blocks run at once and warps take turns at random. Without names: all tests that run kernels, and one of the
// interpreter's instructions.
#include <cxxabi.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <sstream>

#include "tests/kernel_runs.h"
#include "tests/ptx/grid.h"
#include "tests/ptx/instructions.h"

namespace gradkern::test {
namespace {

struct Module {
  ptx::Program program;
  ptx::Pool pool;
  std::vector<uint8_t> executed;
};
std::vector<Module> modules;
ptx::Order order;

std::string readable(const std::type_info& type) {
  char* name = abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr);
  const std::string result = name;
  std::free(name);
  return result;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void run_ptx(const std::type_info& type, dim3 grid, dim3 block, const void* params, size_t bytes) {
  const std::string signature = "(" + readable(type) + ")";
  std::vector<uint64_t> copy((bytes + 7) / 8 + 1);  // aligned
  auto* aligned = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(copy.data()) + 15) / 16 * 16);
  std::memcpy(aligned, params, bytes);
  for (Module& m : modules)
    for (const auto& [name, entry] : m.program.entries) {
      if (!ends_with(name, signature)) continue;
      if (entry.param_bytes != bytes) throw std::runtime_error(name + ": other parameters than the host's");
      return ptx::run_grid({&m.program, entry, grid.x, block.x, aligned, m.executed.data()}, order, m.pool);
    }
  throw std::runtime_error("no kernel for " + signature);
}

std::vector<Noted> notes_of(const NamedTest& test, cuda_shim::RunKernel run) {
  std::vector<Noted> notes;
  noted = &notes;
  cuda_shim::run_kernel = run;
  test.run();
  cuda_shim::run_kernel = nullptr;
  noted = nullptr;
  return notes;
}

void compare(const NamedTest& test) {
  const clock_t begin = clock();
  const std::vector<Noted> source = notes_of(test, nullptr);
  const clock_t between = clock();
  const std::vector<Noted> ptx = notes_of(test, run_ptx);
  context = test.name;
  CHECK(source.size() == ptx.size(), "%zu results, %zu of the source", ptx.size(), source.size());
  for (size_t i = 0; i < std::min(source.size(), ptx.size()); ++i) {
    context = source[i].context;
    CHECK(source[i].digest == ptx[i].digest, "the bits of result %zu are not those of the source", i);
  }
  const auto seconds = [](clock_t from, clock_t to) { return double(to - from) / CLOCKS_PER_SEC; };
  std::printf("%-20s %6zu results, %6.1f s, the source %6.1f s\n", test.name, ptx.size(), seconds(between, clock()),
              seconds(begin, between));
  std::fflush(stdout);
}

/// Every byte of aligned tensors is read once, also where nothing is finite, for orders that need no second look. `other` is
/// the type of a second tensor; float64 chooses the kernel that takes all types.
void check_reads(DType d, DType other, double p, bool finite) {
  context = "reads, dtype " + std::to_string(int(d)) + " and " + std::to_string(int(other)) + ", p " + std::to_string(p);
  const int64_t bytes = 2 * cuda::kUnitBytes + 2048 + 512 + 32, second = 32, numel = bytes / itemsize(d);
  const TensorSet set({{d, numel}, {other, second / itemsize(other)}});
  if (!finite) std::memset(set[0].data, 0xff, size_t(bytes));  // NaN in every type
  Request r;
  r.p = p;
  const uint64_t before = ptx::vectors_loaded;
  const Measured m = run_measure(set, r);
  const auto read = int64_t(ptx::vectors_loaded - before) * 16;
  CHECK(read == bytes + second, "read %lld bytes of %lld", (long long)read, (long long)(bytes + second));
  CHECK(m.nonfinite[0] == (finite ? 0 : numel), "counted %lld", (long long)m.nonfinite[0]);
}

void test_reads_once() {
  cuda_shim::run_kernel = run_ptx;
  for (DType d : kDTypes)
    for (DType other : {DType::kFloat32, DType::kFloat64})
      for (double p : {2.0, 1.0})
        for (bool finite : {true, false}) check_reads(d, other, p, finite);
  cuda_shim::run_kernel = nullptr;
}

void load(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  ptx::Program program = ptx::parse(path.substr(path.rfind('/') + 1), text.str());
  const size_t instructions = program.code.size();
  modules.push_back({std::move(program), {}, std::vector<uint8_t>(instructions)});
}

int run(const std::vector<std::string>& arguments) {
  std::vector<std::string> names;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--seed") order.seed = std::stoull(arguments[++i]);
    else if (ends_with(arguments[i], ".ptx")) load(arguments[i]);
    else names.push_back(arguments[i]);
  }
  const auto chosen = [&](const char* name) {
    return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto* tests : {&kMeasureTests, &kWriteTests, &kAgcTests})
    for (const NamedTest& test : *tests)
      if (chosen(test.name)) compare(test);
  if (chosen("reads_once")) test_reads_once();
  if (chosen("instructions")) ptx::test_instructions();
  for (const Module& m : modules) {
    const auto executed = std::count(m.executed.begin(), m.executed.end(), 1);
    std::printf("%s: %zu of %zu instructions executed\n", m.program.name.c_str(), size_t(executed), m.executed.size());
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}

}  // namespace
}  // namespace gradkern::test

int main(int argc, char** argv) {
  try {
    return gradkern::test::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", gradkern::test::context.c_str(), error.what());
    return 2;
  }
}
