/* library/kernels.h is C: compiled by the C compiler, without any other header of this project. */
#include "library/kernels.h"

int kernels_header_version(void) {
  gradkern_tensor tensor = {0, 0, GRADKERN_FLOAT32};
  gradkern_list list = {&tensor, 1, 0};
  gradkern_pool pool = {1, 0};
  gradkern_scale scale = {0};
  double factor = 0.5;
  scale.factor = &factor;
  return gradkern_cpu_scale(&list, &scale, &pool) == GRADKERN_OK ? GRADKERN_ABI_VERSION : -1;
}
