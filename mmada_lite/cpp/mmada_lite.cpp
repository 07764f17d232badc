// The whole of mmada_lite for C++, in the order in which its parts lean on each other: JSON, files, settings, schedules and
// random numbers, tokenizer, bundle, sessions, canvas, selection, the two decoding loops, pictures, and the model that ties
// them together.
//
// It follows the Python package law by law, which is why the same seed gives the same ids; docs/bundle.md is the contract of
// both. It knows nothing of exporting or of other devices than onnxruntime's CPU and CUDA providers.
#include "mmada_lite.hpp"

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <queue>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif

namespace mmada_lite {
namespace {

namespace fs = std::filesystem;

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

std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// Float32 arithmetic with every operation rounded: a compiler may otherwise fuse a product and a sum, and ids would differ.
float rounded(float value) {
  volatile float kept = value;
  return kept;
}

// ---- UTF-8 ----

struct Character {
  char32_t code;
  std::size_t length;  // bytes; 0 when they are not UTF-8
};

Character character_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u; };
  const unsigned first = byte(0);
  if (first < 0x80) return {first, 1};
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  char32_t code = first & (0xFFu >> (length + 1));
  if (first < 0xC2 || first > 0xF4) return {0, 0};
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {0, 0};
    code = code << 6 | (byte(i) & 0x3F);
  }
  const char32_t least = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
  if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {0, 0};
  return {code, length};
}

void append_utf8(std::string& text, char32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0 | code >> 6);
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    text += static_cast<char>(0xE0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | code >> 18);
    text += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  }
}

// The first byte that is not UTF-8, or the text's size.
std::size_t first_wrong_byte(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto found = character_at(text, at);
    if (!found.length) break;
    at += found.length;
  }
  return at;
}

const std::string& require_utf8(const std::string& text, const char* what) {
  const auto wrong = first_wrong_byte(text);
  if (wrong < text.size()) fail("the ", what, " is not UTF-8 text (byte ", wrong, "); convert it");
  return text;
}

// What stands for bytes that are not UTF-8: one mark for the longest beginning of a character, as everywhere in Unicode's own
// advice.
std::string lossy_utf8(std::string_view bytes) {
  std::string text;
  for (std::size_t at = 0; at < bytes.size();) {
    const auto found = character_at(bytes, at);
    if (found.length) {
      text += bytes.substr(at, found.length);
      at += found.length;
      continue;
    }
    const auto byte = [&](std::size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
    const unsigned first = byte(at);
    std::size_t length = 1, wanted = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first >= 0xC2 && first <= 0xF4) {
      unsigned low = 0x80, high = 0xBF;
      if (first == 0xE0) low = 0xA0;
      if (first == 0xED) high = 0x9F;
      if (first == 0xF0) low = 0x90;
      if (first == 0xF4) high = 0x8F;
      while (length < wanted && byte(at + length) >= low && byte(at + length) <= high) ++length, low = 0x80, high = 0xBF;
    }
    append_utf8(text, 0xFFFD);
    at += length;
  }
  return text;
}

bool is_space(char32_t code) {
  return (code >= 9 && code <= 13) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

// What Python's strip takes off: whitespace, and the four separators of ASCII.
std::string stripped(const std::string& text) {
  std::size_t first = text.size(), last = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto found = character_at(text, at);
    const std::size_t length = std::max<std::size_t>(found.length, 1);
    if (!found.length || !(is_space(found.code) || (found.code >= 0x1C && found.code <= 0x1F))) {
      first = std::min(first, at);
      last = at + length;
    }
    at += length;
  }
  return first < last ? text.substr(first, last - first) : "";
}

// ---- JSON ----

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
  const Json* find(std::string_view key) const {
    for (auto it = members.rbegin(); it != members.rend(); ++it) {
      if (it->first == key) return &it->second;
    }
    return nullptr;
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> names;
    for (const auto& [key, value] : members) names.push_back(key);
    return names;
  }
};

// Reads JSON, and says what is wrong and in which line.
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
    skip();
    if (take("}")) return;
    for (;;) {
      if (!take("\"")) wrong("a key in double quotes is needed");
      std::string key = read_string();
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
    std::string found;
    for (;;) {
      if (at_ >= text_.size()) wrong("a string does not end");
      const char letter = text_[at_++];
      if (letter == '"') return found;
      if (letter != '\\') {
        if (static_cast<unsigned char>(letter) < 0x20) wrong("a string has a control character");
        found += letter;
        continue;
      }
      if (at_ >= text_.size()) wrong("a string does not end");
      const char escaped = text_[at_++];
      static constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
      const auto which = kNames.find(escaped);
      if (which != std::string_view::npos) {
        found += kMeanings[which];
      } else if (escaped == 'u') {
        append_utf8(found, read_escape());
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
    return code >= 0xD800 && code < 0xE000 ? 0xFFFD : code;
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
    value.kind = Json::Kind::integer;
    const auto whole = std::from_chars(written.data(), written.data() + written.size(), value.integer);
    if (whole.ec == std::errc() && whole.ptr == written.data() + written.size()) return;
    value.kind = Json::Kind::number;
    const auto any = std::from_chars(written.data(), written.data() + written.size(), value.number);
    if (any.ec == std::errc::result_out_of_range) value.number = std::strtod(std::string(written).c_str(), nullptr);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

// ---- values in messages: as JSON writes them ----

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') {
      out += '\\';
      out += letter;
    } else if (static_cast<unsigned char>(letter) < 0x20) {
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

// ---- files ----

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(path.string(), ": cannot be read; check who owns it");
  std::ostringstream content;
  content << stream.rdbuf();
  return content.str();
}

// SHA-256 (FIPS 180-4).
class Sha256 {
 public:
  Sha256() {
    // The constants are the first 32 bits of the fractional parts of roots of the first primes.
    int found = 0;
    for (int candidate = 2; found < 64; ++candidate) {
      bool prime = true;
      for (int divisor = 2; divisor * divisor <= candidate; ++divisor) prime = prime && candidate % divisor != 0;
      if (!prime) continue;
      if (found < 8) state_[static_cast<std::size_t>(found)] = fraction(std::sqrt(static_cast<long double>(candidate)));
      constants_[static_cast<std::size_t>(found++)] = fraction(std::cbrt(static_cast<long double>(candidate)));
    }
  }

  void add(const unsigned char* data, std::size_t size) {
    total_ += size;
    while (size) {
      const std::size_t part = std::min(size, 64 - filled_);
      std::memcpy(block_.data() + filled_, data, part);
      filled_ += part;
      data += part;
      size -= part;
      if (filled_ == 64) turn();
    }
  }

  std::string finish() {
    const std::uint64_t bits = total_ * 8;
    const unsigned char one = 0x80, zero = 0;
    add(&one, 1);
    while (filled_ != 56) add(&zero, 1);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    add(length, 8);
    std::string text;
    char digits[9];
    for (const auto word : state_) {
      std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(word));
      text += digits;
    }
    return text;
  }

 private:
  static std::uint32_t fraction(long double root) {
    return static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0L);
  }
  static std::uint32_t turned(std::uint32_t x, int by) { return x >> by | x << (32 - by); }

  void turn() {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) {
      w[i] = static_cast<std::uint32_t>(block_[4 * i]) << 24 | static_cast<std::uint32_t>(block_[4 * i + 1]) << 16 |
             static_cast<std::uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const auto low = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
      const auto high = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const auto first = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants_[i] + w[i];
      const auto second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::array<std::uint32_t, 8> after{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += after[i];
    filled_ = 0;
  }

  std::array<std::uint32_t, 8> state_{};
  std::array<std::uint32_t, 64> constants_{};
  std::array<unsigned char, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;
};

std::string sha256_of(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  Sha256 hash;
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || stream.gcount()) {
    hash.add(reinterpret_cast<const unsigned char*>(buffer.data()), static_cast<std::size_t>(stream.gcount()));
  }
  return hash.finish();
}

// ---- schedules and random numbers ----

// Tokens to write at each of `steps` steps so that `masks` are gone at the end: equal shares, the rest first.
Ids transfers(std::int64_t masks, std::int64_t steps) {
  Ids counts(static_cast<std::size_t>(steps), masks / steps);
  for (std::int64_t i = 0; i < masks % steps; ++i) ++counts[static_cast<std::size_t>(i)];
  return counts;
}

float logistic(float x) { return rounded(1.0f / rounded(1.0f + static_cast<float>(std::exp(static_cast<double>(-x))))); }

using Schedule = std::function<float(float)>;  // share done to share still masked, in float32

Schedule schedule_of(const std::string& name) {
  const auto at_least = [](float value) { return std::max(value, 1e-6f); };
  if (name == "cosine") {
    return [](float r) {
      return static_cast<float>(std::cos(static_cast<double>(rounded(rounded(r * 3.14159265358979323846f) * 0.5f))));
    };
  }
  if (name == "linear") return [=](float r) { return at_least(rounded(1.0f - r)); };
  if (name == "sigmoid") {
    return [=](float r) {
      const float low = logistic(-3.0f), high = logistic(3.0f);
      const float middle = logistic(rounded(rounded(r * 6.0f) - 3.0f));
      return at_least(rounded(rounded(high - middle) / rounded(high - low)));
    };
  }
  if (name.rfind("pow", 0) == 0) {
    const std::string written = stripped(name.substr(3));
    double exponent = 0;
    const char* first = written.c_str() + (written.rfind('+', 0) == 0 ? 1 : 0);
    const auto end = std::from_chars(first, written.c_str() + written.size(), exponent);
    if (end.ec == std::errc() && end.ptr == written.c_str() + written.size() && exponent > 0 && std::isfinite(exponent)) {
      const float power = static_cast<float>(exponent);
      return [=](float r) {
        return at_least(rounded(1.0f - static_cast<float>(std::pow(static_cast<double>(r), static_cast<double>(power)))));
      };
    }
  }
  fail("no schedule is called ", quoted(name), "; use one of cosine, linear, pow<exponent>, sigmoid, such as pow2");
}

// floor(tokens * schedule(k / steps)) for k = 1..steps, before any clamp.
Ids masked_after(const std::string& name, std::int64_t tokens, std::int64_t steps) {
  const auto law = schedule_of(name);
  Ids counts;
  for (std::int64_t k = 1; k <= steps; ++k) {
    const float ratio = rounded(static_cast<float>(k) / static_cast<float>(steps));
    counts.push_back(static_cast<std::int64_t>(std::floor(rounded(static_cast<float>(tokens) * law(ratio)))));
  }
  return counts;
}

// Scale of the confidence noise at each step: every step multiplies what is left by (1 - k / steps).
std::vector<double> noise_temperatures(double start, std::int64_t steps) {
  std::vector<double> scales;
  double left = 1.0;
  for (std::int64_t k = 1; k <= steps; ++k) {
    left *= 1.0 - static_cast<double>(k) / static_cast<double>(steps);
    scales.push_back(start * left);
  }
  return scales;
}

enum class Stream : std::uint32_t { text_token = 0, text_order = 1, image_code = 2, image_confidence = 3 };

// Philox4x32-10 (Salmon et al., SC 2011).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::uint64_t seed) {
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0], p1 = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// One number strictly between 0 and 1, addressed and not consumed.
float uniform(std::uint64_t seed, Stream stream, std::uint32_t step, std::uint32_t row, std::uint32_t position) {
  const auto words = philox({position / 4, row, step, static_cast<std::uint32_t>(stream)}, seed);
  return (static_cast<float>(words[position % 4] >> 9) + 0.5f) * 0x1p-23f;
}

float minus_log(float x) { return static_cast<float>(-std::log(static_cast<double>(std::max(x, 1e-20f)))); }

float gumbel(float u) { return minus_log(minus_log(u)); }

// ---- settings ----

const std::vector<std::string> kOrders{"low_confidence", "random"}, kCaches{"none", "prefix", "dual"}, kLaws{"sensible"};

void whole(const char* name, std::int64_t value) {
  if (value < 1) fail(name, " is ", value, "; use a whole number of at least 1");
}

void at_least_zero(const char* name, double value) {
  if (!std::isfinite(value) || value < 0) fail(name, " is ", shown(value), "; use a number of at least 0");
}

void one_of(const char* name, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
    fail(name, " is ", quoted(value), "; use one of ", listed(choices));
  }
}

// What the Python runtime decodes with and this one does not.
void ours(const std::string& cache, const std::string& law) {
  if (cache == "prompt") fail("the C++ host does not decode with the cache prompt; use dual, or the Python runtime");
  if (law == "reference") fail("the C++ host does not decode with the law reference; use sensible, or the Python runtime");
}

std::int64_t blocks_in(const TextSettings& s) { return (s.answer_length - 1) / s.block_length + 1; }

void check(const TextSettings& s) {
  whole("answer_length", s.answer_length);
  whole("steps", s.steps);
  whole("block_length", s.block_length);
  at_least_zero("temperature", s.temperature);
  at_least_zero("guidance", s.guidance);
  one_of("order", s.order, kOrders);
  ours(s.cache, s.law);
  one_of("cache", s.cache, kCaches);
  one_of("law", s.law, kLaws);
  if (s.threshold && !(*s.threshold > 0 && *s.threshold <= 1)) {
    fail("threshold ", shown(*s.threshold), " is not a probability; use a number above 0 and at most 1");
  }
  if (s.steps > s.answer_length) {
    fail(s.steps, " steps for ", s.answer_length, " tokens: a step writes at least one token; use at most ", s.answer_length,
         " steps");
  }
  const auto count = blocks_in(s);
  if (!s.threshold && s.steps < count) {
    fail(s.steps, " steps cannot fill ", count, " blocks; use at least ", count, " steps or a longer block");
  }
}

void check(const ImageSettings& s) {
  whole("steps", s.steps);
  at_least_zero("guidance", s.guidance);
  at_least_zero("temperature", s.temperature);
  at_least_zero("sampling_temperature", s.sampling_temperature);
  ours("", s.law);
  one_of("law", s.law, kLaws);
  schedule_of(s.schedule);
}

// Settings from JSON, where a value may also be of the wrong kind.
struct SettingsReader {
  const Json& content;

