// The tests of the CUDA kernels under the model of a GPU.
#include <algorithm>
#include <ctime>

#include "tests/kernel_runs.h"

/// test_cuda_kernels [NAME ...]: all tests, or those of these names and groups.
int main(int argc, char** argv) {
  using namespace gradkern::test;
  const std::pair<const char*, const std::vector<NamedTest>&> groups[] = {
      {"measure", kMeasureTests}, {"table", kTableTests}, {"write", kWriteTests}, {"agc", kAgcTests}};
  const auto asked_for = [&](const char* name) { return std::find(argv + 1, argv + argc, std::string(name)) != argv + argc; };
  for (const auto& [group, tests] : groups)
    for (const NamedTest& test : tests) {
      if (argc > 1 && !asked_for(group) && !asked_for(test.name)) continue;
      const clock_t begin = clock();
      test.run();
      std::printf("%-20s %6.1f s\n", test.name, double(clock() - begin) / CLOCKS_PER_SEC);
      std::fflush(stdout);
    }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0 || checks == 0;
}
