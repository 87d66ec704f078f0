// torch's current stream of a CUDA device, without a symbol of libtorch_cuda.
#pragma once

#include <c10/core/Device.h>

#include "bindings/gradients.h"

struct CUstream_st;

namespace gradkern {

/// Torch before 2.13 has the handle of a stream in Python alone. While one of these lives, the streams of
/// its gradients' devices are known to this thread without Python's lock, which another thread may hold
/// for milliseconds. Made while this one holds it.
class KnownStreams {
 public:
  explicit KnownStreams(const GradList& grads);
  ~KnownStreams();
  KnownStreams(const KnownStreams&) = delete;
  KnownStreams& operator=(const KnownStreams&) = delete;
};

CUstream_st* current_cuda_stream(c10::Device device);

}  // namespace gradkern
