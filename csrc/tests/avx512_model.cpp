// The chunk kernels for AVX-512 on a processor with AVX2, in place of csrc/cpu's own.
#include "tests/avx512_model.h"
#include "cpu/kernels_avx512.cpp"
