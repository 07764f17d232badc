// Random numbers, what is drawn with them, and which of a step's candidates are kept.
#pragma once

#include "common.hpp"
#include "session.hpp"

namespace mmada_lite::internal {

enum class Stream : std::uint32_t { text_token = 0, text_order = 1, image_code = 2, image_confidence = 3 };

// One number strictly between 0 and 1, addressed and not consumed (Philox4x32-10, Salmon et al., SC 2011).
float uniform(std::uint64_t seed, Stream stream, std::uint32_t step, std::uint32_t row, std::uint32_t position);
float gumbel(float u);  // -log(-log(u)), guarded against log(0)

// Where random choices come from.
struct Sampler {
  virtual ~Sampler() = default;
  // One token for each of the positions [Q].
  virtual Prediction draw(const Denoiser& denoiser, Head head, const Hidden& hidden, const Floats& mix, std::int64_t step,
                          const Ids& positions) = 0;
  // One uniform number for each, for confidence noise or a random order.
  virtual Floats order(Head head, std::int64_t step, const Ids& positions) = 0;
};

// Draws addressed by seed, purpose, step, row and place in the region.
struct PhiloxSampler final : Sampler {
  PhiloxSampler(std::uint64_t seed, double temperature, std::int64_t start, std::uint32_t row = 0)
      : seed(seed), temperature(temperature), start(start), row(row) {}

  Prediction draw(const Denoiser& denoiser, Head head, const Hidden& hidden, const Floats& mix, std::int64_t step,
                  const Ids& positions) override;
  Floats order(Head head, std::int64_t step, const Ids& positions) override;

 private:
  Floats numbers(Stream stream, std::int64_t step, const Ids& positions) const;

  std::uint64_t seed;
  double temperature;
  std::int64_t start;
  std::uint32_t row;
};

// Which candidates [Q] of a step are written, by their confidence: the `count` best, the leftmost first among equals.
Bools most_confident(const Floats& confidence, std::int64_t count);
// The best, and everything at least that sure.
Bools above_threshold(const Floats& confidence, float least);
// Which are masked again: those strictly below the `count`-th smallest (from 0), fewer on ties.
Bools remask_least_confident(const Floats& confidence, std::int64_t count);

}  // namespace mmada_lite::internal
