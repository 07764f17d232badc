// What numbers and words of bundle.json may be, and whether its parts, its graphs and its tokenizer say the same.
#pragma once

#include <string>

#include "bundle.hpp"

namespace mmada_lite::internal {

// Each throws Error for the first thing that cannot be.
void check_value(const std::string& name, const Json& value, const std::string& where);
void check_words(const Json& content, const std::string& where);
void check_bundle(const Bundle& bundle, const Json& content, const std::string& where);

}  // namespace mmada_lite::internal
