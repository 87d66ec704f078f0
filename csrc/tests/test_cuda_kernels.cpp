// The tests of the CUDA kernels under the model of a GPU.
#include <algorithm>
#include <ctime>

#include "tests/kernel_runs.h"

/// test_cuda_kernels [NAME ...]: all tests or those.
int main(int argc, char** argv) {
  using namespace gradkern::test;
  for (const auto* tests : {&kMeasureTests, &kTableTests, &kWriteTests, &kAgcTests})
    for (const NamedTest& test : *tests) {
      if (argc > 1 && std::find(argv + 1, argv + argc, std::string(test.name)) == argv + argc) continue;
      const clock_t begin = clock();
      test.run();
      std::printf("%-20s %6.1f s\n", test.name, double(clock() - begin) / CLOCKS_PER_SEC);
      std::fflush(stdout);
    }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