  void take(const char* name, std::int64_t& value) const {
    const Json* found = content.find(name);
    if (!found) return;
    if (!found->is(Json::Kind::integer) || found->integer < 1) {
      fail(name, " is ", shown(*found), "; use a whole number of at least 1");
    }
    value = found->integer;
  }
  void take(const char* name, double& value) const {
    const Json* found = content.find(name);
    if (!found) return;
    const bool integer = found->is(Json::Kind::integer);
    const double number = integer ? static_cast<double>(found->integer) : found->number;
    if (!(integer || found->is(Json::Kind::number)) || number < 0) {
      fail(name, " is ", shown(*found), "; use a number of at least 0");
    }
    value = number;
  }
  void take(const char* name, std::string& value, const std::vector<std::string>& choices) const {
    const Json* found = content.find(name);
    if (!found) return;
    if (!found->is(Json::Kind::string)) fail(name, " is ", shown(*found), "; use one of ", listed(choices));
    value = found->string;
  }
  void take(const char* name, std::optional<double>& value) const {
    const Json* found = content.find(name);
    if (!found || found->is(Json::Kind::null)) return;
    double number = found->is(Json::Kind::integer) ? static_cast<double>(found->integer) : found->number;
    if (!(number > 0 && number <= 1)) {
      fail(name, " ", shown(*found), " is not a probability; use a number above 0 and at most 1");
    }
    value = number;
  }
  /// Nothing but `names`; those in `later` are the Python runtime's, and this one does not decode with them.
  void only(const std::string& where, std::vector<std::string> names, const std::vector<std::string>& later) const {
    for (const auto& key : content.keys()) {
      if (std::find(later.begin(), later.end(), key) == later.end()) continue;
      fail(where, ": the C++ host does not decode with ", quoted(key), "; leave it out, or use the Python runtime");
    }
    for (const auto& key : content.keys()) {
      if (std::find(names.begin(), names.end(), key) != names.end()) continue;
      fail(where, ": unknown setting ", quoted(key), "; the settings are ", listed(names));
    }
  }
};

TextSettings read_text_settings(const Json& content, const std::string& where) {
  TextSettings s;
  const SettingsReader reader{content};
  reader.only(where,
              {"answer_length", "steps", "block_length", "temperature", "guidance", "order", "cache", "threshold", "law"},
              {"select", "entropy_bound", "early_stop", "reach", "refresh", "drift", "suffix", "draft", "settle", "thought_first"});
  reader.take("answer_length", s.answer_length);
  reader.take("steps", s.steps);
  reader.take("block_length", s.block_length);
  reader.take("temperature", s.temperature);
  reader.take("guidance", s.guidance);
  reader.take("order", s.order, kOrders);
  reader.take("cache", s.cache, kCaches);
  reader.take("law", s.law, kLaws);
  reader.take("threshold", s.threshold);
  check(s);
  return s;
}

ImageSettings read_image_settings(const Json& content, const std::string& where) {
  ImageSettings s;
  const SettingsReader reader{content};
  reader.only(where, {"steps", "guidance", "schedule", "temperature", "sampling_temperature", "law"},
              {"refresh", "shortlist", "guidance_from", "guidance_to", "unconditional_every"});
  reader.take("steps", s.steps);
  reader.take("guidance", s.guidance);
  reader.take("temperature", s.temperature);
  reader.take("sampling_temperature", s.sampling_temperature);
  reader.take("law", s.law, kLaws);
  reader.take("schedule", s.schedule, {"cosine", "linear", "pow<exponent>", "sigmoid"});
  check(s);
  return s;
}

// ---- letters and numbers ----

// Unicode's letters and numbers (general categories L and N, Unicode 16) as pairs: code points to skip, code points that
// belong.
// clang-format off
constexpr std::uint32_t kLetters[] = {  // letters
    65, 26, 6, 26, 47, 1, 10, 1, 4, 1, 5, 23, 1, 31, 1, 458, 4, 12, 14, 5, 7, 1, 1, 1, 129, 5, 1, 2, 2, 4, 1, 1, 6, 1, 1, 3,
    1, 1, 1, 20, 1, 83, 1, 139, 8, 166, 1, 38, 2, 1, 6, 41, 71, 27, 4, 4, 45, 43, 35, 2, 1, 99, 1, 1, 15, 2, 7, 2, 10, 3, 2,
    1, 16, 1, 1, 30, 29, 89, 11, 1, 24, 33, 9, 2, 4, 1, 5, 22, 4, 1, 9, 1, 3, 1, 23, 25, 7, 11, 5, 24, 1, 6, 17, 42, 58, 54,
    3, 1, 18, 1, 7, 10, 15, 16, 4, 8, 2, 2, 2, 22, 1, 7, 1, 1, 3, 4, 3, 1, 16, 1, 13, 2, 1, 3, 14, 2, 10, 1, 8, 6, 4, 2, 2,
    22, 1, 7, 1, 2, 1, 2, 1, 2, 31, 4, 1, 1, 19, 3, 16, 9, 1, 3, 1, 22, 1, 7, 1, 2, 1, 5, 3, 1, 18, 1, 15, 2, 23, 1, 11, 8, 2,
    2, 2, 22, 1, 7, 1, 2, 1, 5, 3, 1, 30, 2, 1, 3, 15, 1, 17, 1, 1, 6, 3, 3, 1, 4, 3, 2, 1, 1, 1, 2, 3, 2, 3, 3, 3, 12, 22, 1,
    52, 8, 1, 3, 1, 23, 1, 16, 3, 1, 26, 3, 2, 1, 2, 2, 30, 1, 4, 8, 1, 3, 1, 23, 1, 10, 1, 5, 3, 1, 31, 2, 1, 2, 15, 2, 17,
    9, 1, 3, 1, 41, 2, 1, 16, 1, 5, 3, 8, 3, 24, 6, 5, 18, 3, 24, 1, 9, 1, 1, 2, 7, 58, 48, 1, 2, 12, 7, 58, 2, 1, 1, 1, 5, 1,
    24, 1, 1, 1, 10, 1, 2, 9, 1, 2, 5, 1, 1, 21, 4, 32, 1, 63, 8, 1, 36, 27, 5, 115, 43, 20, 1, 16, 6, 4, 4, 3, 1, 3, 2, 7, 3,
    4, 13, 12, 1, 17, 38, 1, 1, 5, 1, 2, 43, 1, 333, 1, 4, 2, 7, 1, 1, 1, 4, 2, 41, 1, 4, 2, 33, 1, 4, 2, 7, 1, 1, 1, 4, 2,
    15, 1, 57, 1, 4, 2, 67, 37, 16, 16, 86, 2, 6, 3, 620, 2, 17, 1, 26, 5, 75, 6, 8, 7, 18, 13, 19, 14, 18, 14, 13, 1, 3, 15,
    52, 35, 1, 4, 1, 67, 89, 7, 5, 2, 34, 1, 1, 5, 70, 10, 31, 49, 30, 2, 5, 11, 44, 4, 26, 54, 23, 9, 53, 82, 1, 93, 47, 17,
    8, 54, 30, 13, 2, 10, 44, 26, 36, 41, 3, 10, 36, 2, 11, 5, 43, 2, 3, 41, 4, 1, 6, 1, 2, 3, 1, 5, 192, 64, 278, 2, 6, 2,
    38, 2, 6, 2, 8, 1, 1, 1, 1, 1, 1, 1, 31, 2, 53, 1, 7, 1, 1, 3, 3, 1, 7, 3, 4, 2, 6, 4, 13, 5, 3, 1, 7, 116, 1, 13, 1, 16,
    13, 101, 1, 4, 1, 2, 10, 1, 1, 3, 5, 6, 1, 1, 1, 1, 1, 1, 4, 1, 11, 2, 4, 5, 5, 4, 1, 52, 2, 2683, 229, 6, 4, 3, 2, 12,
    38, 1, 1, 5, 1, 2, 56, 7, 1, 16, 23, 9, 7, 1, 7, 1, 7, 1, 7, 1, 7, 1, 7, 1, 7, 1, 7, 80, 1, 469, 2, 42, 5, 5, 2, 4, 86, 6,
    3, 1, 90, 1, 4, 5, 43, 1, 94, 17, 32, 48, 16, 512, 6592, 64, 22157, 67, 46, 2, 269, 3, 16, 10, 2, 20, 47, 16, 31, 2, 70,
    49, 9, 2, 103, 2, 67, 2, 2, 1, 1, 1, 8, 21, 16, 1, 3, 1, 4, 1, 23, 29, 52, 14, 50, 62, 6, 3, 1, 1, 2, 11, 28, 10, 23, 25,
    29, 7, 47, 28, 1, 16, 5, 1, 10, 10, 5, 1, 41, 23, 3, 1, 8, 20, 23, 3, 1, 3, 50, 1, 1, 3, 2, 2, 5, 2, 1, 1, 1, 24, 3, 2,
    11, 7, 3, 12, 6, 2, 6, 2, 6, 9, 7, 1, 7, 1, 43, 1, 14, 6, 115, 29, 11172, 12, 23, 4, 49, 8452, 366, 2, 106, 38, 7, 12, 5,
    5, 1, 1, 10, 1, 13, 1, 5, 1, 1, 1, 2, 1, 2, 1, 108, 33, 363, 18, 64, 2, 54, 40, 12, 116, 5, 1, 135, 36, 26, 6, 26, 11, 89,
    3, 6, 2, 6, 2, 6, 2, 3, 35, 12, 1, 26, 1, 19, 1, 2, 1, 15, 2, 14, 34, 123, 389, 29, 3, 49, 47, 32, 13, 20, 1, 8, 6, 38,
    10, 30, 2, 36, 4, 8, 48, 158, 18, 36, 4, 36, 4, 40, 8, 52, 12, 11, 1, 15, 1, 7, 1, 2, 1, 11, 1, 15, 1, 7, 1, 2, 3, 52, 12,
    311, 9, 22, 10, 8, 24, 6, 1, 42, 1, 9, 69, 6, 2, 1, 1, 44, 1, 2, 3, 1, 2, 23, 10, 23, 9, 31, 65, 19, 1, 2, 10, 22, 10, 26,
    70, 56, 6, 2, 64, 1, 15, 4, 1, 3, 1, 29, 42, 29, 3, 29, 35, 8, 1, 28, 27, 54, 10, 22, 10, 19, 13, 18, 110, 73, 55, 51, 13,
    51, 13, 36, 38, 28, 9, 23, 250, 42, 6, 2, 16, 3, 59, 29, 10, 1, 8, 22, 42, 18, 46, 21, 27, 23, 12, 53, 57, 2, 2, 1, 13,
    45, 32, 25, 26, 36, 29, 1, 2, 1, 8, 35, 3, 1, 12, 48, 14, 4, 21, 1, 1, 1, 35, 18, 1, 25, 19, 2, 63, 7, 1, 1, 1, 4, 1, 15,
    1, 10, 7, 47, 38, 8, 2, 2, 2, 22, 1, 7, 1, 2, 1, 5, 3, 1, 18, 1, 12, 5, 30, 10, 1, 1, 2, 1, 1, 38, 1, 1, 25, 1, 1, 1, 44,
    53, 18, 4, 20, 3, 30, 48, 20, 2, 1, 1, 184, 47, 41, 4, 36, 48, 20, 1, 59, 43, 13, 1, 71, 27, 37, 7, 185, 44, 116, 64, 31,
    8, 2, 1, 2, 8, 1, 2, 1, 24, 15, 1, 1, 1, 94, 8, 2, 39, 16, 1, 1, 1, 28, 1, 10, 40, 7, 1, 21, 1, 11, 46, 19, 1, 18, 73,
    199, 33, 31, 9, 1, 37, 17, 1, 49, 30, 112, 7, 1, 2, 1, 38, 21, 1, 25, 6, 1, 2, 1, 32, 14, 1, 327, 19, 15, 1, 1, 13, 1, 34,
    124, 1, 79, 922, 230, 196, 2636, 97, 15, 1072, 17, 6, 25, 3995, 5, 583, 6841, 30, 1762, 569, 7, 31, 17, 79, 17, 30, 18,
    48, 16, 4, 31, 21, 5, 19, 432, 45, 211, 64, 128, 75, 5, 1, 66, 13, 64, 2, 1, 1, 28, 6136, 8, 1238, 41, 10, 8935, 4, 1, 7,
    1, 2, 1, 291, 15, 1, 29, 3, 2, 1, 14, 4, 8, 396, 2308, 107, 5, 13, 3, 9, 7, 10, 5990, 85, 1, 71, 1, 2, 2, 1, 2, 2, 2, 4,
    1, 12, 1, 1, 1, 7, 1, 65, 1, 4, 2, 8, 1, 7, 1, 28, 1, 4, 1, 5, 1, 1, 3, 7, 1, 340, 2, 25, 1, 25, 1, 31, 1, 25, 1, 31, 1,
    25, 1, 31, 1, 25, 1, 31, 1, 25, 1, 8, 1844, 31, 6, 6, 261, 62, 146, 45, 10, 7, 16, 1, 321, 30, 18, 44, 484, 28, 228, 30,
    2, 1, 495, 7, 1, 4, 1, 2, 1, 15, 1, 197, 59, 68, 7, 1, 1204, 4, 1, 27, 1, 2, 1, 1, 2, 1, 1, 10, 1, 4, 1, 1, 1, 1, 6, 1, 4,
    1, 1, 1, 1, 1, 1, 3, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 2, 4, 1, 7, 1, 4, 1, 4, 1, 1, 1, 10, 1, 17, 5,
    3, 1, 5, 1, 17, 4420, 42720, 32, 4154, 6, 222, 2, 5762, 14, 7473, 15, 622, 2466, 542, 1506, 4939, 5, 4192,
};
constexpr std::uint32_t kNumbers[] = {  // numbers
    48, 10, 120, 2, 5, 1, 2, 3, 1441, 10, 134, 10, 198, 10, 412, 10, 118, 10, 4, 6, 108, 10, 118, 10, 118, 10, 2, 6, 110, 13,
    115, 10, 8, 7, 103, 10, 104, 7, 7, 19, 109, 10, 96, 10, 118, 10, 70, 20, 268, 10, 70, 10, 719, 20, 881, 3, 239, 10, 6, 10,
    22, 10, 300, 10, 128, 11, 165, 10, 6, 10, 182, 10, 86, 10, 134, 10, 6, 10, 1046, 1, 3, 6, 6, 10, 198, 51, 2, 5, 726, 60,
    78, 22, 630, 30, 1385, 1, 777, 1, 25, 9, 14, 3, 343, 4, 138, 10, 30, 8, 1, 15, 32, 10, 39, 15, 29536, 10, 188, 10, 320, 6,
    154, 10, 38, 10, 198, 10, 22, 10, 86, 10, 406, 10, 21270, 10, 493, 45, 12, 57, 17, 2, 341, 27, 36, 4, 29, 1, 8, 1, 134, 5,
    202, 10, 942, 8, 25, 7, 39, 9, 75, 5, 22, 6, 160, 2, 2, 16, 2, 46, 64, 9, 52, 2, 30, 3, 75, 5, 104, 8, 24, 8, 41, 7, 330,
    6, 48, 10, 6, 10, 278, 31, 158, 10, 42, 4, 112, 7, 134, 30, 128, 10, 60, 10, 144, 10, 7, 20, 251, 10, 342, 10, 118, 10,
    374, 10, 102, 10, 6, 20, 76, 12, 420, 19, 93, 10, 662, 10, 86, 29, 227, 10, 70, 10, 422, 10, 102, 21, 1067, 111, 15553,
    10, 2342, 10, 86, 10, 134, 10, 1, 7, 526, 10, 262, 23, 24153, 10, 1478, 20, 12, 20, 108, 25, 1109, 50, 2368, 10, 422, 10,
    502, 10, 247, 10, 716, 9, 128, 10, 791, 59, 1, 3, 1, 4, 76, 45, 1, 15, 962, 13, 2787, 10,
};
// clang-format on

