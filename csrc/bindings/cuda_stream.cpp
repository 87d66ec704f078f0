#include "bindings/cuda_stream.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#if !GRADKERN_STREAM_HAS_NATIVE_HANDLE
#include <pybind11/pybind11.h>
#endif

namespace gradkern {

CUstream_st* current_cuda_stream(c10::Device device) {
#if GRADKERN_STREAM_HAS_NATIVE_HANDLE
  const c10::impl::VirtualGuardImpl impl(device.type());
  return static_cast<CUstream_st*>(impl.getStream(device).native_handle());
#else
  // Older torch keeps the handle behind libtorch_cuda; Python has it as an integer.
  namespace py = pybind11;
  py::gil_scoped_acquire gil;
  const py::object ask = py::module_::import("torch._C").attr("_cuda_getCurrentRawStream");
  return reinterpret_cast<CUstream_st*>(ask(int(device.index())).cast<uintptr_t>());
#endif
}

}  // namespace gradkern
