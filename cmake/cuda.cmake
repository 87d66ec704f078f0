# Decides about CUDA by the presence of nvcc and GRADKERN_CUDA, never by a visible GPU.
set(GRADKERN_WITH_CUDA OFF)
if(NOT GRADKERN_CUDA MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "GRADKERN_CUDA: expected auto, 0 or 1, got '${GRADKERN_CUDA}'")
endif()
# CUDA kernels are not part of this build yet: csrc/cuda is empty.
file(GLOB gradkern_cuda_sources ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu)
if(NOT GRADKERN_CUDA STREQUAL "0" AND gradkern_cuda_sources)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(GRADKERN_WITH_CUDA ON)
  endif()
endif()
if(GRADKERN_CUDA STREQUAL "1" AND NOT GRADKERN_WITH_CUDA)
  message(FATAL_ERROR "GRADKERN_CUDA=1, but nvcc was not found. Put it on PATH or set CUDACXX, or "
                      "build without CUDA kernels: GRADKERN_CUDA=0.")
endif()