// Ranges [first, past) from such pairs.
struct CodePoints {
  std::vector<std::pair<char32_t, char32_t>> ranges;

  template <std::size_t N>
  explicit CodePoints(const std::uint32_t (&pairs)[N]) {
    char32_t at = 0;
    for (std::size_t i = 0; i + 1 < N; i += 2) {
      at += pairs[i];
      ranges.emplace_back(at, at + pairs[i + 1]);
      at += pairs[i + 1];
    }
  }

  bool has(char32_t code) const {
    const auto after = std::upper_bound(ranges.begin(), ranges.end(), code,
                                        [](char32_t value, const auto& range) { return value < range.first; });
    return after != ranges.begin() && code < std::prev(after)->second;
  }
};

bool is_letter(char32_t code) {
  static const CodePoints letters(kLetters);
  return letters.has(code);
}

bool is_number(char32_t code) {
  static const CodePoints numbers(kNumbers);
  return numbers.has(code);
}

// ---- tokenizer ----

// Byte-level BPE as tokenizer.json describes it: added tokens, Digits and ByteLevel before the merges, ByteLevel after.
// Whatever else a file asks for is named in an Error, and ids are the way out.
class Tokenizer {
 public:
  explicit Tokenizer(const fs::path& path);

  Ids encode(const std::string& text) const;
  std::string decode(const Ids& ids) const;

 private:
  struct Added {
    std::string content;
    std::int64_t id;
    bool normalized;
  };
  struct Merge {
    std::int64_t rank;
    std::int64_t id;
  };
  struct Piece {
    std::string_view text;
    std::int64_t id;  // of an added token; -1: text
  };

  [[noreturn]] void unknown(const std::string& what) const;
  void read_pre_tokenizer(const Json& content);
  void read_model(const Json& model);
  void read_added(const Json& added);
  std::vector<Piece> without_added(std::vector<Piece> pieces, bool normalized) const;
  std::vector<std::string_view> digits_apart(const std::vector<std::string_view>& parts, bool each) const;
  std::vector<std::string_view> words_of(const std::vector<std::string_view>& parts) const;
  void merge(std::string_view word, Ids& ids) const;
  static std::uint64_t pair_of(std::int64_t left, std::int64_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
  }

  fs::path path_;
  std::array<std::string, 256> letter_of_byte_;
  std::unordered_map<char32_t, std::uint8_t> byte_of_letter_;
  std::array<std::int64_t, 256> id_of_byte_{};  // -1: the vocabulary lacks it
  std::unordered_map<std::string, std::int64_t> vocabulary_;
  std::unordered_map<std::int64_t, std::string> spelling_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::vector<Added> added_;                  // those that are found in a text
  std::unordered_set<std::int64_t> special_;  // left out of decoded text
  std::int64_t length_ = 0;
  enum class Before { digits_each, digits_together, words, bytes };
  std::vector<Before> before_;
};

void Tokenizer::unknown(const std::string& what) const {
  fail(path_.string(), " uses ", what, ", which this program does not know; tokenize elsewhere and give ids");
}

bool flag(const Json& object, const char* name, bool otherwise) {
  const Json* found = object.find(name);
  return found && found->is(Json::Kind::boolean) ? found->boolean : otherwise;
}

bool absent(const Json& object, const char* name) {
  const Json* found = object.find(name);
  return !found || found->is(Json::Kind::null);
}

std::string type_of(const Json& object) {
  const Json* found = object.find("type");
  return found && found->is(Json::Kind::string) ? found->string : "";
}

Tokenizer::Tokenizer(const fs::path& path) : path_(path) {
  // Bytes that print stand for themselves, the others for the letters from 256 on.
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const char32_t letter = prints ? static_cast<char32_t>(byte) : next++;
    append_utf8(letter_of_byte_[static_cast<std::size_t>(byte)], letter);
    byte_of_letter_[letter] = static_cast<std::uint8_t>(byte);
  }
  const std::string text = read_file(path);
  Json content;
  try {
    if (first_wrong_byte(text) < text.size()) fail("it is not UTF-8 text");
    content = JsonReader(text).read();
    if (!content.find("model")) fail("it has no model");
  } catch (const Error& error) {
    fail(path.string(), " is not a tokenizer.json: ", error.what());
  }
  if (!absent(content, "normalizer")) unknown("a normalizer");
  read_model(*content.find("model"));
  if (!absent(content, "pre_tokenizer")) read_pre_tokenizer(*content.find("pre_tokenizer"));
  if (before_.empty() || (before_.back() != Before::words && before_.back() != Before::bytes)) {
    unknown("a vocabulary that is not of bytes");
  }
  const Json* decoder = content.find("decoder");
  if (!decoder || type_of(*decoder) != "ByteLevel") unknown("another decoder than ByteLevel");
  const Json* added = content.find("added_tokens");
  read_added(added ? *added : Json{});
}

void Tokenizer::read_pre_tokenizer(const Json& content) {
  const std::string type = type_of(content);
  if (type == "Sequence") {
    if (const Json* parts = content.find("pretokenizers")) {
      for (const auto& part : parts->items) read_pre_tokenizer(part);
    }
  } else if (type == "Digits") {
    before_.push_back(flag(content, "individual_digits", false) ? Before::digits_each : Before::digits_together);
  } else if (type == "ByteLevel") {
    if (flag(content, "add_prefix_space", true)) unknown("add_prefix_space");
    before_.push_back(flag(content, "use_regex", true) ? Before::words : Before::bytes);
  } else {
    unknown("the pre-tokenizer " + type);
  }
}

void Tokenizer::read_model(const Json& model) {
  const std::string type = type_of(model);
  if (!type.empty() && type != "BPE") unknown("the model " + type);
  for (const char* part : {"dropout", "unk_token"}) {
    if (!absent(model, part)) unknown(part);
  }
  for (const char* part : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!absent(model, part) && !model.find(part)->string.empty()) unknown(part);
  }
  for (const char* part : {"byte_fallback", "ignore_merges"}) {
    if (flag(model, part, false)) unknown(part);
  }
  const Json *vocabulary = model.find("vocab"), *merges = model.find("merges");
  if (!vocabulary || !merges) unknown("a model without vocab or merges");
  for (const auto& [spelling, id] : vocabulary->members) {
    vocabulary_[spelling] = id.integer;
    spelling_[id.integer] = spelling;
  }
  std::int64_t rank = 0;
  for (const auto& rule : merges->items) {
    std::string left, right;
    if (rule.is(Json::Kind::array) && rule.items.size() == 2) {
      left = rule.items[0].string, right = rule.items[1].string;
    } else {
      const auto space = rule.string.find(' ');
      left = rule.string.substr(0, space), right = space == std::string::npos ? "" : rule.string.substr(space + 1);
    }
    const auto a = vocabulary_.find(left), b = vocabulary_.find(right), whole = vocabulary_.find(left + right);
    if (a == vocabulary_.end() || b == vocabulary_.end() || whole == vocabulary_.end()) {
      fail(path_.string(), " is not a tokenizer.json: the merge of ", quoted(left), " and ", quoted(right),
           " is not in its vocabulary");
    }
    merges_[pair_of(a->second, b->second)] = {rank++, whole->second};
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary_.find(letter_of_byte_[byte]);
    id_of_byte_[byte] = found == vocabulary_.end() ? -1 : found->second;
  }
}

void Tokenizer::read_added(const Json& added) {
  std::set<std::string> beyond;
  for (const auto& token : added.items) {
    const Json *content = token.find("content"), *id = token.find("id");
    if (!content || !id) continue;
    if (!vocabulary_.count(content->string)) beyond.insert(content->string);
    spelling_[id->integer] = content->string;
    if (flag(token, "special", false)) {
      special_.insert(id->integer);
      continue;
    }
    for (const char* part : {"single_word", "lstrip", "rstrip"}) {
      if (flag(token, part, false)) unknown(std::string("an added token with ") + part);
    }
    added_.push_back({content->string, id->integer, flag(token, "normalized", true)});
  }
  for (const char* header : {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}) {  // added where a file lacks them
    if (!vocabulary_.count(header)) beyond.insert(header);
  }
  length_ = static_cast<std::int64_t>(vocabulary_.size() + beyond.size());
}

// Cuts the added tokens out: the leftmost first, the longest of those that begin together.
std::vector<Tokenizer::Piece> Tokenizer::without_added(std::vector<Piece> pieces, bool normalized) const {
  std::vector<Piece> cut;
  for (const auto& piece : pieces) {
    std::size_t from = 0;
    for (std::size_t at = 0; piece.id < 0 && at < piece.text.size();) {
      const Added* longest = nullptr;
      for (const auto& token : added_) {
        if (token.normalized != normalized || token.content.empty()) continue;
        if (piece.text.compare(at, token.content.size(), token.content) != 0) continue;
        if (!longest || token.content.size() > longest->content.size()) longest = &token;
      }
      if (!longest) {
        ++at;
        continue;
      }
      if (at > from) cut.push_back({piece.text.substr(from, at - from), -1});
      cut.push_back({piece.text.substr(at, longest->content.size()), longest->id});
      from = at += longest->content.size();
    }
    if (from < piece.text.size()) cut.push_back({piece.text.substr(from), piece.id});
  }
  return cut;
}

std::vector<std::string_view> Tokenizer::digits_apart(const std::vector<std::string_view>& parts, bool each) const {
  std::vector<std::string_view> apart;
  for (const auto part : parts) {
    std::size_t from = 0, at = 0;
    bool numeric = false;
    for (std::size_t length; at < part.size(); at += length) {
      const auto found = character_at(part, at);
      length = found.length;
      // Numbers that came with Unicode 17, which the Digits of the tokenizers library counts and its ByteLevel does not yet.
      const bool newer = (found.code >= 0x11DE0 && found.code <= 0x11DE9) || (found.code >= 0x16FF4 && found.code <= 0x16FF6);
      const bool number = newer || is_number(found.code);
      if (at > from && (number != numeric || (number && each))) {
        apart.push_back(part.substr(from, at - from));
        from = at;
      }
      numeric = number;
    }
    if (at > from) apart.push_back(part.substr(from));
  }
  return apart;
}

// Words as GPT-2 cuts them: English contractions, then runs of letters, of numbers or of other signs, each with one space
// before it; of a run of whitespace before a word the last stays with the word.
std::vector<std::string_view> Tokenizer::words_of(const std::vector<std::string_view>& parts) const {
  std::vector<std::string_view> words;
  for (const auto part : parts) {
    const auto kind = [&](std::size_t at) {  // 0 the end, 1 a space, 2 a letter, 3 a number, 4 another sign
      if (at >= part.size()) return 0;
      const auto code = character_at(part, at).code;
      return is_space(code) ? 1 : is_letter(code) ? 2 : is_number(code) ? 3 : 4;
    };
    for (std::size_t at = 0; at < part.size();) {
      std::size_t end = at;
      for (const std::string_view tail : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
        if (part.substr(at, tail.size()) == tail) {
          end = at + tail.size();
          break;
        }
      }
      if (end == at) {
        const std::size_t first = part[at] == ' ' && kind(at + 1) > 1 ? at + 1 : at;
        const int run = kind(first);
        std::size_t last = first;  // where the run's last character begins
        for (end = first; kind(end) == run; end += character_at(part, end).length) last = end;
        if (run == 1 && end < part.size() && last > at) end = last;
      }
      words.push_back(part.substr(at, end - at));
      at = end;
    }
  }
  return words;
}

// Joins neighbours by the merges, the lowest rank first and the leftmost of those.
void Tokenizer::merge(std::string_view word, Ids& ids) const {
  struct Symbol {
    std::int64_t id, left, right;
  };
  std::vector<Symbol> symbols;
  for (const char letter : word) {
    const auto id = id_of_byte_[static_cast<unsigned char>(letter)];
    const auto at = static_cast<std::int64_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().right = -1;
  using Candidate = std::tuple<std::int64_t, std::int64_t, std::uint64_t, std::int64_t>;  // rank, place, pair, new id
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](std::int64_t at) {
    if (at < 0 || symbols[static_cast<std::size_t>(at)].right < 0) return;
    const auto& symbol = symbols[static_cast<std::size_t>(at)];
    const auto pair = pair_of(symbol.id, symbols[static_cast<std::size_t>(symbol.right)].id);
    const auto found = merges_.find(pair);
    if (found != merges_.end()) queue.emplace(found->second.rank, at, pair, found->second.id);
  };
  for (std::size_t at = 0; at < symbols.size(); ++at) offer(static_cast<std::int64_t>(at));
  while (!queue.empty()) {
    const auto [rank, at, pair, id] = queue.top();
    queue.pop();
    auto& symbol = symbols[static_cast<std::size_t>(at)];
    if (symbol.id < 0 || symbol.right < 0) continue;
    auto& gone = symbols[static_cast<std::size_t>(symbol.right)];
    if (pair_of(symbol.id, gone.id) != pair) continue;
    symbol.id = id;
    symbol.right = gone.right;
    gone.id = -1;
    if (symbol.right >= 0) symbols[static_cast<std::size_t>(symbol.right)].left = at;
    offer(symbol.left);
    offer(at);
  }
  for (std::int64_t at = 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].right) {
    ids.push_back(symbols[static_cast<std::size_t>(at)].id);
  }
}

Ids Tokenizer::encode(const std::string& text) const {
  Ids ids;
  for (const auto& piece : without_added(without_added({{text, -1}}, false), true)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    std::vector<std::string_view> parts{piece.text};
    for (const auto before : before_) {
      if (before == Before::words) {
        parts = words_of(parts);
      } else if (before != Before::bytes) {
        parts = digits_apart(parts, before == Before::digits_each);
      }
    }
    for (const auto part : parts) merge(part, ids);
  }
  return ids;
}

