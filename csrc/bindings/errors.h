// The form of all error messages: "[operation] parameters[3] ('layers.2.weight'): what is wrong, and the remedy".
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <functional>
#include <string>

namespace gradkern {

/// The names of a call and its list in messages.
struct CallSite {
  const char* operation;
  const char* list;                              ///< "parameters", "tensors"
  std::function<std::string(int64_t)> name_of{};  ///< a position's name, where names are known
};

/// "parameters[3] ('layers.2.weight')"
inline std::string position(const CallSite& site, int64_t index) {
  const std::string name = site.name_of ? " ('" + site.name_of(index) + "')" : "";
  return std::string(site.list) + "[" + std::to_string(index) + "]" + name;
}

inline std::string element(const CallSite& site, int64_t index) {
  return std::string("[") + site.operation + "] " + position(site, index);
}

}  // namespace gradkern

/// TORCH_CHECK with the operation, the list and the index in front; becomes a RuntimeError,
/// TypeError or ValueError in Python by the suffix.
#define GRADKERN_CHECK_TYPE(condition, site, index, ...) \
  TORCH_CHECK_TYPE(condition, ::gradkern::element(site, index), ": ", __VA_ARGS__)
#define GRADKERN_CHECK_VALUE(condition, site, index, ...) \
  TORCH_CHECK_VALUE(condition, ::gradkern::element(site, index), ": ", __VA_ARGS__)
