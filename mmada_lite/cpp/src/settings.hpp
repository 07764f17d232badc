// Settings and what follows from them alone: checks, blocks, schedules. No models and no canvases.
#pragma once

#include <string>
#include <vector>

#include "common.hpp"
#include "json.hpp"

namespace mmada_lite::internal {

void check(const TextSettings& settings);
void check(const ImageSettings& settings);

// From JSON, where a value may also be of the wrong kind; `where` begins the line about an unknown key.
TextSettings read_text_settings(const Json& content, const std::string& where);
ImageSettings read_image_settings(const Json& content, const std::string& where);

// A stretch of the answer that is finished before the next begins: positions start .. stop - 1.
struct Block {
  std::int64_t start, stop, steps;
};

std::vector<Block> blocks_of(const TextSettings& settings, std::int64_t start);

// Tokens to write at each of `steps` steps so that `masks` are gone at the end: equal shares, the rest first.
Ids transfers(std::int64_t masks, std::int64_t steps);

// floor(tokens * schedule(k / steps)) for k = 1..steps, in float32, before any clamp.
Ids masked_after(const std::string& schedule, std::int64_t tokens, std::int64_t steps);

// Scale of the confidence noise at each step: every step multiplies what is left by (1 - k / steps).
std::vector<double> noise_temperatures(double start, std::int64_t steps);

}  // namespace mmada_lite::internal