std::string Tokenizer::decode(const Ids& ids) const {
  std::string bytes;
  for (const auto id : ids) {
    const auto found = spelling_.find(id);
    if (id < 0 || id >= length_ || found == spelling_.end() || special_.count(id)) continue;
    const std::string& spelling = found->second;
    std::string mapped;
    for (std::size_t at = 0; at < spelling.size();) {
      const auto letter = character_at(spelling, at);
      const auto byte = byte_of_letter_.find(letter.code);
      if (byte == byte_of_letter_.end()) {  // no spelling of bytes: it stands for itself
        mapped = spelling;
        break;
      }
      mapped += static_cast<char>(byte->second);
      at += letter.length;
    }
    bytes += mapped;
  }
  return lossy_utf8(bytes);
}

// ---- bundle ----

constexpr const char* kManifest = "bundle.json";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kHashedUpTo = std::int64_t{256} << 20;  // bytes; larger bundles are hashed only when asked
constexpr std::int64_t kWidest = 1 << 14;  // pixels of a square picture's side
constexpr const char* kAgain = "fetch the bundle again, or write it with `mmada-lite export CHECKPOINT -o FOLDER`";

struct Special {
  std::int64_t bos, eos, soi, eoi, t2i, mmu, ipad, r2i, mask, start_header, end_header, eot;
};

struct GraphFiles {
  std::vector<std::pair<std::string, std::string>> files;  // graph, its file

  const std::string* find(const std::string& name) const {
    for (const auto& [graph, file] : files) {
      if (graph == name) return &file;
    }
    return nullptr;
  }
};

struct FileInfo {
  std::string name;
  std::int64_t size;
  std::string sha256;
  fs::file_time_type changed;
};

struct Bundle {
  fs::path path;
  std::int64_t layers = 0, kv_heads = 0, head_dim = 0, longest = 0;
  Special special{};
  std::int64_t code_offset = 0, codebook = 0, size = 0;
  std::int64_t resolution = 0, downsample = 0;  // 0: no pictures
  TextSettings text_defaults;
  ImageSettings image_defaults;
  GraphFiles graphs;
  std::vector<FileInfo> files;

  bool has_file(const std::string& name) const {
    return std::any_of(files.begin(), files.end(), [&](const auto& file) { return file.name == name; });
  }
};

const Json& object_at(const Json& content, const std::string& where) {
  if (!content.is(Json::Kind::object)) fail(where, " is ", shown(content), " where an object is needed; ", kAgain);
  return content;
}

void check_keys(const Json& content, const std::vector<std::string>& known, const std::vector<std::string>& required,
                const std::string& where) {
  for (const auto& key : content.keys()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    fail(where, ": unknown key ", quoted(key), "; the keys are ", listed(known));
  }
  for (const auto& key : required) {
    if (!content.find(key)) fail(where, ": the key ", quoted(key), " is missing; ", kAgain);
  }
}

enum class Wanted { whole, text, positive, texts, maybe_text, maybe_whole, maybe_flag, versions };

struct Field {
  const char* name;
  Wanted kind;
  bool required = true;
};

bool fits(const Json& value, Wanted kind) {
  const bool null = value.is(Json::Kind::null), text = value.is(Json::Kind::string);
  const bool count = value.is(Json::Kind::integer) && value.integer >= 0;
  const auto texts = [](const auto& items, const auto& item_of) {
    return std::all_of(items.begin(), items.end(), [&](const auto& item) { return item_of(item).is(Json::Kind::string); });
  };
  switch (kind) {
    case Wanted::whole:
      return count;
    case Wanted::text:
      return text;
    case Wanted::positive:
      return value.is(Json::Kind::integer) ? value.integer > 0 : value.is(Json::Kind::number) && value.number > 0;
    case Wanted::texts:
      return value.is(Json::Kind::array) && texts(value.items, [](const Json& item) -> const Json& { return item; });
    case Wanted::maybe_text:
      return null || text;
    case Wanted::maybe_whole:
      return null || count;
    case Wanted::maybe_flag:
      return null || value.is(Json::Kind::boolean);
    case Wanted::versions:
      return value.is(Json::Kind::object) &&
             texts(value.members, [](const auto& member) -> const Json& { return member.second; });
  }
  return false;
}

// Every key and type of an object checked.
const Json& record(const Json& content, const std::vector<Field>& fields, const std::string& where) {
  object_at(content, where);
  std::vector<std::string> known, required;
  for (const auto& field : fields) {
    known.push_back(field.name);
    if (field.required) required.push_back(field.name);
  }
  check_keys(content, known, required, where);
  for (const auto& field : fields) {
    const Json* value = content.find(field.name);
    if (value && !fits(*value, field.kind)) {
      fail(where, ".", field.name, " is ", shown(*value), ", which it cannot be; ", kAgain);
    }
  }
  return content;
}

std::int64_t number_in(const Json& content, const char* name) { return content.find(name)->integer; }

// The whole numbers of a vocabulary object, in the order of `names`; `beside` is another key that may stand there.
Ids vocabulary_numbers(const Json& content, const std::vector<std::string>& names, const std::string& beside = "") {
  Ids numbers;
  for (const auto& name : names) {
    const Json* found = content.find(name);
    if (!found || !found->is(Json::Kind::integer) || found->integer < 0) {
      fail("vocabulary: ", quoted(name), " is ", found ? shown(*found) : "missing", "; a whole number is needed");
    }
    numbers.push_back(found->integer);
  }
  for (const auto& key : content.keys()) {
    if (key != beside && std::find(names.begin(), names.end(), key) == names.end()) {
      fail("vocabulary: unknown key ", quoted(key), "; the keys are ", listed(names));
    }
  }
  return numbers;
}

void read_vocabulary(const Json& content, Bundle& bundle) {
  object_at(content, "vocabulary");
  const Json* special = content.find("special");
  if (!special || !special->is(Json::Kind::object)) {
    fail("vocabulary: the key \"special\" is missing; ", kAgain);
  }
  static const std::vector<std::string> kNames{"bos",  "eos", "soi",  "eoi",          "t2i",        "mmu",
                                               "ipad", "r2i", "mask", "start_header", "end_header", "eot"};
  const Ids ids = vocabulary_numbers(*special, kNames);
  const Ids sizes = vocabulary_numbers(content, {"image_code_offset", "codebook_size", "size"}, "special");
  bundle.code_offset = sizes[0];
  bundle.codebook = sizes[1];
  bundle.size = sizes[2];
  if (sizes[1] > sizes[2] || sizes[0] > sizes[2] - sizes[1]) {
    fail("vocabulary: image codes begin at ", sizes[0], ", there are ", sizes[1], ", and the embedding has ", sizes[2],
         " rows; check image_code_offset (the tokenizer's length) and codebook_size");
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= sizes[2]) {
      fail("vocabulary: special token ", quoted(kNames[i]), " is ", ids[i], ", outside the embedding's ", sizes[2], " rows");
    }
  }
  bundle.special = {ids[0], ids[1], ids[2], ids[3], ids[4], ids[5], ids[6], ids[7], ids[8], ids[9], ids[10], ids[11]};
}

template <typename Read>
auto settings_at(const Json& content, const std::string& where, Read read) {
  try {
    return read(object_at(content, where), where);
  } catch (const Error& error) {
    const std::string line = error.what();
    if (line.rfind(where, 0) == 0) throw;
    fail(where, ": ", line);
  }
}

Json read_manifest(const fs::path& path) {
  const std::string folder = path.string();
  std::error_code fault;
  if (!fs::is_directory(path, fault)) {
    fail(folder, ": no such bundle folder; check the name, or write one with `mmada-lite export CHECKPOINT -o ", folder, "`");
  }
  const fs::path manifest = path / kManifest;
  if (!fs::is_regular_file(manifest, fault)) {
    if (fs::is_regular_file(path / "config.json", fault)) {
      fail(folder, " is a checkpoint and not a bundle; run `mmada-lite export ", folder, " -o FOLDER` and use that folder");
    }
    fail(folder, " is not a bundle: it holds no ", kManifest, "; ", kAgain);
  }
  const std::string text = read_file(manifest);
  Json content;
  try {
    if (first_wrong_byte(text) < text.size()) fail("byte ", first_wrong_byte(text), " is not UTF-8");
    content = JsonReader(text).read();
  } catch (const Error& error) {
    fail(manifest.string(), " is damaged (", error.what(), "); ", kAgain);
  }
  const Json *format = content.find("format"), *version = content.find("format_version");
  if (!format || format->string != "mmada-lite-bundle" || !version || !version->is(Json::Kind::integer)) {
    fail(manifest.string(), " does not describe a mmada-lite bundle; ", kAgain);
  }
  if (version->integer > kVersion) {
    fail(folder, " was made by a newer mmada-lite (bundle format ", version->integer, ", this program reads up to ", kVersion,
         "); upgrade with `pip install -U mmada-lite`");
  }
  return content;
}

void read_files(const Json& content, const std::string& where, Bundle& bundle) {
  const std::string graphs = where + ": graphs", files = where + ": files";
  for (const auto& [name, graph] : object_at(*content.find("graphs"), graphs).members) {
    const std::vector<Field> fields{{"file", Wanted::text}, {"inputs", Wanted::texts}, {"outputs", Wanted::texts}};
    bundle.graphs.files.emplace_back(name, record(graph, fields, graphs + "." + name).find("file")->string);
  }
  for (const auto& [name, file] : object_at(*content.find("files"), files).members) {
    record(file, {{"size", Wanted::whole}, {"sha256", Wanted::text}}, files + "." + name);
    bundle.files.push_back({name, number_in(file, "size"), file.find("sha256")->string, {}});
  }
}

Bundle parse_bundle(const fs::path& path, const Json& content) {
  Bundle bundle;
  bundle.path = path;
  const std::string where = (path / kManifest).string();
  std::vector<std::string> keys{"format",       "format_version", "name",   "architecture", "vocabulary", "image",
                                "quantization", "defaults",       "graphs", "files",        "provenance"};
  const auto required = keys;
  for (const char* optional : {"target", "tensors"}) keys.emplace_back(optional);
  check_keys(content, keys, required, where);
  const Json& defaults = object_at(*content.find("defaults"), where + ": defaults");
  check_keys(defaults, {"text", "image"}, {"text", "image"}, where + ": defaults");
  try {
    read_vocabulary(*content.find("vocabulary"), bundle);
  } catch (const Error& error) {
    fail(where, ": ", error.what());
  }
  const std::vector<Field> shape{{"d_model", Wanted::whole},         {"n_layers", Wanted::whole},
                                 {"n_heads", Wanted::whole},         {"n_kv_heads", Wanted::whole},
                                 {"head_dim", Wanted::whole},        {"mlp_hidden_size", Wanted::whole},
                                 {"vocab_size", Wanted::whole},      {"rope_theta", Wanted::positive},
                                 {"rms_norm_eps", Wanted::positive}, {"max_sequence_length", Wanted::whole}};
  const Json& architecture = record(*content.find("architecture"), shape, where + ": architecture");
  bundle.layers = number_in(architecture, "n_layers");
  bundle.kv_heads = number_in(architecture, "n_kv_heads");
  bundle.head_dim = number_in(architecture, "head_dim");
  bundle.longest = number_in(architecture, "max_sequence_length");
  if (const Json& image = *content.find("image"); !image.is(Json::Kind::null)) {
    record(image, {{"resolution", Wanted::whole}, {"downsample", Wanted::whole}}, where + ": image");
    bundle.resolution = number_in(image, "resolution");
    bundle.downsample = number_in(image, "downsample");
    if (bundle.downsample < 1 || bundle.resolution < 1 || bundle.resolution % bundle.downsample || bundle.resolution > kWidest) {
      fail(where, ": image.resolution is ", bundle.resolution, " and image.downsample ", bundle.downsample,
           "; the first must be a multiple of the second and at most ", kWidest, "; ", kAgain);
    }
  }
  const std::vector<Field> group{{"format", Wanted::text},
                                 {"bits", Wanted::maybe_whole, false},
                                 {"block", Wanted::maybe_whole, false},
                                 {"symmetric", Wanted::maybe_flag, false},
                                 {"scale", Wanted::maybe_text, false},
                                 {"activation", Wanted::maybe_text, false},
                                 {"bytes", Wanted::maybe_whole, false}};
  const std::string groups = where + ": quantization";
  for (const auto& [name, value] : object_at(*content.find("quantization"), groups).members)
    record(value, group, groups + "." + name);
  bundle.text_defaults = settings_at(*defaults.find("text"), where + ": defaults.text", read_text_settings);
  bundle.image_defaults = settings_at(*defaults.find("image"), where + ": defaults.image", read_image_settings);
  read_files(content, where, bundle);
  const std::vector<Field> made{{"source", Wanted::text},
                                {"exporter", Wanted::text},
                                {"versions", Wanted::versions},
                                {"created", Wanted::text},
                                {"source_sha256", Wanted::maybe_text, false},
                                {"method", Wanted::maybe_text, false}};
  record(*content.find("provenance"), made, where + ": provenance");
  if (const Json* target = content.find("target"); target && !target->is(Json::Kind::string)) {
    fail(where, ": target is ", shown(*target), ", which it cannot be; ", kAgain);
  }
  if (const Json* tensors = content.find("tensors")) {
    std::vector<Field> graphs;
    for (const auto& graph : object_at(*tensors, where + ": tensors").members) {
      graphs.push_back({graph.first.c_str(), Wanted::versions});
    }
    record(*tensors, graphs, where + ": tensors");
  }
  return bundle;
}

void verify(Bundle& bundle, bool all) {
  const std::string where = (bundle.path / kManifest).string();
  for (const auto& file : bundle.files) {
    const fs::path name(file.name);
    if (name.is_absolute() || std::find(name.begin(), name.end(), "..") != name.end()) {
      fail(where, ": the file ", quoted(file.name), " lies outside the bundle; ", kAgain);
    }
  }
  for (const auto& [graph, file] : bundle.graphs.files) {
    if (!bundle.has_file(file)) {
      fail(where, ": the file ", quoted(file), " of graph ", quoted(graph), " is not listed under files; ", kAgain);
    }
  }
  std::int64_t total = 0;
  std::error_code fault;
  for (auto& file : bundle.files) {
    const fs::path path = bundle.path / file.name;
    if (!fs::is_regular_file(path, fault)) fail(path.string(), ": this file of the bundle is missing; ", kAgain);
    const auto size = static_cast<std::int64_t>(fs::file_size(path, fault));
    if (size != file.size) {
      fail(path.string(), " is ", size < file.size ? "truncated" : "altered", ": ", size, " bytes, and ", kManifest, " says ",
           file.size, "; ", kAgain);
    }
    total += size;
  }
  for (auto& file : bundle.files) {
    const fs::path path = bundle.path / file.name;
    if ((all || total <= kHashedUpTo) && sha256_of(path) != file.sha256) {
      fail(path.string(), " was edited or damaged: its sha256 is not the one in ", kManifest, "; ", kAgain);
    }
    file.changed = fs::last_write_time(path, fault);
  }
}

