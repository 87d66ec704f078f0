// Calls of the kernels' library (library/kernels.h). Its errors become exceptions.
#pragma once

#include <ATen/core/Tensor.h>

#include <stdexcept>
#include <vector>

#include "core/dtype.h"
#include "library/types.h"

namespace gradkern {

/// Throws the library's last error unless `status` is GRADKERN_OK.
inline void check_library(int32_t status) {
  if (status != GRADKERN_OK) throw std::runtime_error(gradkern_last_error());
}

inline gradkern_list as_list(const std::vector<TensorRef>& refs, const std::vector<int64_t>* first = nullptr) {
  return {as_plain(refs.data()), int64_t(refs.size()), first ? first->data() : nullptr};
}

/// A tensor's memory, or null if it is undefined.
template <class T>
T* pointer(const at::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

}  // namespace gradkern
