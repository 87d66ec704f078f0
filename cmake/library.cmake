# libgradkern_kernels: csrc/core, cpu and cuda behind the C interface of csrc/library/kernels.h.
include(cmake/cuda.cmake)

# csrc/cpu: one translation unit per instruction set.
add_library(gradkern_cpu STATIC
  csrc/cpu/driver.cpp csrc/cpu/instruction_set.cpp csrc/cpu/kernels_baseline.cpp csrc/cpu/units.cpp)
target_include_directories(gradkern_cpu PUBLIC csrc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  target_sources(gradkern_cpu PRIVATE csrc/cpu/kernels_avx2.cpp csrc/cpu/kernels_avx512.cpp)
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  # The baseline has -O3, too: with -O2 it compiled in 8 s instead of 11.5 s, and clamping took 4 to 8 times as long,
  # scaling float64 1.8 times and measuring float16 1.3 times.
  set_source_files_properties(csrc/cpu/kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "${avx2}")
  # GCC bug 105593: its own AVX-512 headers trip -Wmaybe-uninitialized.
  set_source_files_properties(csrc/cpu/kernels_avx512.cpp PROPERTIES
    COMPILE_OPTIONS "${avx512};-Wno-maybe-uninitialized")
endif()
# The standard headers take most of the time for these.
set_target_properties(gradkern_cpu PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
set_source_files_properties(csrc/cpu/driver.cpp csrc/cpu/instruction_set.cpp csrc/cpu/units.cpp PROPERTIES UNITY_GROUP host)
# Vectors wider than the baseline's registers never cross a function boundary.
target_compile_options(gradkern_cpu PRIVATE -Wno-psabi)

add_library(gradkern_kernels SHARED csrc/library/library.cpp csrc/library/cpu.cpp)
target_include_directories(gradkern_kernels PUBLIC csrc)
target_compile_definitions(gradkern_kernels PRIVATE
  GRADKERN_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
target_link_libraries(gradkern_kernels PRIVATE gradkern_cpu)
set_target_properties(gradkern_kernels PROPERTIES UNITY_BUILD ON)
if(GRADKERN_WITH_CUDA)
  # As one string: a list's semicolons would end the shell's command.
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
  target_sources(gradkern_kernels PRIVATE csrc/library/cuda.cpp)
  target_compile_definitions(gradkern_kernels PRIVATE
    GRADKERN_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
    GRADKERN_CUDA_ARCHITECTURES="${architectures}")
  target_link_libraries(gradkern_kernels PRIVATE gradkern_cuda)
else()
  target_sources(gradkern_kernels PRIVATE csrc/library/no_cuda.cpp)
endif()
# Only the C interface is visible, and every symbol is defined: no torch, Python or OpenMP.
set(symbols ${CMAKE_CURRENT_SOURCE_DIR}/cmake/library.map)
target_link_options(gradkern_kernels PRIVATE -Wl,--version-script=${symbols})
set_target_properties(gradkern_kernels PROPERTIES LINK_DEPENDS ${symbols})
if(NOT GRADKERN_SANITIZE)
  target_link_options(gradkern_kernels PRIVATE -Wl,--no-undefined)
endif()
install(TARGETS gradkern_kernels LIBRARY DESTINATION lib)
