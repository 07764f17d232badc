// What every source leans on: the short names of arrays, one line of many parts, and the fault that carries it.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "mmada_lite.hpp"

namespace mmada_lite::internal {

using Bools = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

template <typename... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream line;
  (line << ... << parts);
  return line.str();
}

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(join(parts...));
}

inline std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// Float32 arithmetic with every operation rounded: a compiler may otherwise fuse a product and a sum, and ids would differ.
inline float rounded(float value) {
  volatile float kept = value;
  return kept;
}

}  // namespace mmada_lite::internal
