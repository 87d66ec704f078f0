// Build options, for gradkern.build_info().
#pragma once

#include <map>
#include <string>

namespace gradkern {
std::map<std::string, std::string> build_info();
}  // namespace gradkern
