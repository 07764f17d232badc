// JSON as tests/cpp/host.cpp reads and writes it.
#pragma once

#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "json.hpp"
#include "mmada_lite.hpp"
#include "settings.hpp"

namespace mmada_lite {

using namespace internal;

// ---- JSON out ----

inline std::string written(const std::string& text) { return quoted(text); }
inline std::string written(bool flag) { return flag ? "true" : "false"; }
inline std::string written(std::int64_t number) { return std::to_string(number); }
inline std::string written(int number) { return std::to_string(number); }
inline std::string written(std::uint8_t number) { return std::to_string(number); }
inline std::string written(double number) {
  if (!std::isfinite(number)) return "null";
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.17g", number);
  return digits;
}
inline std::string written(float number) { return written(static_cast<double>(number)); }
template <typename T>
inline std::string written(const std::vector<T>& items) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ",") + written(item);
  return "[" + out + "]";
}

struct Out {
  std::string text;
  template <typename T>
  Out& add(const char* key, const T& value) {
    text += (text.empty() ? "" : ",") + quoted(key) + ":" + written(value);
    return *this;
  }
  std::string done() const { return "{" + text + "}"; }
};

// ---- JSON in ----

inline std::int64_t integer_in(const Json& job, const char* key, std::int64_t otherwise = 0) {
  const Json* value = job.find(key);
  return value && value->is(Json::Kind::integer) ? value->integer : otherwise;
}

inline double number_of(const Json& value) {
  return value.is(Json::Kind::integer) ? static_cast<double>(value.integer) : value.number;
}

inline std::string text_in(const Json& job, const char* key) { return job.find(key)->string; }

inline Ids ids_of(const Json& list) {
  Ids ids;
  for (const auto& item : list.items) ids.push_back(item.integer);
  return ids;
}

template <typename T>
std::vector<T> bytes_of(const Json& list) {
  std::vector<T> numbers;
  for (const auto& item : list.items) numbers.push_back(static_cast<T>(item.integer));
  return numbers;
}

// Seeds are written as text: JSON readers may lose the last bits of 64.
inline std::uint64_t seed_in(const Json& job) {
  const Json* value = job.find("seed");
  return value ? std::stoull(value->string) : 0;
}

inline Picture picture_in(const Json& job, const char* key = "picture") {
  const Json& value = *job.find(key);
  return {static_cast<int>(integer_in(value, "width")), static_cast<int>(integer_in(value, "height")),
          bytes_of<std::uint8_t>(*value.find("bytes"))};
}

// `settings` as bundle.json of format 2 says them; `mode` as a program sets it.
template <typename Settings>
std::optional<Settings> settings_in(const Json& job, Settings (*read)(const Json&, std::int64_t)) {
  const Json* value = job.find("settings");
  if (!value || value->is(Json::Kind::null)) return std::nullopt;
  Settings settings = read(*value, 2);
  if (job.find("mode")) settings.mode = text_in(job, "mode");
  return settings;
}

inline std::optional<TextSettings> text_settings_in(const Json& job) { return settings_in(job, read_text_settings); }
inline std::optional<ImageSettings> image_settings_in(const Json& job) { return settings_in(job, read_image_settings); }

}  // namespace mmada_lite
