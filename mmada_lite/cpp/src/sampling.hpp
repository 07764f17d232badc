// Random numbers, what is drawn with them, and which of a step's guesses are kept.
#pragma once

#include <limits>

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
                  const Ids& positions) override;
  Floats order(Head head, std::int64_t step, const Ids& positions, std::int64_t rows) override;

 private:
  Floats numbers(Stream stream, std::int64_t step, const Ids& positions, std::int64_t rows) const;

  std::uint64_t seed;
  double temperature;
  std::int64_t start;
};

constexpr float kNever = -std::numeric_limits<float>::infinity();  // the confidence of what may not be kept

// The counts[b] best of each row [B, Q], the leftmost first among equals.
Bools most_confident(const Floats& confidence, std::int64_t width, const Ids& counts);
// Each row's best, and everything at least that sure.
Bools above_threshold(const Floats& confidence, std::int64_t width, std::int64_t rows, float least);
// Strictly below the counts[b]-th smallest (from 0) of its row [B, N]: fewer on ties.
Bools remask_least_confident(const Floats& confidence, std::int64_t width, const Ids& counts);

}  // namespace mmada_lite::internal
