// Settings and what follows from them alone: their checks, the blocks of an answer, the schedules of a picture.
#include "settings.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>

#include "common.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {

Ids transfers(std::int64_t masks, std::int64_t steps) {
  Ids counts(static_cast<std::size_t>(steps), masks / steps);
  for (std::int64_t i = 0; i < masks % steps; ++i) ++counts[static_cast<std::size_t>(i)];
  return counts;
}

namespace {

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

}  // namespace

Ids masked_after(const std::string& name, std::int64_t tokens, std::int64_t steps) {
  const auto law = schedule_of(name);
  Ids counts;
  for (std::int64_t k = 1; k <= steps; ++k) {
    const float ratio = rounded(static_cast<float>(k) / static_cast<float>(steps));
    counts.push_back(static_cast<std::int64_t>(std::floor(rounded(static_cast<float>(tokens) * law(ratio)))));
  }
  return counts;
}

std::vector<double> noise_temperatures(double start, std::int64_t steps) {
  std::vector<double> scales;
  double left = 1.0;
  for (std::int64_t k = 1; k <= steps; ++k) {
    left *= 1.0 - static_cast<double>(k) / static_cast<double>(steps);
    scales.push_back(start * left);
  }
  return scales;
}

namespace {

const std::vector<std::string> kOrders{"low_confidence", "random"}, kCaches{"none", "prefix", "dual"}, kLaws{"sensible"};

void at_least_one(const char* name, std::int64_t value) {
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

}  // namespace

void check(const TextSettings& s) {
  at_least_one("answer_length", s.answer_length);
  at_least_one("steps", s.steps);
  at_least_one("block_length", s.block_length);
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
  at_least_one("steps", s.steps);
  at_least_zero("guidance", s.guidance);
  at_least_zero("temperature", s.temperature);
  at_least_zero("sampling_temperature", s.sampling_temperature);
  ours("", s.law);
  one_of("law", s.law, kLaws);
  schedule_of(s.schedule);
}

namespace {

// Settings from JSON, where a value may also be of the wrong kind.
struct SettingsReader {
  const Json& content;

  void take(const char* name, std::int64_t& value) const {
    const Json* given = content.find(name);
    if (!given) return;
    if (!given->is(Json::Kind::integer)) fail(name, " is ", shown(*given), "; use a whole number of at least 1");
    value = given->integer;
  }
  void take(const char* name, double& value) const {
    const Json* given = content.find(name);
    if (!given) return;
    const bool integer = given->is(Json::Kind::integer);
    if (!integer && !given->is(Json::Kind::number)) fail(name, " is ", shown(*given), "; use a number of at least 0");
    value = integer ? static_cast<double>(given->integer) : given->number;
  }
  void take(const char* name, std::optional<double>& value) const {
    const Json* given = content.find(name);
    if (!given || given->is(Json::Kind::null)) return;
    value = 0;
    take(name, *value);
  }
  void take(const char* name, std::string& value) const {
    const Json* given = content.find(name);
    if (!given) return;
    if (!given->is(Json::Kind::string)) fail(name, " is ", shown(*given), "; use a word in double quotes");
    value = given->string;
  }
  // Nothing but `names`; those in `later` are the Python runtime's, and this one does not decode with them.
  void only(const std::string& where, const std::vector<std::string>& names, const std::vector<std::string>& later) const {
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

}  // namespace

TextSettings read_text_settings(const Json& content, const std::string& where) {
  TextSettings s;
  const SettingsReader reader{content};
  reader.only(
      where, {"answer_length", "steps", "block_length", "temperature", "guidance", "order", "cache", "threshold", "law"},
      {"select", "entropy_bound", "early_stop", "reach", "refresh", "drift", "suffix", "draft", "settle", "thought_first"});
  reader.take("answer_length", s.answer_length);
  reader.take("steps", s.steps);
  reader.take("block_length", s.block_length);
  reader.take("temperature", s.temperature);
  reader.take("guidance", s.guidance);
  reader.take("order", s.order);
  reader.take("cache", s.cache);
  reader.take("law", s.law);
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
  reader.take("law", s.law);
  reader.take("schedule", s.schedule);
  check(s);
  return s;
}

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

}  // namespace mmada_lite::internal
