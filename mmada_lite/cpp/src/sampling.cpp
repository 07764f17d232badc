// Random numbers and what is drawn with them, which of a step's candidates are kept, and how many: the schedules.
#include "sampling.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string>

#include "common.hpp"
#include "json.hpp"
#include "schedules.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

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

float minus_log(float x) { return static_cast<float>(-std::log(static_cast<double>(std::max(x, 1e-20f)))); }

}  // namespace

float uniform(std::uint64_t seed, Stream stream, std::uint32_t step, std::uint32_t row, std::uint32_t position) {
  const auto words = philox({position / 4, row, step, static_cast<std::uint32_t>(stream)}, seed);
  return (static_cast<float>(words[position % 4] >> 9) + 0.5f) * 0x1p-23f;
}

float gumbel(float u) { return minus_log(minus_log(u)); }

Bools most_confident(const Floats& confidence, std::int64_t count) {
  std::vector<std::size_t> order(confidence.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return confidence[a] > confidence[b]; });
  order.resize(std::min(order.size(), static_cast<std::size_t>(count)));
  Bools chosen(confidence.size());
  for (const auto i : order) chosen[i] = std::isfinite(confidence[i]);
  return chosen;
}

Bools above_threshold(const Floats& confidence, float least) {
  Bools chosen = most_confident(confidence, 1);
  for (std::size_t i = 0; i < confidence.size(); ++i) {
    chosen[i] = chosen[i] || (std::isfinite(confidence[i]) && confidence[i] >= least);
  }
  return chosen;
}

Bools remask_least_confident(const Floats& confidence, std::int64_t count) {
  Floats ordered = confidence;
  std::sort(ordered.begin(), ordered.end());
  const float cutoff = ordered[std::min(static_cast<std::size_t>(count), ordered.size() - 1)];
  Bools again;
  for (const float value : confidence) again.push_back(value < cutoff);
  return again;
}

Prediction PhiloxSampler::draw(const Denoiser& denoiser, Head head, const Hidden& hidden, const Floats& mix, std::int64_t step,
                               const Ids& positions) {
  if (!(temperature > 0)) return denoiser.predict(head, hidden, mix, temperature, nullptr);
  const Floats draws = numbers(head == Head::text ? Stream::text_token : Stream::image_code, step, positions);
  return denoiser.predict(head, hidden, mix, temperature, &draws);
}

Floats PhiloxSampler::order(Head head, std::int64_t step, const Ids& positions) {
  return numbers(head == Head::text ? Stream::text_order : Stream::image_confidence, step, positions);
}

Floats PhiloxSampler::numbers(Stream stream, std::int64_t step, const Ids& positions) const {
  Floats uniforms;
  for (const auto p : positions) {
    uniforms.push_back(uniform(seed, stream, static_cast<std::uint32_t>(step), row, static_cast<std::uint32_t>(p - start)));
  }
  return uniforms;
}

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
