// UTF-8 and the classes of characters that a tokenizer asks for.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mmada_lite::internal {

struct Character {
  char32_t code;
  std::size_t length;  // bytes; 0 when they are not UTF-8
};

Character character_at(std::string_view text, std::size_t at);
void append_utf8(std::string& text, char32_t code);
std::size_t first_wrong_byte(std::string_view text);  // the first that is not UTF-8, or the text's size
const std::string& require_utf8(const std::string& text, const char* what);
std::string lossy_utf8(std::string_view bytes);  // U+FFFD for what is not UTF-8
std::string stripped(const std::string& text);   // without whitespace at either end
std::string in_lower_case(std::string text);     // A to Z as a to z, every other character as it is

bool is_space(char32_t code);
bool is_letter(char32_t code);
bool is_number(char32_t code);

}  // namespace mmada_lite::internal