// Graphs are opened as they are needed; what lies on the disk by then must be what was checked.
void still_the_same(const Bundle& bundle) {
  for (const auto& file : bundle.files) {
    std::error_code fault;
    const fs::path path = bundle.path / file.name;
    const auto size = fs::file_size(path, fault);
    if (!fault && static_cast<std::int64_t>(size) == file.size && fs::last_write_time(path, fault) == file.changed && !fault)
      continue;
    fail(path.string(), " was changed on disk while the model was in use; load the bundle again");
  }
}

// ---- sessions ----

struct Runtime {
  Ort::Env environment{ORT_LOGGING_LEVEL_ERROR, "mmada_lite"};
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
};

Runtime& runtime() {
  if (!OrtGetApiBase()->GetApi(ORT_API_VERSION)) {
    fail("this libonnxruntime (", OrtGetApiBase()->GetVersionString(),
         ") is older than the headers that the program was built with", " (interface ", ORT_API_VERSION, "); link a newer one");
  }
  static Runtime* const kept = new Runtime;  // never taken down: sessions of static lifetime may outlive it otherwise
  return *kept;
}

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

void check_device(const std::string& name) {
  if (name != "cpu" && name != "cuda") fail("no device is called ", quoted(name), "; use one of cpu, cuda");
  if (name == "cpu") return;
  const auto providers = Ort::GetAvailableProviders();
  if (std::find(providers.begin(), providers.end(), "CUDAExecutionProvider") == providers.end()) {
    fail("the linked onnxruntime has no CUDA provider; link the one that the package onnxruntime-gpu brings, or use cpu");
  }
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')).substr(0, 240); }

// Whether onnxruntime's fast kernels add up products of int8 exactly on this processor: on x86 without VNNI they add pairs of
// them in 16 bits, which can overflow. Where the system does not say: yes.
bool exact_int8() {
#if defined(__x86_64__) || defined(_M_X64)
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    line += ' ';
    return line.find(" avx512_vnni ") != std::string::npos || line.find(" avx_vnni ") != std::string::npos;
  }
#endif
  return true;
}

Ort::Session open_session(const fs::path& path, const Options& options) {
  Ort::SessionOptions made;
  made.SetIntraOpNumThreads(options.threads > 0 ? options.threads : usable_cores());
  made.SetInterOpNumThreads(1);
  made.AddConfigEntry("session.intra_op.allow_spinning", "0");  // waiting threads sleep: the host's other work needs the cores
  made.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  // Slower kernels whose sums do not overflow; only such a graph needs them, and others may not open with them.
  if (!exact_int8() && read_file(path).find("MatMulInteger") != std::string::npos) {
    made.AddConfigEntry("session.x64quantprecision", "1");
  }
  try {
    if (options.device == "cuda") made.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
    return Ort::Session(runtime().environment, path.c_str(), made);
  } catch (const Ort::Exception& error) {
    fail("onnxruntime cannot load ", path.string(), ": ", first_line(error.what()));
  }
}

// ---- denoiser: a window in, predictions out ----

using Values = std::vector<Ort::Value>;

std::int64_t size_of(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

// A tensor over memory that the caller keeps.
template <typename T>
Ort::Value tensor(const std::vector<T>& data, const std::vector<std::int64_t>& shape) {
  static T nothing{};  // an empty tensor needs an address all the same
  T* at = data.empty() ? &nothing : const_cast<T*>(data.data());
  return Ort::Value::CreateTensor<T>(runtime().memory, at, static_cast<std::size_t>(size_of(shape)), shape.data(),
                                     shape.size());
}

template <typename T>
const T* data_of(const Ort::Value& value) {
  const auto type = value.GetTensorTypeAndShapeInfo().GetElementType();
  if (type != Ort::TypeToTensorType<T>::type) fail("a graph of the bundle gives numbers of another type; ", kAgain);
  return value.GetTensorData<T>();
}

template <typename T>
std::vector<T> copied(const Ort::Value& value) {
  const T* data = data_of<T>(value);
  return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
}

std::vector<std::int64_t> shape_of(const Ort::Value& value, std::size_t axes) {
  auto shape = value.GetTensorTypeAndShapeInfo().GetShape();
  if (shape.size() != axes) fail("a graph of the bundle gives ", shape.size(), " axes where there are ", axes, "; ", kAgain);
  return shape;
}

Values run(Ort::Session& session, const std::vector<const char*>& given, const Values& inputs,
           const std::vector<const char*>& wanted) {
  try {
    return session.Run(Ort::RunOptions{nullptr}, given.data(), inputs.data(), inputs.size(), wanted.data(), wanted.size());
  } catch (const Ort::Exception& error) {
    fail("onnxruntime cannot run a graph of the bundle: ", first_line(error.what()));
  }
}

enum class Head { text, image };

// Keys and values of each layer, keys first: what a window leans on. Keys are rotated, so their order is of no consequence.
struct Past {
  std::vector<Floats> tensors;
  std::int64_t length = 0;
};

struct Window {
  std::int64_t rows, start, stop;  // B, and the positions that are computed
  Ids tokens;                      // [B, W]
  Ids queried;                     // [B, Q] indices into the window
  const Past* past = nullptr;
};

struct Hidden {
  Floats states;  // [R, Q, D]
  std::int64_t rows = 0, queried = 0, width = 0;
};

struct Prediction {
  Ids token;               // [N, Q]
  Floats log_probability;  // before any temperature
};

// How states are combined before a head: [N, R].
struct Mix {
  Floats weights;
  std::int64_t rows = 0;
};

class Denoiser {
 public:
  Denoiser(const Bundle& bundle, const Options& options)
      : layers_(bundle.layers), heads_(bundle.kv_heads), head_dim_(bundle.head_dim) {
    for (const auto& [slot, name] : {std::pair{&embedder_, "embedder"}, std::pair{&backbone_, "backbone"},
                                     std::pair{&text_head_, "text_head"}, std::pair{&image_head_, "image_head"}}) {
      if (const auto* file = bundle.graphs.find(name)) slot->emplace(open_session(bundle.path / *file, options));
    }
    if (backbone_ && (backbone_->GetInputCount() - 3) / 2 != static_cast<std::size_t>(layers_)) {
      fail((bundle.path / kManifest).string(), ": architecture.n_layers is ", layers_, " and the backbone has ",
           (backbone_->GetInputCount() - 3) / 2, "; ", kAgain);
    }
    for (const char* kind : {"key_", "value_"}) {
      for (std::int64_t layer = 0; layer < layers_; ++layer) names_.push_back(kind + std::to_string(layer));
    }
    for (const auto& name : names_) past_names_.push_back("past_" + name);
  }

  std::function<void(const Window&)> watch;  // told of every window, when it is set

  // States of the queried positions; with `kept`, the keys and values of the whole window too.
  Hidden forward(const Window& window, Values* kept) const {
    if (watch) watch(window);
    const std::int64_t width = window.stop - window.start;
    Ids positions;
    for (std::int64_t row = 0; row < window.rows; ++row) {
      for (std::int64_t p = window.start; p < window.stop; ++p) positions.push_back(p);
    }
    const std::int64_t queried = static_cast<std::int64_t>(window.queried.size()) / window.rows;
    Values tokens;
    tokens.push_back(tensor(window.tokens, {window.rows, width}));
    Values inputs = run(embedder_, {"tokens"}, tokens, {"embeddings"});
    inputs.push_back(tensor(positions, {window.rows, width}));
    inputs.push_back(tensor(window.queried, {window.rows, queried}));
    std::vector<const char*> given{"embeddings", "positions", "rows"}, wanted{"hidden"};
    static const Floats kNothing;
    for (std::size_t i = 0; i < past_names_.size(); ++i) {
      given.push_back(past_names_[i].c_str());
      inputs.push_back(tensor(window.past ? window.past->tensors[i] : kNothing,
                              {window.rows, heads_, window.past ? window.past->length : 0, head_dim_}));
      if (kept) wanted.push_back(names_[i].c_str());
    }
    Values found = run(backbone_, given, inputs, wanted);
    const auto shape = shape_of(found[0], 3);
    Hidden hidden{copied<float>(found[0]), shape[0], shape[1], shape[2]};
    if (kept) kept->assign(std::make_move_iterator(found.begin() + 1), std::make_move_iterator(found.end()));
    return hidden;
  }

  // The most probable token at temperature 0, else a draw by inverse CDF at `draws` [N, Q].
  Prediction predict(Head head, const Hidden& hidden, const Mix& mix, double temperature, const Floats* draws) const {
    const Values found = run_head(head, hidden, mix, temperature, draws, {"token", "log_probability"});
    return {copied<std::int64_t>(found[0]), copied<float>(found[1])};
  }

  Floats logits(Head head, const Hidden& hidden, const Mix& mix) const {
    return copied<float>(run_head(head, hidden, mix, 0.0, nullptr, {"logits"})[0]);
  }

 private:
  using Slot = std::optional<Ort::Session>;

  static Values run(const Slot& slot, const std::vector<const char*>& given, const Values& inputs,
                    const std::vector<const char*>& wanted) {
    if (!slot) fail("the bundle lacks a graph that this needs; ", kAgain);
    return mmada_lite::run(const_cast<Ort::Session&>(*slot), given, inputs, wanted);  // safe from several threads
  }

  Values run_head(Head head, const Hidden& hidden, const Mix& mix, double temperature, const Floats* draws,
                  const std::vector<const char*>& wanted) const {
    const Floats heat{static_cast<float>(temperature)};
    const Floats middle(draws ? 0 : static_cast<std::size_t>(mix.rows * hidden.queried), 0.5f);
    Values inputs;
    inputs.push_back(tensor(hidden.states, {hidden.rows, hidden.queried, hidden.width}));
    inputs.push_back(tensor(mix.weights, {mix.rows, hidden.rows}));
    inputs.push_back(tensor(heat, {}));
    inputs.push_back(tensor(draws ? *draws : middle, {mix.rows, hidden.queried}));
    return run(head == Head::text ? text_head_ : image_head_, {"hidden", "mix", "temperature", "uniform"}, inputs, wanted);
  }

  std::int64_t layers_, heads_, head_dim_;
  Slot embedder_, backbone_, text_head_, image_head_;
  std::vector<std::string> names_, past_names_;
};

// ---- canvas ----

// Rows of tokens of which some are still masks. `editable` says where decoding may write; the region start..stop is what the
// loop walks. With guidance, `unconditional` is the same rows without their prompt: position p of `shared` stands there at p +
// shift.
struct Canvas {
  std::int64_t rows = 1, length = 0, start = 0, stop = 0, mask = 0;
  Ids tokens;      // [B, L]
  Bools editable;  // [B, L]
  bool guided = false;
  std::int64_t other_length = 0;
  Ids unconditional;  // [B, Lu]
  Ids shared;
  std::int64_t shift = 0;
  std::int64_t code_offset = 0;

  Bools masked() const {
    Bools found(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) found[i] = tokens[i] == mask && editable[i];
    return found;
  }
  std::size_t at(std::int64_t row, std::int64_t position) const { return static_cast<std::size_t>(row * length + position); }

  void follow() {
    for (std::int64_t row = 0; guided && row < rows; ++row) {
      for (const auto p : shared) unconditional[static_cast<std::size_t>(row * other_length + p + shift)] = tokens[at(row, p)];
    }
  }
};

Canvas text_canvas(const Ids& prompt, std::int64_t answer_length, std::int64_t mask, bool guided) {
  Canvas canvas;
  canvas.start = static_cast<std::int64_t>(prompt.size());
  canvas.length = canvas.stop = canvas.start + answer_length;
  canvas.mask = mask;
  canvas.tokens = prompt;
  canvas.tokens.resize(static_cast<std::size_t>(canvas.length), mask);
  for (const auto token : canvas.tokens) canvas.editable.push_back(token == mask);
  canvas.guided = guided;
  if (!guided) return canvas;
  canvas.other_length = canvas.length;
  canvas.unconditional.assign(canvas.tokens.size(), mask);
  for (std::int64_t p = 0; p < canvas.length; ++p) {
    if (canvas.editable[static_cast<std::size_t>(p)]) canvas.shared.push_back(p);
  }
  return canvas;
}

Ids paint_prompt(const Ids& words, const Special& special) {
  Ids row{special.t2i};
  if (words.empty() || words.front() != special.bos) row.push_back(special.bos);
  row.insert(row.end(), words.begin(), words.end());
  row.push_back(special.eos);
  return row;
}

Canvas image_canvas(const Ids& prompt, const Ids& codes, const Bools& unknown, const Bundle& bundle,
                    const Ids* unconditional_prompt) {
  Canvas canvas;
  canvas.mask = bundle.special.mask;
  canvas.code_offset = bundle.code_offset;
  canvas.tokens = prompt;
  canvas.tokens.push_back(bundle.special.soi);
  canvas.start = static_cast<std::int64_t>(canvas.tokens.size());
  canvas.stop = canvas.start + static_cast<std::int64_t>(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i)
    canvas.tokens.push_back(unknown[i] ? canvas.mask : canvas.code_offset + codes[i]);
  canvas.tokens.push_back(bundle.special.eoi);
  canvas.length = static_cast<std::int64_t>(canvas.tokens.size());
  canvas.editable.assign(canvas.tokens.size(), 0);
  std::copy(unknown.begin(), unknown.end(), canvas.editable.begin() + canvas.start);
  if (!unconditional_prompt) return canvas;
  canvas.guided = true;
  canvas.unconditional = *unconditional_prompt;
  canvas.unconditional.insert(canvas.unconditional.end(), canvas.tokens.begin() + canvas.start - 1, canvas.tokens.end());
  canvas.other_length = static_cast<std::int64_t>(canvas.unconditional.size());
  canvas.shift = canvas.other_length - canvas.length;
  for (std::int64_t p = canvas.start; p < canvas.stop; ++p) canvas.shared.push_back(p);
  return canvas;
}

// ---- selection: which guesses of a step are kept; minus infinity marks what may not be ----

constexpr float kNever = -std::numeric_limits<float>::infinity();

// The counts[b] best of each row [B, Q], the leftmost first among equals.
Bools most_confident(const Floats& confidence, std::int64_t width, const Ids& counts) {
  Bools chosen(confidence.size());
  std::vector<std::size_t> order(static_cast<std::size_t>(width));
  for (std::size_t row = 0; row < counts.size(); ++row) {
    const float* sure = confidence.data() + row * order.size();
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return sure[a] > sure[b]; });
    for (std::size_t rank = 0; rank < order.size() && static_cast<std::int64_t>(rank) < counts[row]; ++rank) {
      chosen[row * order.size() + order[rank]] = std::isfinite(sure[order[rank]]);
    }
  }
  return chosen;
}

