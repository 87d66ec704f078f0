// torch's current stream of a CUDA device, without a symbol of libtorch_cuda.
#pragma once

#include <c10/core/Device.h>

struct CUstream_st;

namespace gradkern {

CUstream_st* current_cuda_stream(c10::Device device);

}  // namespace gradkern
