// No exception leaves the library. Its message is kept for gradkern_last_error().
#pragma once

#include <exception>
#include <string>

#include "library/kernels.h"

namespace gradkern::library {

/// The message of this thread's last error.
std::string& last_error() noexcept;

/// Calls `body`. Returns GRADKERN_ERROR if it throws.
template <class Body>
int32_t guarded(const Body& body) noexcept {
  try {
    body();
    return GRADKERN_OK;
  } catch (const std::exception& error) {
    try {
      last_error() = error.what();
    } catch (...) {  // no memory for the message, the previous one is kept
    }
  } catch (...) {
    last_error().clear();
  }
  return GRADKERN_ERROR;
}

}  // namespace gradkern::library
