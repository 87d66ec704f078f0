# gradkern._C: links the kernels and the torch of the interpreter that builds it.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

function(ask_python out code)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${code}" OUTPUT_VARIABLE answer
    OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed ERROR_VARIABLE error)
  if(failed)
    message(FATAL_ERROR "${Python_EXECUTABLE}: ${error}\nInstall torch first.")
  endif()
  set(${out} "${answer}" PARENT_SCOPE)
endfunction()

# setup.py names the torch to build for, which an isolated build could not import.
if(NOT GRADKERN_TORCH)
  ask_python(GRADKERN_TORCH "import torch, os; print(os.path.dirname(torch.__file__))")
  ask_python(GRADKERN_TORCH_VERSION "import torch; print(torch.__version__)")
endif()
set(torch_dir ${GRADKERN_TORCH})
set(torch_version ${GRADKERN_TORCH_VERSION})
string(REGEX MATCH "^[0-9]+[.][0-9]+" torch_minor "${torch_version}")

# Not find_package(Torch): on a CUDA build of torch it demands the whole toolkit, and the
# extension needs no symbol of libtorch_cuda.
foreach(library c10 torch_cpu torch_python)
  unset(lib_${library} CACHE)  # another torch's
  find_library(lib_${library} ${library} PATHS ${torch_dir}/lib NO_DEFAULT_PATH REQUIRED)
  list(APPEND torch_libraries ${lib_${library}})
endforeach()

# Apart from the module: it is compiled while the library that the module links is.
add_library(binding OBJECT
  csrc/bindings/build_info.cpp
  csrc/bindings/cuda_backend.cpp
  csrc/bindings/cuda_stream.cpp
  csrc/bindings/element_policies.cpp
  csrc/bindings/engine.cpp
  csrc/bindings/grad_list.cpp
  csrc/bindings/gradients.cpp
  csrc/bindings/module.cpp
  csrc/bindings/operators.cpp
  csrc/bindings/overlap.cpp
  csrc/bindings/group_clip.cpp
  csrc/bindings/policies.cpp
  csrc/bindings/python_lists.cpp
  csrc/bindings/shards.cpp
  csrc/bindings/thread_pool.cpp
  csrc/bindings/units.cpp)
target_link_libraries(binding PRIVATE Python::Module)
target_include_directories(binding PRIVATE csrc)
# With the pybind11 that torch contains, whose casts of tensors are for that version.
target_include_directories(binding SYSTEM PRIVATE
  ${torch_dir}/include ${torch_dir}/include/torch/csrc/api/include)
target_compile_options(binding PRIVATE -ffile-prefix-map=${torch_dir}/= -ffile-prefix-map=${Python_INCLUDE_DIRS}/=)
target_compile_definitions(binding PRIVATE
  AT_PER_OPERATOR_HEADERS
  GRADKERN_TORCH_VERSION="${torch_version}")
if(torch_version VERSION_LESS 2.13)  # c10::Stream::native_handle knows CUDA since 2.13
  set(native_handle 0)
else()
  set(native_handle 1)
endif()
target_compile_definitions(binding PRIVATE GRADKERN_STREAM_HAS_NATIVE_HANDLE=${native_handle})
# -fopenmp for the pragmas in ATen/Parallel.h, not for the linker: the OpenMP runtime has to be the
# one torch has loaded, and its symbols come from there.
set_source_files_properties(csrc/bindings/thread_pool.cpp PROPERTIES COMPILE_OPTIONS -fopenmp)
# torch's headers take most of the time: sources that are compiled as one file read them once. On many cores there are
# two files, because one would take longer than everything else.
set_target_properties(binding PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
get_target_property(sources binding SOURCES)
list(REMOVE_ITEM sources csrc/bindings/thread_pool.cpp)
set_source_files_properties(${sources} PROPERTIES UNITY_GROUP engine)
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
if(cores GREATER 4)
  set_source_files_properties(csrc/bindings/module.cpp csrc/bindings/operators.cpp csrc/bindings/python_lists.cpp
    PROPERTIES UNITY_GROUP entry_points)
endif()

Python_add_library(_C MODULE WITH_SOABI $<TARGET_OBJECTS:binding>)
target_link_libraries(_C PRIVATE gradkern_kernels ${torch_libraries})
# torch's libraries are loaded before this one (import torch), the kernels lie beside it in lib/; no path of the build
# machine stays. One file a minor version of torch, side by side in the package.
set_target_properties(_C PROPERTIES OUTPUT_NAME "_C.torch-${torch_minor}"
  BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN/lib" INSTALL_RPATH_USE_LINK_PATH OFF)
install(TARGETS _C LIBRARY DESTINATION .)
