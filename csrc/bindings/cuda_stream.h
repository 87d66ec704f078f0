// torch's current stream of a CUDA device, without a symbol of libtorch_cuda.
#pragma once

#include <c10/core/Device.h>

#include "bindings/gradients.h"

struct CUstream_st;

namespace gradkern {

/// Before torch 2.13, the handle of a stream is available from Python only. During the lifetime of an object of this
/// class, this thread knows the streams of the gradients' devices without the GIL, which another thread may hold for
/// milliseconds. Its constructor needs the GIL.
class KnownStreams {
 public:
  explicit KnownStreams(const GradList& grads);
  ~KnownStreams();
  KnownStreams(const KnownStreams&) = delete;
  KnownStreams& operator=(const KnownStreams&) = delete;
};

CUstream_st* current_cuda_stream(c10::Device device);

}  // namespace gradkern
