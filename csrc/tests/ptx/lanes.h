// Test only: registers as C++ types, and handlers made of functions of them.
#pragma once

#include <utility>

#include "warp.h"

namespace ptx {

template <class T>
T get(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <>
inline bool get<bool>(uint64_t bits) { return bits & 1; }

/// With the sign of signed integers, as loads and conversions to wider registers have it.
template <class T>
uint64_t put(T value) {
  if constexpr (std::is_integral_v<T>) {
    return uint64_t(value);
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
  }
}

template <class Function, class To, class... From, size_t... I>
void apply(Warp& w, const Instruction& in, To (*)(From...), std::index_sequence<I...>) {
  uint64_t* to = w.at(in.to[0]);
  const uint64_t* from[] = {w.at(in.from[I])...};
  w.for_active([&](uint32_t lane) { to[lane] = put<To>(Function()(get<From>(from[I][lane])...)); });
}

/// The handler that applies a lambda without captures lane by lane, with the types of its parameters.
template <class Function>
void each_lane(Warp& w, const Instruction& in) {
  const auto call = [&]<class To, class... From>(To (*f)(From...)) {
    apply<Function>(w, in, f, std::index_sequence_for<From...>());
  };
  call(+Function());
}

}  // namespace ptx
