// torch's current stream of a CUDA device, without a symbol of libtorch_cuda.
#pragma once

#include <c10/core/Device.h>

#include "bindings/gradients.h"

struct CUstream_st;

namespace gradkern {

/// Before torch 2.13 the handle of a stream is available from Python only. While an object of this class exists, the
/// streams of its gradients' devices are known to this thread without the GIL, which another thread may hold for
/// milliseconds. Construct it with the GIL held.
class KnownStreams {
 public:
  explicit KnownStreams(const GradList& grads);
  ~KnownStreams();
  KnownStreams(const KnownStreams&) = delete;
  KnownStreams& operator=(const KnownStreams&) = delete;
};

CUstream_st* current_cuda_stream(c10::Device device);

}  // namespace gradkern
