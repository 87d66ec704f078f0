#include "bindings/build_info.h"

#include "library/kernels.h"

namespace gradkern {

std::map<std::string, std::string> build_info() {
  const gradkern_build built = gradkern_build_info();
  return {
      {"torch", GRADKERN_TORCH_VERSION},
      {"compiler", built.compiler},
      {"cpu_instruction_sets", built.instruction_sets},
      {"cpu_instruction_set_in_use", built.instruction_set ? built.instruction_set : ""},
      {"cuda", built.cuda_version},
      {"cuda_architectures", built.cuda_architectures},
  };
}

}  // namespace gradkern
