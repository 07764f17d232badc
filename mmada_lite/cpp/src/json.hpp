// JSON values, how they are read, and how a message or a test writes them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mmada_lite::internal {

struct Json {
  enum class Kind { null, boolean, integer, number, string, array, object };
  Kind kind = Kind::null;
  bool boolean = false;
  std::int64_t integer = 0;
  double number = 0;
  std::string string;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // in the order in which they stand

  bool is(Kind wanted) const { return kind == wanted; }
  const Json* find(std::string_view key) const;  // the last of that name, or nothing
  std::vector<std::string> keys() const;
};

Json parse_json(std::string_view text);  // throws Error, which says in which line and what is wrong

std::string quoted(const std::string& text);
std::string shown(double value);  // as short as reads back to the same number
std::string shown(const Json& value);

}  // namespace mmada_lite::internal