Bools above_threshold(const Floats& confidence, std::int64_t width, std::int64_t rows, float least) {
  Bools chosen = most_confident(confidence, width, Ids(static_cast<std::size_t>(rows), 1));
  for (std::size_t i = 0; i < confidence.size(); ++i)
    chosen[i] = chosen[i] || (std::isfinite(confidence[i]) && confidence[i] >= least);
  return chosen;
}

// Strictly below the counts[b]-th smallest (from 0) of its row [B, N]: fewer on ties.
Bools remask_least_confident(const Floats& confidence, std::int64_t width, const Ids& counts) {
  Bools again(confidence.size());
  for (std::size_t row = 0; row < counts.size(); ++row) {
    const auto first = confidence.begin() + static_cast<std::ptrdiff_t>(row) * width;
    Floats ordered(first, first + width);
    std::sort(ordered.begin(), ordered.end());
    const float cutoff = ordered[static_cast<std::size_t>(std::min(counts[row], width - 1))];
    for (std::int64_t i = 0; i < width; ++i)
      again[row * static_cast<std::size_t>(width) + static_cast<std::size_t>(i)] = first[i] < cutoff;
  }
  return again;
}

// ---- where random choices come from ----

struct Sampler {
  virtual ~Sampler() = default;
  // One token for each of the positions [B, Q].
  virtual Prediction draw(const Denoiser& denoiser, Head head, const Hidden& hidden, const Mix& mix, std::int64_t step,
                          const Ids& positions) = 0;
  // One uniform number for each, for confidence noise or a random order.
  virtual Floats order(Head head, std::int64_t step, const Ids& positions, std::int64_t rows) = 0;
};

// Draws addressed by seed, purpose, step, row and place in the region.
struct PhiloxSampler final : Sampler {
  PhiloxSampler(std::uint64_t seed, double temperature, std::int64_t start)
      : seed(seed), temperature(temperature), start(start) {}

  Prediction draw(const Denoiser& denoiser, Head head, const Hidden& hidden, const Mix& mix, std::int64_t step,
                  const Ids& positions) override {
    if (!(temperature > 0)) return denoiser.predict(head, hidden, mix, temperature, nullptr);
    const Floats draws = numbers(head == Head::text ? Stream::text_token : Stream::image_code, step, positions, mix.rows);
    return denoiser.predict(head, hidden, mix, temperature, &draws);
  }
  Floats order(Head head, std::int64_t step, const Ids& positions, std::int64_t rows) override {
    return numbers(head == Head::text ? Stream::text_order : Stream::image_confidence, step, positions, rows);
  }

 private:
  Floats numbers(Stream stream, std::int64_t step, const Ids& positions, std::int64_t rows) const {
    Floats found;
    const std::size_t width = positions.size() / static_cast<std::size_t>(rows);
    for (std::size_t i = 0; i < positions.size(); ++i) {
      found.push_back(uniform(seed, stream, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(i / width),
                              static_cast<std::uint32_t>(positions[i] - start)));
    }
    return found;
  }

  std::uint64_t seed;
  double temperature;
  std::int64_t start;
};

// ---- the two decoding loops ----

struct Block {
  std::int64_t start, stop, steps;
};

std::vector<Block> blocks_of(const TextSettings& s, std::int64_t start) {
  std::vector<Block> blocks;
  const Ids shares = transfers(s.steps, blocks_in(s));
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const std::int64_t low = static_cast<std::int64_t>(i) * s.block_length,
                       high = std::min(low + s.block_length, s.answer_length);
    blocks.push_back({start + low, start + high, std::max<std::int64_t>(1, std::min(shares[i], high - low))});
  }
  return blocks;
}

// What one block keeps of its last full forward: a past for each branch, and the window that is computed afresh.
struct Memory {
  std::vector<Past> pasts;
  std::int64_t start = 0, stop = 0;
};

// Everything but the positions start..stop-1 of keys or values [B, H, P, D].
Past without(const Values& kept, std::int64_t start, std::int64_t stop) {
  Past past;
  for (const auto& value : kept) {
    const auto shape = shape_of(value, 4);
    const std::int64_t length = shape[2], width = shape[3];
    const float* data = data_of<float>(value);
    Floats left;
    for (std::int64_t outer = 0; outer < shape[0] * shape[1]; ++outer, data += length * width) {
      left.insert(left.end(), data, data + start * width);
      if (stop < length) left.insert(left.end(), data + stop * width, data + length * width);
    }
    past.length = start + std::max<std::int64_t>(0, length - stop);
    past.tensors.push_back(std::move(left));
  }
  return past;
}

struct Reading {
  Hidden hidden;
  Mix mix;
  std::int64_t width = 0;  // Q
  Ids positions;           // [B, Q]
  Bools valid;             // a row that has fewer repeats position 0 there
  std::vector<Values> kept;
};

// One model call over the window (all of the row, or what `memory` leaves), for the positions `where` [B, L].
Reading read(const Denoiser& denoiser, const Canvas& canvas, const Bools& where, double guidance, const Memory* memory,
             bool keep) {
  Reading reading;
  std::vector<Ids> found(static_cast<std::size_t>(canvas.rows));
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    for (std::int64_t p = 0; p < canvas.length; ++p) {
      if (where[canvas.at(row, p)]) found[static_cast<std::size_t>(row)].push_back(p);
    }
    reading.width =
        std::max({reading.width, std::int64_t{1}, static_cast<std::int64_t>(found[static_cast<std::size_t>(row)].size())});
  }
  for (auto& row : found) {
    const std::size_t count = row.size(), width = static_cast<std::size_t>(reading.width);
    row.resize(width, 0);
    reading.positions.insert(reading.positions.end(), row.begin(), row.end());
    for (std::size_t i = 0; i < width; ++i) reading.valid.push_back(i < count);
  }
  const int branches = canvas.guided ? 2 : 1;
  for (int branch = 0; branch < branches; ++branch) {
    const std::int64_t shift = branch ? canvas.shift : 0, length = branch ? canvas.other_length : canvas.length;
    Window window{canvas.rows, memory ? memory->start + shift : 0, memory ? memory->stop + shift : length, {}, {}, nullptr};
    const Ids& tokens = branch ? canvas.unconditional : canvas.tokens;
    for (std::int64_t row = 0; row < canvas.rows; ++row) {
      const auto first = tokens.begin() + row * length;
      window.tokens.insert(window.tokens.end(), first + window.start, first + window.stop);
    }
    for (const auto p : reading.positions) {
      window.queried.push_back(std::clamp<std::int64_t>(p + shift - window.start, 0, window.stop - window.start - 1));
    }
    if (memory) window.past = &memory->pasts[static_cast<std::size_t>(branch)];
    Values kept;
    Hidden hidden = denoiser.forward(window, keep ? &kept : nullptr);
    if (keep) reading.kept.push_back(std::move(kept));
    if (!branch) {
      reading.hidden = std::move(hidden);
    } else {
      reading.hidden.states.insert(reading.hidden.states.end(), hidden.states.begin(), hidden.states.end());
      reading.hidden.rows += hidden.rows;
    }
  }
  const auto rows = static_cast<std::size_t>(canvas.rows), columns = rows * static_cast<std::size_t>(branches);
  reading.mix = {Floats(rows * columns, 0.0f), canvas.rows};
  for (std::size_t row = 0; row < rows; ++row) {
    reading.mix.weights[row * columns + row] = branches == 1 ? 1.0f : static_cast<float>(1 + guidance);
    if (branches == 2) reading.mix.weights[row * columns + rows + row] = static_cast<float>(-guidance);
  }
  return reading;
}

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count(); }

 private:
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

using Sink = std::function<bool(Step&&)>;  // false ends the decoding

Bools candidates(const Canvas& canvas, const Block& block, const Memory* memory) {
  Bools where = canvas.masked();
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    for (std::int64_t p = 0; p < canvas.length; ++p) {
      if (p >= block.stop || (memory && p < memory->start)) where[canvas.at(row, p)] = 0;
    }
  }
  return where;
}

std::int64_t count_between(const Canvas& canvas, const Bools& flags, std::int64_t row, std::int64_t start, std::int64_t stop) {
  std::int64_t count = 0;
  for (std::int64_t p = start; p < stop; ++p) count += flags[canvas.at(row, p)];
  return count;
}

bool any_between(const Canvas& canvas, const Bools& flags, std::int64_t start, std::int64_t stop) {
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    if (count_between(canvas, flags, row, start, stop)) return true;
  }
  return false;
}

bool finished(const Canvas& canvas, const Block& block, const Memory* memory) {
  return !any_between(canvas, candidates(canvas, block, memory), 0, canvas.length);
}

// A guess that is the mask itself would write nothing: the best other token there.
void never_mask(const Denoiser& denoiser, Head head, const Reading& reading, std::int64_t mask, Prediction& guess) {
  bool any = false;
  for (std::size_t i = 0; i < guess.token.size(); ++i) any = any || (guess.token[i] == mask && reading.valid[i]);
  if (!any) return;
  const Floats logits = denoiser.logits(head, reading.hidden, reading.mix);
  const std::size_t size = logits.size() / guess.token.size(), masked = static_cast<std::size_t>(mask);
  for (std::size_t i = 0; i < guess.token.size(); ++i) {
    if (guess.token[i] != mask || !reading.valid[i]) continue;
    const float* row = logits.data() + i * size;
    std::size_t best = masked == 0 ? 1 : 0;
    for (std::size_t v = 0; v < size; ++v) {
      if (v != masked && row[v] > row[best]) best = v;
    }
    double total = 0;
    for (std::size_t v = 0; v < size; ++v) {
      if (v != masked) total += std::exp(static_cast<double>(row[v]) - static_cast<double>(row[best]));
    }
    guess.token[i] = static_cast<std::int64_t>(best);
    guess.log_probability[i] = static_cast<float>(-std::log(total));
  }
}

// Tokens to write at each step of a block [B][steps].
std::vector<Ids> quota_of(const Canvas& canvas, const Block& block) {
  std::vector<Ids> quota;
  const Bools masked = canvas.masked();
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    quota.push_back(transfers(count_between(canvas, masked, row, 0, block.stop), block.steps));
  }
  return quota;
}

Bools choose(const Canvas& canvas, const Prediction& guess, const Reading& reading, const TextSettings& s, Sampler& sampler,
             std::int64_t number, const std::vector<Ids>& quota, std::int64_t turn) {
  Floats confidence = guess.log_probability;
  if (s.order == "random") confidence = sampler.order(Head::text, number, reading.positions, canvas.rows);
  for (std::size_t i = 0; i < confidence.size(); ++i) {
    if (!reading.valid[i]) confidence[i] = kNever;
  }
  if (s.threshold) return above_threshold(confidence, reading.width, canvas.rows, static_cast<float>(std::log(*s.threshold)));
  Ids counts;
  for (std::size_t row = 0; row < quota.size(); ++row) {
    const auto first = reading.valid.begin() + static_cast<std::ptrdiff_t>(row) * reading.width;
    const auto all = static_cast<std::int64_t>(std::count(first, first + reading.width, 1));
    counts.push_back(turn < static_cast<std::int64_t>(quota[row].size()) ? quota[row][static_cast<std::size_t>(turn)] : all);
  }
  return most_confident(confidence, reading.width, counts);
}

// True when every row's answer is over: a stop token among its finished tokens.
bool ended(const Canvas& canvas, const Block& block, const Ids& ends) {
  if (ends.empty()) return false;
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    const auto first = canvas.tokens.begin() + row * canvas.length;
    if (std::find_first_of(first + canvas.start, first + block.stop, ends.begin(), ends.end()) == first + block.stop) return false;
  }
  return true;
}

// Fills the canvas's answer block by block, the surest positions first. Ends after a block in which every row has one of the
// tokens `ends`. False when the sink stopped it.
bool decode_text(const Denoiser& denoiser, Canvas& canvas, const TextSettings& s, Sampler& sampler, const Ids& ends,
                 const Sink& sink) {
  const Clock clock;
  const auto blocks = blocks_of(s, canvas.start);
  std::optional<std::int64_t> total;
  if (!s.threshold) {
    total = 0;
    for (const auto& block : blocks) *total += block.steps;
  }
  std::int64_t number = 0;
  for (const auto& block : blocks) {
    const auto quota = quota_of(canvas, block);
    std::optional<Memory> memory;
    for (std::int64_t turn = 0; !finished(canvas, block, memory ? &*memory : nullptr); ++turn, ++number) {
      const Bools where = candidates(canvas, block, memory ? &*memory : nullptr);
      const bool keep = s.cache != "none" && turn == 0;
      const Reading reading = read(denoiser, canvas, where, s.guidance, memory ? &*memory : nullptr, keep);
      Prediction guess = sampler.draw(denoiser, Head::text, reading.hidden, reading.mix, number, reading.positions);
      never_mask(denoiser, Head::text, reading, canvas.mask, guess);
      const Bools chosen = choose(canvas, guess, reading, s, sampler, number, quota, turn);
      if (keep) {
        std::int64_t first = block.start;
        for (std::int64_t p = 0; p < first; ++p) {
          if (any_between(canvas, where, p, p + 1)) first = p;
        }
        memory.emplace(Memory{{}, first, s.cache == "dual" ? block.stop : canvas.length});
        for (const auto& branch : reading.kept) memory->pasts.push_back(without(branch, memory->start, memory->stop));
      }
      Step step;
      step.index = number;
      step.of = total;
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        if (!chosen[i]) continue;
        canvas.tokens[canvas.at(static_cast<std::int64_t>(i) / reading.width, reading.positions[i])] = guess.token[i];
        step.positions.push_back(reading.positions[i]);
        step.tokens.push_back(guess.token[i]);
        step.log_probabilities.push_back(guess.log_probability[i]);
      }
      canvas.follow();
      const Bools masked = canvas.masked();
      for (std::int64_t row = 0; row < canvas.rows; ++row)
        step.remaining += count_between(canvas, masked, row, canvas.start, canvas.stop);
      step.forwards = number + 1;
      step.seconds = clock.seconds();
      if (!sink(std::move(step))) return false;
    }
    if (ended(canvas, block, ends)) break;
  }
  return true;
}

// How many codes go back to mask: fewer than now. Each later step keeps at least one to draw, and nothing is left after the last.
std::int64_t left_masked(std::int64_t open, std::int64_t planned, std::int64_t steps_left) {
  return std::max<std::int64_t>(std::min(open - 1, steps_left ? std::max(planned, steps_left) : 0), 0);
}

