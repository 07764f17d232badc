// The two decoding loops.
#pragma once

#include <chrono>
#include <functional>

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

// Fills the canvas's answer block by block, the most confident positions first. Ends after the block that brings one of the
// tokens `ends`. False when the sink stopped it.
bool decode_text(const Denoiser& denoiser, Canvas& canvas, const TextSettings& settings, Sampler& sampler, const Ids& ends,
                 const Sink& sink);

// Draws the canvas's masked codes, keeps the most confident by the schedule. False when the sink stopped it.
bool decode_image(const Denoiser& denoiser, Canvas& canvas, const ImageSettings& settings, Sampler& sampler, const Sink& sink);

}  // namespace mmada_lite::internal
