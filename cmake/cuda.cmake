# Whether there are CUDA kernels is decided by the presence of nvcc and GRADKERN_CUDA, never by a visible GPU.
set(GRADKERN_WITH_CUDA OFF)

# Sets CMAKE_CUDA_COMPILER to an nvcc that accepts this machine's C++ compiler, and `problem` to the reason if there is
# none. CMake's check_language() does the same by configuring a project, which takes six times as long.
function(gradkern_find_nvcc problem)
  find_program(CMAKE_CUDA_COMPILER NAMES $ENV{CUDACXX} nvcc
    PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  set(${problem} "" PARENT_SCOPE)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${problem} "nvcc was not found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} -std=c++20 -x cu -E /dev/null
    OUTPUT_QUIET ERROR_VARIABLE error RESULT_VARIABLE failed)
  if(failed)
    set(${problem} "${CMAKE_CUDA_COMPILER} does not work: ${error}" PARENT_SCOPE)
  endif()
endfunction()

if(NOT GRADKERN_CUDA MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "GRADKERN_CUDA: expected auto, 0 or 1, got '${GRADKERN_CUDA}'")
endif()
if(NOT GRADKERN_CUDA STREQUAL "0")
  gradkern_find_nvcc(problem)
  if(NOT problem)
    set(GRADKERN_WITH_CUDA ON)
  elseif(GRADKERN_CUDA STREQUAL "1")
    message(FATAL_ERROR "GRADKERN_CUDA=1, but ${problem}. Put a working one on PATH or set CUDACXX, or "
                        "build without CUDA kernels: GRADKERN_CUDA=0.")
  else()
    unset(CMAKE_CUDA_COMPILER CACHE)
    message(STATUS "gradkern: no CUDA kernels, because ${problem}")
  endif()
endif()

# Architectures, by TORCH_CUDA_ARCH_LIST: a list ("8.0;9.0+PTX") as for any extension of torch, "native" (the
# GPUs of this machine), or "all" (for wheels). Unset: the GPUs of this machine, or sm_90 where there is none.
# The GPUs of this machine get the PTX of the oldest of them, for newer ones: it costs no further compilation.
#
# sm_103 is in the list because it runs sm_100's code, whose float64 arithmetic it does at a fraction of
# the speed. Chips in no list compile the PTX, of an architecture whose kernels avoid float64 (csrc/cuda/accumulate.h)
# and old enough for all of them: compute_86 serves sm_87, sm_88, sm_110 and what comes later. sm_121 runs sm_120's code.
set(GRADKERN_ALL_ARCHITECTURES 80 86 89 90 100 103 120)
set(GRADKERN_LOW_PTX 86)

# The compute capabilities of the visible GPUs as "80;90", or nothing.
function(gradkern_visible_gpus out)
  set(found)
  find_program(NVIDIA_SMI nvidia-smi)
  if(NVIDIA_SMI)
    execute_process(COMMAND ${NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE answer RESULT_VARIABLE failed ERROR_QUIET)
    if(NOT failed)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${answer}")
      string(REPLACE "." "" found "${capabilities}")
      list(REMOVE_DUPLICATES found)
    endif()
  endif()
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

# Those of `wanted` that this nvcc knows, as machine code, and the low PTX.
function(gradkern_with_low_ptx out wanted)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known)
  set(result)
  foreach(arch IN LISTS wanted)
    if(known MATCHES "sm_${arch}[\r\n]")
      list(APPEND result ${arch}-real)
    endif()
  endforeach()
  list(APPEND result ${GRADKERN_LOW_PTX}-virtual)
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

# The machine code of the visible GPUs and the PTX of the oldest, which compiles once for both. The low PTX if this nvcc
# does not know one of them.
function(gradkern_native out visible)
  gradkern_with_low_ptx(result "${visible}")
  list(LENGTH visible count)
  list(LENGTH result known)
  if(known GREATER count)
    list(SORT visible COMPARE NATURAL)
    list(POP_FRONT visible oldest)
    list(TRANSFORM visible APPEND -real)
    set(result ${oldest} ${visible})
  endif()
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

function(gradkern_listed_architectures out list)
  set(result)
  string(REGEX REPLACE "[ ,]+" ";" wanted "${list}")
  foreach(arch IN LISTS wanted)
    if(NOT arch MATCHES "^([0-9]+)\\.([0-9]+a?f?)([+]PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected native, all, or entries like 9.0 or 9.0+PTX, got '${arch}'")
    endif()
    if(CMAKE_MATCH_3)
      list(APPEND result ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
    else()
      list(APPEND result ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
    endif()
  endforeach()
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

function(gradkern_cuda_architectures out)
  set(list "$ENV{TORCH_CUDA_ARCH_LIST}")
  gradkern_visible_gpus(visible)
  if(list STREQUAL "all")
    gradkern_with_low_ptx(result "${GRADKERN_ALL_ARCHITECTURES}")
    set(why "TORCH_CUDA_ARCH_LIST=all")
  elseif(list STREQUAL "native" AND NOT visible)
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST=native, but nvidia-smi shows no GPU: name the architectures, e.g. 9.0")
  elseif(list STREQUAL "native" OR (list STREQUAL "" AND visible))
    gradkern_native(result "${visible}")
    set(why "the GPUs of this machine")
  elseif(list STREQUAL "")
    gradkern_with_low_ptx(result "90")
    set(why "no GPU is visible; TORCH_CUDA_ARCH_LIST chooses others, or all")
  else()
    gradkern_listed_architectures(result "${list}")
    set(why "TORCH_CUDA_ARCH_LIST")
  endif()
  list(JOIN result " " names)
  message(STATUS "gradkern: CUDA kernels for ${names} (${why})")
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

if(GRADKERN_WITH_CUDA)
  gradkern_cuda_architectures(gradkern_architectures)
  set(CMAKE_CUDA_ARCHITECTURES "${gradkern_architectures}" CACHE STRING "CUDA architectures" FORCE)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")  # no fast-math, no flushing of denormals
  # The runtime is linked statically: the library serves with a CPU-only torch as well.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  find_package(CUDAToolkit REQUIRED)
  add_library(gradkern_cuda STATIC csrc/cuda/agc.cu csrc/cuda/measure.cu csrc/cuda/policy.cu csrc/cuda/tensor_table.cu csrc/cuda/write.cu
    csrc/cuda/usable.cpp)
  target_include_directories(gradkern_cuda PUBLIC csrc)
  # Products and sums are rounded as the CPU rounds them; what should be fused is written as fma(). Otherwise nvcc and
  # ptxas choose, and the tests on the host (csrc/tests) would compute other bits than a GPU.
  target_compile_options(gradkern_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false> $<$<COMPILE_LANGUAGE:CUDA>:--threads=0> $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall>)
  # The headers of CUDA take most of the time for all but measure.cu.
  set_target_properties(gradkern_cuda PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  set_source_files_properties(csrc/cuda/agc.cu csrc/cuda/policy.cu csrc/cuda/tensor_table.cu csrc/cuda/write.cu
    PROPERTIES UNITY_GROUP others)
  target_link_libraries(gradkern_cuda PUBLIC CUDA::cudart_static)
endif()