// Draws the canvas's masked codes, keeps the surest by the schedule. False when the sink stopped it.
bool decode_image(const Denoiser& denoiser, Canvas& canvas, const ImageSettings& s, Sampler& sampler, const Sink& sink) {
  const Clock clock;
  const std::int64_t length = canvas.stop - canvas.start;
  const auto cell = [&](std::int64_t row, std::int64_t i) { return static_cast<std::size_t>(row * length + i); };
  std::vector<Ids> plans;
  Ids everywhere;
  const Bools unknown = canvas.masked();
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    const auto open = count_between(canvas, unknown, row, canvas.start, canvas.stop);
    plans.push_back(masked_after(s.schedule, open, s.steps));
    for (std::int64_t p = canvas.start; p < canvas.stop; ++p) everywhere.push_back(p);
  }
  const auto temperatures = noise_temperatures(s.temperature, s.steps);
  const float known = std::numeric_limits<float>::infinity();
  const float least = static_cast<float>(std::log(static_cast<double>(1e-20f)));
  for (std::int64_t k = 0; k < s.steps; ++k) {
    const Bools masked = canvas.masked();
    Ids guess, open, counts;
    for (std::int64_t row = 0; row < canvas.rows; ++row) {
      open.push_back(count_between(canvas, masked, row, canvas.start, canvas.stop));
      const auto planned = plans[static_cast<std::size_t>(row)][static_cast<std::size_t>(k)];
      counts.push_back(left_masked(open.back(), planned, s.steps - 1 - k));
      guess.insert(guess.end(), canvas.tokens.begin() + row * canvas.length + canvas.start,
                   canvas.tokens.begin() + row * canvas.length + canvas.stop);
    }
    const Ids given = guess;
    Floats confidence(guess.size(), known);
    if (std::any_of(open.begin(), open.end(), [](auto n) { return n > 0; })) {
      const Reading reading = read(denoiser, canvas, masked, s.guidance, nullptr, false);
      const Prediction drawn = sampler.draw(denoiser, Head::image, reading.hidden, reading.mix, k, reading.positions);
      for (std::size_t i = 0; i < reading.positions.size(); ++i) {
        if (!reading.valid[i]) continue;
        const auto to = cell(static_cast<std::int64_t>(i) / reading.width, reading.positions[i] - canvas.start);
        guess[to] = drawn.token[i] + canvas.code_offset;
        confidence[to] = std::max(drawn.log_probability[i], least);
      }
    }
    const Floats surest = confidence;
    const double temperature = temperatures[static_cast<std::size_t>(k)];
    if (temperature > 0) {
      const Floats noise = sampler.order(Head::image, k, everywhere, canvas.rows);
      for (std::size_t i = 0; i < noise.size(); ++i)
        confidence[i] += rounded(static_cast<float>(temperature) * gumbel(noise[i]));
    }
    const Bools again = remask_least_confident(confidence, length, counts);
    Step step;
    step.index = k;
    step.of = s.steps;
    for (std::int64_t row = 0; row < canvas.rows; ++row) {
      for (std::int64_t i = 0; i < length; ++i) {
        const auto token = again[cell(row, i)] ? canvas.mask : guess[cell(row, i)];
        step.guess.ids.push_back(guess[cell(row, i)] - canvas.code_offset);
        if (token == given[cell(row, i)]) continue;
        canvas.tokens[canvas.at(row, canvas.start + i)] = token;
        step.positions.push_back(canvas.start + i);
        step.tokens.push_back(token);
        step.log_probabilities.push_back(surest[cell(row, i)]);
      }
    }
    canvas.follow();
    const Bools after = canvas.masked();
    for (std::int64_t row = 0; row < canvas.rows; ++row) step.remaining += count_between(canvas, after, row, 0, canvas.length);
    step.forwards = k + 1;
    step.seconds = clock.seconds();
    if (!sink(std::move(step))) return false;
  }
  return true;
}

// ---- pictures ----

// Bytes of 1 or 3 channels, row by row.
struct Raster {
  std::int64_t width, height, channels;
  std::vector<std::uint8_t> bytes;
};

double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return -0.5 * (((x - 5) * x + 8) * x - 4);
  return 0;
}

// One direction of a bicubic resize with antialiasing, in 22-bit fixed point: what Pillow gives, bit for bit. Rows become
// columns, so that calling it twice resizes both directions.
Raster resized_and_turned(const Raster& image, std::int64_t size) {
  constexpr int kBits = 22;
  Raster out{image.height, size, image.channels,
             std::vector<std::uint8_t>(static_cast<std::size_t>(image.height * size * image.channels))};
  const double scale = static_cast<double>(image.width) / static_cast<double>(size), wide = std::max(scale, 1.0),
               reach = 2.0 * wide;
  for (std::int64_t x = 0; x < size; ++x) {
    const double centre = (static_cast<double>(x) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - reach + 0.5), 0);
    const auto past = std::min(static_cast<std::int64_t>(centre + reach + 0.5), image.width);
    std::vector<double> weights;
    double total = 0;
    for (auto i = first; i < past; ++i) {
      weights.push_back(cubic((static_cast<double>(i) - centre + 0.5) * (1.0 / wide)));
      total += weights.back();
    }
    std::vector<int> fixed;
    for (double w : weights) {
      w = (total != 0 ? w / total : w) * (1 << kBits);
      fixed.push_back(static_cast<int>(w + (w < 0 ? -0.5 : 0.5)));
    }
    for (std::int64_t y = 0; y < image.height; ++y) {
      for (std::int64_t c = 0; c < image.channels; ++c) {
        const std::uint8_t* from = image.bytes.data() + (y * image.width + first) * image.channels + c;
        std::int64_t sum = 1 << (kBits - 1);
        for (std::size_t i = 0; i < fixed.size(); ++i) sum += from[static_cast<std::int64_t>(i) * image.channels] * fixed[i];
        const auto value = std::clamp<std::int64_t>(sum >> kBits, 0, 255);
        out.bytes[static_cast<std::size_t>((x * image.height + y) * image.channels + c)] = static_cast<std::uint8_t>(value);
      }
    }
  }
  return out;
}

Raster turned_over(const Raster& image) {
  Raster out{image.height, image.width, image.channels, std::vector<std::uint8_t>(image.bytes.size())};
  for (std::int64_t y = 0; y < image.height; ++y) {
    for (std::int64_t x = 0; x < image.width; ++x) {
      const auto from = image.bytes.begin() + (y * image.width + x) * image.channels;
      std::copy(from, from + image.channels, out.bytes.begin() + (x * image.height + y) * image.channels);
    }
  }
  return out;
}

Raster resized(const Raster& image, std::int64_t width, std::int64_t height) {
  const Raster across = image.width == width ? turned_over(image) : resized_and_turned(image, width);
  return across.width == height ? turned_over(across) : resized_and_turned(across, height);
}

// A square of `side` pixels.
Raster fitted(const Raster& image, std::int64_t side, Fit how) {
  if (how == Fit::squash) return resized(image, side, side);
  const auto shorter = std::min(image.width, image.height), longer = std::max(image.width, image.height);
  const auto other = static_cast<std::int64_t>(static_cast<double>(side * longer) / static_cast<double>(shorter));
  const bool upright = image.width <= image.height;
  const Raster whole = resized(image, upright ? side : other, upright ? other : side);
  const auto left = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(whole.width - side) / 2.0));
  const auto top = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(whole.height - side) / 2.0));
  Raster out{side, side, image.channels, {}};
  for (std::int64_t y = top; y < top + side; ++y) {
    const auto from = whole.bytes.begin() + (y * whole.width + left) * whole.channels;
    out.bytes.insert(out.bytes.end(), from, from + side * whole.channels);
  }
  return out;
}

Raster raster_of(const Picture& picture) {
  const auto needed = std::int64_t{3} * picture.width * picture.height;
  if (picture.width < 1 || picture.height < 1 || static_cast<std::int64_t>(picture.rgb.size()) != needed) {
    fail("the picture is said to be ", picture.width, " x ", picture.height, " pixels and holds ", picture.rgb.size(),
         " bytes; give 3 for each pixel");
  }
  return {picture.width, picture.height, 3, picture.rgb};
}

Picture picture_from(Raster raster) {
  return {static_cast<int>(raster.width), static_cast<int>(raster.height), std::move(raster.bytes)};
}

Floats pixels_of(const Raster& image) {  // [3, H, W] in -1..1
  Floats pixels;
  const auto count = static_cast<std::size_t>(image.width * image.height);
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t i = 0; i < count; ++i) {
      const float share = rounded(static_cast<float>(image.bytes[3 * i + c]) / 255.0f);
      pixels.push_back(rounded(share - 0.5f) / 0.5f);
    }
  }
  return pixels;
}

// Cells of a grid that a mask touches.
Bools cells_under(const Raster& shade, std::int64_t downsample) {
  const std::int64_t columns = (shade.width + downsample - 1) / downsample, rows = (shade.height + downsample - 1) / downsample;
  Bools cells(static_cast<std::size_t>(rows * columns));
  for (std::int64_t y = 0; y < shade.height; ++y) {
    for (std::int64_t x = 0; x < shade.width; ++x) {
      if (shade.bytes[static_cast<std::size_t>(y * shade.width + x)] >= 128) {
        cells[static_cast<std::size_t>(y / downsample * columns + x / downsample)] = 1;
      }
    }
  }
  return cells;
}

// A grid turned by quarter turns, against the clock.
Codes turned(const Codes& grid, int quarters) {
  Codes found = grid;
  for (int turn = 0; turn < ((quarters % 4) + 4) % 4; ++turn) {
    const Codes before = found;
    found = {before.columns, before.rows, {}};
    for (int i = 0; i < found.rows; ++i) {
      for (int j = 0; j < found.columns; ++j) {
        found.ids.push_back(before.ids[static_cast<std::size_t>(j * before.columns + before.columns - 1 - i)]);
      }
    }
  }
  return found;
}

}  // namespace

Picture read_ppm(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail("no picture at ", file, "; check the path");
  std::string magic;
  int numbers[3] = {0, 0, 0};
  stream >> magic;
  for (int& number : numbers) {
    while ((stream >> std::ws).peek() == '#') stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    stream >> number;
  }
  stream.get();
  const auto [width, height, most] = numbers;
  if (magic != "P6" || !stream || width < 1 || height < 1 || most != 255 || std::int64_t{width} * height > 64'000'000) {
    fail(file, " is not a binary PPM (P6) of 8 bits and at most 64,000,000 pixels; convert it");
  }
  Picture picture{
      width, height,
      std::vector<std::uint8_t>(std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height))};
  if (!stream.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()))) {
    fail(file, " is cut short; fetch it again");
  }
  return picture;
}

