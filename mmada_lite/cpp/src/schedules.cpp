// How much of a row each step fills: equal shares of a text, the schedule of a picture and its noise.
#include "schedules.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "common.hpp"
#include "json.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

float logistic(float x) { return rounded(1.0f / rounded(1.0f + static_cast<float>(std::exp(static_cast<double>(-x))))); }

}  // namespace

Ids transfers(std::int64_t masks, std::int64_t steps) {
  Ids counts(static_cast<std::size_t>(steps), masks / steps);
  for (std::int64_t i = 0; i < masks % steps; ++i) ++counts[static_cast<std::size_t>(i)];
  return counts;
}

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

Ids masked_after(const std::string& name, std::int64_t tokens, std::int64_t steps) {
  const Schedule still_masked = schedule_of(name);
  Ids counts;
  for (std::int64_t k = 1; k <= steps; ++k) {
    const float ratio = rounded(static_cast<float>(k) / static_cast<float>(steps));
    counts.push_back(static_cast<std::int64_t>(std::floor(rounded(static_cast<float>(tokens) * still_masked(ratio)))));
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

}  // namespace mmada_lite::internal
