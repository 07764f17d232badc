// Random numbers, what is drawn with them, and which of a step's candidates are kept.
#include "sampling.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "common.hpp"

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
    uniforms.push_back(uniform(seed, stream, static_cast<std::uint32_t>(step), 0, static_cast<std::uint32_t>(p - start)));
  }
  return uniforms;
}

}  // namespace mmada_lite::internal