void write_ppm(const std::string& file, const Picture& picture) {
  raster_of(picture);  // for its errors
  const std::string partial = file + ".partial";
  std::ofstream stream(partial, std::ios::binary);
  stream << "P6\n" << picture.width << ' ' << picture.height << "\n255\n";
  stream.write(reinterpret_cast<const char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
  stream.close();
  std::error_code fault;
  if (stream) fs::rename(partial, file, fault);
  if (stream && !fault) return;
  fs::remove(partial, fault);
  fail(file, ": cannot be written here; choose another folder");
}

// ---- the model ----

struct Model::Impl {
  Impl(Bundle opened, const Options& options) : bundle(std::move(opened)), options(options), denoiser(bundle, options) {
    if (!bundle.has_file("tokenizer.json")) {
      no_tokenizer = join(bundle.path.string(), " has no tokenizer.json, so it cannot read text; export it with its tokenizer");
      return;
    }
    try {
      tokenizer.emplace(bundle.path / "tokenizer.json");
    } catch (const Error& error) {
      no_tokenizer = error.what();
      if (no_tokenizer.find(" is not a tokenizer.json") != std::string::npos) throw;
    }
  }

  Bundle bundle;
  Options options;
  Denoiser denoiser;
  std::optional<Tokenizer> tokenizer;
  std::string no_tokenizer;
  mutable std::mutex opening;
  mutable std::optional<Ort::Session> encoder, decoder;

  const Tokenizer& words() const {
    if (!tokenizer) throw Error(no_tokenizer);
    return *tokenizer;
  }

  int grid() const {
    if (!bundle.resolution || !bundle.graphs.find("image_decoder") || !bundle.graphs.find("image_encoder")) {
      fail(bundle.path.string(), " has no image tokenizer and cannot see or draw; export it with its vq folder");
    }
    return static_cast<int>(bundle.resolution / bundle.downsample);
  }

  Ort::Session& codec(const char* name, std::optional<Ort::Session>& slot) const {
    grid();
    const std::lock_guard<std::mutex> lock(opening);
    if (!slot) {
      still_the_same(bundle);
      slot.emplace(open_session(bundle.path / *bundle.graphs.find(name), options));
    }
    return *slot;
  }

  Codes encode(const Raster& square) const {
    const Floats pixels = pixels_of(square);
    Ort::Session& session = codec("image_encoder", encoder);
    Values input;
    input.push_back(tensor(pixels, {1, 3, square.height, square.width}));
    const Values found = run(session, {"pixels"}, input, {"codes"});
    const auto shape = shape_of(found[0], 3);
    if (shape[1] != grid() || shape[2] != grid()) {
      fail("the image encoder gives ", shape[1], " x ", shape[2], " codes where ", kManifest, " says ", grid(), "; ", kAgain);
    }
    return {grid(), grid(), copied<std::int64_t>(found[0])};
  }

  Raster decode(const Codes& codes) const {
    check_codes(codes);
    Ort::Session& session = codec("image_decoder", decoder);
    Values input;
    input.push_back(tensor(codes.ids, {1, codes.rows, codes.columns}));
    const Values found = run(session, {"codes"}, input, {"pixels"});
    const auto shape = shape_of(found[0], 4);
    if (shape[1] != 3 || shape[2] != codes.rows * bundle.downsample || shape[3] != codes.columns * bundle.downsample) {
      fail("the image decoder gives ", shape[2], " x ", shape[3], " pixels where ", kManifest, " says ",
           codes.rows * bundle.downsample, " x ", codes.columns * bundle.downsample, "; ", kAgain);
    }
    const float* pixels = data_of<float>(found[0]);
    const auto count = static_cast<std::size_t>(shape[2] * shape[3]);
    Raster image{shape[3], shape[2], 3, std::vector<std::uint8_t>(3 * count)};
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t c = 0; c < 3; ++c) {
        const float share = std::clamp(rounded(rounded(pixels[c * count + i] + 1.0f) / 2.0f), 0.0f, 1.0f);
        image.bytes[3 * i + c] = static_cast<std::uint8_t>(rounded(share * 255.0f));
      }
    }
    return image;
  }

  void check_codes(const Codes& codes) const {
    if (codes.rows < 1 || codes.columns < 1 ||
        static_cast<std::int64_t>(codes.ids.size()) != std::int64_t{codes.rows} * codes.columns) {
      fail("the grid is said to be ", codes.rows, " x ", codes.columns, " codes and holds ", codes.ids.size(),
           "; give one for each cell");
    }
    for (const auto code : codes.ids) {
      if (code < 0 || code >= bundle.codebook) fail("the code ", code, " is none of the model's 0 to ", bundle.codebook - 1);
    }
  }

  void check_ids(const Ids& ids) const {
    for (const auto id : ids) {
      if (id < 0 || id >= bundle.size) fail("the id ", id, " is none of the model's 0 to ", bundle.size - 1);
    }
  }

  void fits(std::size_t given, std::int64_t written, const char* what) const {
    if (written <= bundle.longest - static_cast<std::int64_t>(given)) return;
    fail(what, " takes ", given, " + ", written, " tokens and the model reads ", bundle.longest, "; shorten it");
  }

  Ids chat_ids(const std::vector<Message>& messages) const {
    const auto& tokenizer = words();
    if (messages.empty()) fail("the conversation is empty; give at least one user message");
    const auto& special = bundle.special;
    Ids ids{special.bos};
    const auto append = [&](const std::string& text) {
      const Ids more = tokenizer.encode(text);
      ids.insert(ids.end(), more.begin(), more.end());
    };
    std::size_t number = 0;
    for (const auto& [role, content] : messages) {
      ++number;
      if (role != "system" && role != "user" && role != "assistant") {
        fail("message ", number, " has the role ", quoted(role), "; use one of system, user, assistant");
      }
      const std::string body = stripped(require_utf8(content, "message"));
      if (body.empty()) fail("message ", number, " (", role, ") is empty; write something");
      ids.push_back(special.start_header);
      append(role);
      ids.push_back(special.end_header);
      append("\n" + body);
      ids.push_back(special.eot);
    }
    ids.push_back(special.start_header);
    append("assistant");
    ids.push_back(special.end_header);
    append("\n");
    return ids;
  }

  Answer answer(const Ids& prompt, const TextSettings& s, std::uint64_t seed, const OnStep& on_step) const {
    fits(prompt.size(), s.answer_length, "the conversation with its answer");
    Canvas canvas = text_canvas(prompt, s.answer_length, bundle.special.mask, s.guidance > 0);
    PhiloxSampler sampler(seed, s.temperature, canvas.start);
    const Ids ends{bundle.special.eos, bundle.special.eot};
    Answer answer;
    answer.stopped = !decode_text(denoiser, canvas, s, sampler, ends, [&](Step&& step) {
      answer.steps = step.index + 1;
      answer.seconds = step.seconds;
      return !on_step || on_step(step);
    });
    answer.ids.assign(canvas.tokens.begin() + canvas.start, canvas.tokens.end());
    const auto end = std::find_first_of(answer.ids.begin(), answer.ids.end(), ends.begin(), ends.end());
    answer.complete = end != answer.ids.end();
    if (tokenizer) answer.text = stripped(tokenizer->decode(Ids(answer.ids.begin(), end)));
    return answer;
  }

  // What is to be drawn, checked: the ids of the words, and how many steps.
  ImageSettings checked(const Ids& words, const Bools& unknown, const std::optional<ImageSettings>& settings) const {
    ImageSettings s = settings.value_or(bundle.image_defaults);
    const auto row = paint_prompt(words, bundle.special);
    fits(row.size(), static_cast<std::int64_t>(unknown.size()) + 2, "the prompt with its picture");
    const auto open =
        static_cast<std::int64_t>(std::count_if(unknown.begin(), unknown.end(), [](auto flag) { return flag != 0; }));
    if (settings && s.steps > open) fail(s.steps, " steps for ", open, " codes: a step draws at least one; use fewer steps");
    s.steps = std::min(s.steps, open);  // only the default is ever cut
    return s;
  }

  Ids prompt_ids(const std::string& prompt) const {
    const std::string body = stripped(require_utf8(prompt, "prompt"));
    if (body.empty()) fail("the prompt is empty; say what is to be drawn");
    return words().encode(body);
  }

  // Draws the unknown codes of a grid; what each step left is handed on.
  bool draw(const Ids& words, const Codes& codes, const Bools& unknown, const std::optional<ImageSettings>& settings,
            std::uint64_t seed, const Sink& sink) const {
    const ImageSettings s = checked(words, unknown, settings);
    const auto& special = bundle.special;
    const Ids nothing = paint_prompt({}, special);
    Canvas canvas = image_canvas(paint_prompt(words, special), codes.ids, unknown, bundle, s.guidance > 0 ? &nothing : nullptr);
    PhiloxSampler sampler(seed, s.sampling_temperature, canvas.start);
    return decode_image(denoiser, canvas, s, sampler, [&](Step&& step) {
      step.guess.rows = codes.rows;
      step.guess.columns = codes.columns;
      return sink(std::move(step));
    });
  }

  Drawing drawn(const Ids& words, const Codes& codes, const Bools& unknown, const std::optional<ImageSettings>& settings,
                std::uint64_t seed, const OnStep& on_step) const {
    Drawing drawing;
    drawing.stopped = !draw(words, codes, unknown, settings, seed, follow(drawing, on_step));
    drawing.picture = picture_from(decode(drawing.codes));
    return drawing;
  }

  static Sink follow(Drawing& drawing, const OnStep& on_step) {
    return [&drawing, &on_step](Step&& step) {
      drawing.steps = step.index + 1;
      drawing.seconds = step.seconds;
      const bool going = !on_step || on_step(step);
      drawing.codes = std::move(step.guess);
      return going;
    };
  }
};

namespace {

const Model::Impl& live(const std::unique_ptr<Model::Impl>& impl) {
  if (!impl) fail("this model was moved from; use the one that it was moved to");
  return *impl;
}

template <typename Settings>
const std::optional<Settings>& checked(const std::optional<Settings>& settings) {
  if (settings) check(*settings);
  return settings;
}

}  // namespace

Model::Model(const std::string& folder, const Options& options) {
  runtime();
  check_device(options.device);
  Bundle bundle = parse_bundle(folder, read_manifest(folder));
  verify(bundle, options.verify_all);
  impl_ = std::make_unique<Impl>(std::move(bundle), options);
}

Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

const TextSettings& Model::text_defaults() const { return live(impl_).bundle.text_defaults; }
const ImageSettings& Model::image_defaults() const { return live(impl_).bundle.image_defaults; }
int Model::resolution() const { return static_cast<int>(live(impl_).bundle.resolution); }

Answer Model::chat(const std::vector<Message>& messages, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  const auto& model = live(impl_);
  const TextSettings s = checked(settings).value_or(model.bundle.text_defaults);
  return model.answer(model.chat_ids(messages), s, seed, on_step);
}

Answer Model::chat(const std::string& message, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  return chat(std::vector<Message>{{"user", message}}, settings, seed, on_step);
}

Answer Model::ask(const Picture& picture, const std::string& question, const std::optional<TextSettings>& settings,
                  std::uint64_t seed, const OnStep& on_step, Fit fit) const {
  const auto& model = live(impl_);
  const TextSettings s = checked(settings).value_or(model.bundle.text_defaults);
  model.grid();  // for its error
  const Codes codes = model.encode(fitted(raster_of(picture), model.bundle.resolution, fit));
  Ids row{model.bundle.special.mmu, model.bundle.special.soi};
  for (const auto code : codes.ids) row.push_back(model.bundle.code_offset + code);
  row.push_back(model.bundle.special.eoi);
  const Ids chat = model.chat_ids({{"user", question}});
  row.insert(row.end(), chat.begin(), chat.end());
  return model.answer(row, s, seed, on_step);
}

Answer Model::complete(const Ids& prompt, const std::optional<TextSettings>& settings, std::uint64_t seed,
                       const OnStep& on_step) const {
  const auto& model = live(impl_);
  const TextSettings s = checked(settings).value_or(model.bundle.text_defaults);
  model.check_ids(prompt);
  return model.answer(prompt, s, seed, on_step);
}

Drawing Model::paint(const std::string& prompt, const std::optional<ImageSettings>& settings, std::uint64_t seed,
                     const OnStep& on_step) const {
  const auto& model = live(impl_);
  checked(settings);
  const int side = model.grid();
  const auto cells = static_cast<std::size_t>(side) * static_cast<std::size_t>(side);
  return model.drawn(model.prompt_ids(prompt), {side, side, Ids(cells, 0)}, Bools(cells, 1), settings, seed, on_step);
}

Drawing Model::draw(const Ids& words, const Codes& codes, const std::vector<std::uint8_t>& unknown,
                    const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step) const {
  const auto& model = live(impl_);
  checked(settings);
  model.grid();  // for its error
  model.check_ids(words);
  model.check_codes(codes);
  Bools flags;
  for (const auto flag : unknown) flags.push_back(flag != 0);
  if (flags.size() != codes.ids.size())
    fail("there are ", codes.ids.size(), " codes and ", flags.size(), " flags; give one for each cell");
  if (std::find(flags.begin(), flags.end(), 1) == flags.end()) fail("no code is unknown; say what is to be drawn anew");
  return model.drawn(words, codes, flags, settings, seed, on_step);
}

Drawing Model::inpaint(const Picture& picture, const Mask& mask, const std::string& prompt,
                       const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step,
                       bool keep_pixels) const {
  const auto& model = live(impl_);
  checked(settings);
  const Raster original = raster_of(picture);
  if (mask.shade.size() != static_cast<std::size_t>(mask.width) * static_cast<std::size_t>(mask.height)) {
    fail("the mask is said to be ", mask.width, " x ", mask.height, " pixels and holds ", mask.shade.size(),
         " bytes; give one for each");
  }
  if (mask.width != picture.width || mask.height != picture.height) {
    fail("the mask is ", mask.width, " x ", mask.height, " pixels and the picture ", picture.width, " x ", picture.height,
         "; make them the same size");
  }
  Raster covered{mask.width, mask.height, 1, mask.shade};
  for (auto& shade : covered.bytes) shade = shade >= 128 ? 255 : 0;
  if (std::find(covered.bytes.begin(), covered.bytes.end(), 255) == covered.bytes.end()) {
    fail("the mask covers nothing; paint white what is to be drawn anew");
  }
  model.grid();  // for its error
  const std::int64_t side = model.bundle.resolution, cell = model.bundle.downsample;
  const Raster square = fitted(original, side, Fit::crop);
  const Bools cells = cells_under(fitted(covered, side, Fit::crop), cell);
  if (std::find(cells.begin(), cells.end(), 1) == cells.end()) {
    fail("the mask covers nothing of the picture's central square; paint white what is to be drawn anew");
  }
  const Codes codes = model.encode(square);
  Drawing drawing = model.drawn(model.prompt_ids(prompt), codes, cells, settings, seed, on_step);
  for (std::int64_t i = 0; keep_pixels && i < side * side; ++i) {
    if (cells[static_cast<std::size_t>(i / side / cell * codes.columns + i % side / cell)]) continue;
    std::copy_n(square.bytes.begin() + 3 * i, 3, drawing.picture.rgb.begin() + 3 * i);
  }
  return drawing;
}

Drawing Model::extend(const Picture& picture, const std::string& prompt, const std::optional<ImageSettings>& settings,
                      Side side, double amount, std::uint64_t seed, const OnStep& on_step, bool keep_pixels) const {
  const auto& model = live(impl_);
  checked(settings);
  const int reach = model.grid(), turns = static_cast<int>(side);
  const int fresh = amount > 0 && amount <= 4 ? static_cast<int>(std::nearbyint(amount * reach)) : 0;
  if (fresh < 1) {
    char least[32];
    std::snprintf(least, sizeof least, "%.3g", 1.0 / reach);
    fail("cannot extend by ", shown(amount), "; use a share of the side from ", least, " to 4");
  }
  const Raster square = fitted(raster_of(picture), model.bundle.resolution, Fit::crop);
  Codes grid = turned(model.encode(square), turns);
  const Ids words = model.prompt_ids(prompt);
  const int most = std::max(1, reach / 2);
  const Ids parts = transfers(fresh, (fresh + most - 1) / most);  // as few and as equal as can be
  Bools smallest(grid.ids.size());
  std::fill_n(smallest.begin(), parts.back() * reach, 1);
  model.checked(words, smallest, settings);  // for its errors, before any work
  if (seed > std::numeric_limits<std::uint64_t>::max() - (parts.size() - 1)) {
    fail("the seed is out of range; each of the ", parts.size(), " parts takes the next one, up to 2**64 - 1");
  }
  Drawing drawing;
  const Clock clock;
  for (std::size_t number = 0; number < parts.size() && !drawing.stopped; ++number) {
    const auto part = static_cast<int>(parts[number]);
    Codes window{reach, reach, Ids(static_cast<std::size_t>(part * reach), 0)}, flags = window;
    window.ids.insert(window.ids.end(), grid.ids.begin(), grid.ids.begin() + (reach - part) * reach);
    std::fill(flags.ids.begin(), flags.ids.end(), 1);
    flags.ids.resize(window.ids.size(), 0);
    const Ids open = turned(flags, -turns).ids;
    const Codes old = grid;
    const auto before = drawing.steps;
    drawing.stopped =
        !model.draw(words, turned(window, -turns), Bools(open.begin(), open.end()), settings, seed + number, [&](Step&& step) {
          const Codes done = turned(step.guess, turns);
          grid = {old.rows + part, reach, Ids(done.ids.begin(), done.ids.begin() + part * reach)};
          grid.ids.insert(grid.ids.end(), old.ids.begin(), old.ids.end());
          step.guess = turned(grid, -turns);
          step.index += before;
          step.of = *step.of * static_cast<std::int64_t>(parts.size());
          step.forwards += before;
          step.seconds = clock.seconds();
          return Impl::follow(drawing, on_step)(std::move(step));
        });
  }
  drawing.picture = picture_from(model.decode(drawing.codes));
  const int left = side == Side::left ? drawing.picture.width - static_cast<int>(square.width) : 0;
  const int top = side == Side::top ? drawing.picture.height - static_cast<int>(square.height) : 0;
  for (int y = 0; keep_pixels && y < square.height; ++y) {
    std::copy_n(square.bytes.begin() + 3 * y * square.width, 3 * square.width,
                drawing.picture.rgb.begin() + 3 * (static_cast<std::ptrdiff_t>(y + top) * drawing.picture.width + left));
  }
  return drawing;
}

Ids Model::encode(const std::string& text) const { return live(impl_).words().encode(require_utf8(text, "text")); }
std::string Model::decode(const Ids& ids) const { return live(impl_).words().decode(ids); }

Codes Model::codes_of(const Picture& picture) const {
  const auto& model = live(impl_);
  model.grid();  // for its error
  return model.encode(fitted(raster_of(picture), model.bundle.resolution, Fit::crop));
}

Picture Model::picture_of(const Codes& codes) const { return picture_from(live(impl_).decode(codes)); }

}  // namespace mmada_lite
