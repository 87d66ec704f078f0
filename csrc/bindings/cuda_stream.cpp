#include "bindings/cuda_stream.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#if GRADKERN_STREAM_HAS_NATIVE_HANDLE

namespace gradkern {

KnownStreams::KnownStreams(const GradList&) {}
KnownStreams::~KnownStreams() {}

CUstream_st* current_cuda_stream(c10::Device device) {
  const c10::impl::VirtualGuardImpl impl(device.type());
  return static_cast<CUstream_st*>(impl.getStream(device).native_handle());
}

}  // namespace gradkern

#else

#include <pybind11/pybind11.h>

#include <optional>
#include <utility>
#include <vector>

namespace gradkern {
namespace {

namespace py = pybind11;

thread_local std::vector<std::pair<c10::Device, CUstream_st*>> known_streams;

std::optional<CUstream_st*> find_known(c10::Device device) {
  for (const auto& [known, stream] : known_streams)
    if (known == device) return stream;
  return std::nullopt;
}

CUstream_st* ask_python(c10::Device device) {
  const py::object ask = py::module_::import("torch._C").attr("_cuda_getCurrentRawStream");
  return reinterpret_cast<CUstream_st*>(ask(int(device.index())).cast<uintptr_t>());
}

}  // namespace

KnownStreams::KnownStreams(const GradList& grads) {
  try {
    for (const at::Tensor& g : grads)
      if (g.defined() && g.is_cuda() && !find_known(g.device()))
        known_streams.emplace_back(g.device(), ask_python(g.device()));
  } catch (...) {  // no destructor runs then
    known_streams.clear();
    throw;
  }
}

KnownStreams::~KnownStreams() { known_streams.clear(); }

CUstream_st* current_cuda_stream(c10::Device device) {
  if (const auto known = find_known(device)) return *known;
  py::gil_scoped_acquire gil;  // a call from a compiled graph
  return ask_python(device);
}

}  // namespace gradkern

#endif
