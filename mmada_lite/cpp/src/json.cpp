// JSON: read from text, and written into messages.
#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_set>

#include "common.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json read() {
    skip();
    Json value = read_value(0);
    skip();
    if (at_ < text_.size()) wrong("something follows the value");
    return value;
  }

 private:
  static constexpr int kDeepest = 500;
  static constexpr std::size_t kLongestNumber = 4300;  // as many as Python reads

  [[noreturn]] void wrong(const char* what) const {
    const auto end = text_.begin() + static_cast<std::ptrdiff_t>(std::min(at_, text_.size()));
    fail("line ", 1 + std::count(text_.begin(), end, '\n'), ": ", what);
  }

  void skip() {
    while (at_ < text_.size() && std::strchr(" \t\n\r", text_[at_])) {
      if (!text_[at_]) break;
      ++at_;
    }
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read_value(int depth) {
    if (depth > kDeepest) wrong("it is nested too deeply");
    Json value;
    if (at_ >= text_.size()) wrong("it ends where a value is needed");
    const char first = text_[at_];
    if (first == '"') {
      ++at_;
      value.kind = Json::Kind::string;
      value.string = read_string();
    } else if (first == '{') {
      ++at_;
      value.kind = Json::Kind::object;
      read_members(value, depth);
    } else if (first == '[') {
      ++at_;
      value.kind = Json::Kind::array;
      read_items(value, depth);
    } else if (take("true")) {
      value.kind = Json::Kind::boolean;
      value.boolean = true;
    } else if (take("false")) {
      value.kind = Json::Kind::boolean;
    } else if (!take("null")) {
      read_number(value);
    }
    return value;
  }

  void read_members(Json& object, int depth) {
    std::unordered_set<std::string> seen;
    skip();
    if (take("}")) return;
    for (;;) {
      if (!take("\"")) wrong("a key in double quotes is needed");
      std::string key = read_string();
      if (!seen.insert(key).second) wrong("a key stands there twice");
      skip();
      if (!take(":")) wrong("a colon is needed");
      skip();
      object.members.emplace_back(std::move(key), read_value(depth + 1));
      skip();
      if (take("}")) return;
      if (!take(",")) wrong("a comma is needed");
      skip();
    }
  }

  void read_items(Json& array, int depth) {
    skip();
    if (take("]")) return;
    for (;;) {
      array.items.push_back(read_value(depth + 1));
      skip();
      if (take("]")) return;
      if (!take(",")) wrong("a comma is needed");
      skip();
    }
  }

  std::string read_string() {
    std::string content;
    for (;;) {
      if (at_ >= text_.size()) wrong("a string does not end");
      const char letter = text_[at_++];
      if (letter == '"') return content;
      if (letter != '\\') {
        if (static_cast<unsigned char>(letter) < 0x20) wrong("a string has a control character");
        content += letter;
        continue;
      }
      if (at_ >= text_.size()) wrong("a string does not end");
      const char escaped = text_[at_++];
      static constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
      const auto which = kNames.find(escaped);
      if (which != std::string_view::npos) {
        content += kMeanings[which];
      } else if (escaped == 'u') {
        append_utf8(content, read_escape());
      } else {
        wrong("a string has an unknown escape");
      }
    }
  }

  char32_t read_escape() {
    char32_t code = read_hex();
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      const std::size_t before = at_;
      at_ += 2;
      const char32_t low = read_hex();
      if (low >= 0xDC00 && low < 0xE000) return 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
      at_ = before;
    }
    if (code >= 0xD800 && code < 0xE000) wrong("a string has half of a letter's escape");
    return code;
  }

  char32_t read_hex() {
    unsigned code = 0;
    const auto digits = text_.substr(at_, 4);
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() < 4 || end.ptr != digits.data() + 4) wrong("\\u needs four hexadecimal digits");
    at_ += 4;
    return code;
  }

  void read_number(Json& value) {
    const std::size_t begin = at_;
    const auto digit = [&] { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; };
    take("-");
    if (!digit()) wrong("a value is needed");
    if (!take("0")) {
      while (digit()) ++at_;
    }
    std::size_t end = at_;
    if (take(".") && digit()) {
      while (digit()) ++at_;
      end = at_;
    }
    at_ = end;
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      if (digit()) {
        while (digit()) ++at_;
        end = at_;
      }
    }
    at_ = end;
    const auto written = text_.substr(begin, end - begin);
    if (written.size() > kLongestNumber) wrong("a number has too many digits");
    value.kind = Json::Kind::integer;
    const auto end_of_integer = std::from_chars(written.data(), written.data() + written.size(), value.integer);
    if (end_of_integer.ec == std::errc() && end_of_integer.ptr == written.data() + written.size()) return;
    value.kind = Json::Kind::number;
    const auto end_of_number = std::from_chars(written.data(), written.data() + written.size(), value.number);
    if (end_of_number.ec == std::errc::result_out_of_range) value.number = std::strtod(std::string(written).c_str(), nullptr);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  for (auto it = members.rbegin(); it != members.rend(); ++it) {
    if (it->first == key) return &it->second;
  }
  return nullptr;
}

std::vector<std::string> Json::keys() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : members) names.push_back(key);
  return names;
}

Json parse_json(std::string_view text) { return JsonReader(text).read(); }

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') {
      out += '\\';
      out += letter;
    } else if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(letter));
      out += code;
    } else {
      out += letter;
    }
  }
  return out + "\"";
}

std::string shown(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

std::string shown(const Json& value) {
  std::string text;
  switch (value.kind) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return value.boolean ? "true" : "false";
    case Json::Kind::integer:
      return std::to_string(value.integer);
    case Json::Kind::number:
      return shown(value.number);
    case Json::Kind::string:
      return quoted(value.string);
    case Json::Kind::array:
      for (const auto& item : value.items) text += (text.empty() ? "" : ", ") + shown(item);
      return "[" + text + "]";
    case Json::Kind::object:
      for (const auto& [key, item] : value.members) text += (text.empty() ? "" : ", ") + quoted(key) + ": " + shown(item);
      return "{" + text + "}";
  }
  return text;
}

}  // namespace mmada_lite::internal
