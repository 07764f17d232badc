// The two decoding loops.
#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "canvas.hpp"
#include "common.hpp"
#include "sampling.hpp"
#include "settings.hpp"

namespace mmada_lite::internal {

class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count(); }

 private:
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

using Sink = std::function<bool(Step&&)>;  // false ends the decoding

// What a step may write at the positions that a forward queried: never the mask. Throws Error where the model's numbers are not
// finite.
Prediction text_candidates(const Denoiser& denoiser, const Canvas& canvas, const Forward& result, Sampler& sampler,
                           std::int64_t number, const Ids& positions);

// A row of a text, and its random numbers.
struct TextRow {
  Canvas* canvas;
  Sampler* sampler;
};

// Fills the answers of rows of one length block by block, the most confident positions first, all in the same steps. Blocks are
// cut from what is masked in any row. A stop token, one of `ends`, closes the hole that it is written in; decoding is over
// after a block when every row has one behind all that is given. False when the sink stopped it.
bool decode_text(const Denoiser& denoiser, const std::vector<TextRow>& rows, const TextSettings& settings, const Ids& ends,
                 const Sink& sink);

// Draws the canvas's masked codes, keeps the most confident by the schedule. False when the sink stopped it.
bool decode_image(const Denoiser& denoiser, Canvas& canvas, const ImageSettings& settings, Sampler& sampler, const Sink& sink);

}  // namespace mmada_lite::internal
