// The policy kernel's synchronisation under ThreadSanitizer; see test_cuda_races.cpp.
#include "tests/policy_steps.h"

// One translation unit, so that all of it is instrumented.
#include "cuda/policy.cu"

int main() {
  using namespace gradkern::test;
  for (const bool backwards : {false, true}) {
    cuda_shim::schedule = {backwards, backwards};
    check_policy_steps(61);
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0 || checks == 0;
}
