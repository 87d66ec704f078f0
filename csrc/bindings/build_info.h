// What was compiled.
#pragma once

#include <map>
#include <string>

namespace gradkern {
std::map<std::string, std::string> build_info();
}  // namespace gradkern
