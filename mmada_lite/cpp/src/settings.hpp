// Settings: their checks, how bundle.json says them, and the blocks of an answer. No models and no canvases.
#pragma once

#include <string>
#include <vector>

#include "common.hpp"
#include "json.hpp"

namespace mmada_lite::internal {

void check(const TextSettings& settings);
void check(const ImageSettings& settings);

// From a JSON object as bundle.json of a format, 1 or 2, has it; what it leaves out is at its default.
TextSettings read_text_settings(const Json& content, std::int64_t format);
ImageSettings read_image_settings(const Json& content, std::int64_t format);

// A stretch of the answer that is finished before the next begins: what is to be written of positions start .. stop - 1.
struct Block {
  std::int64_t start, stop, steps;
};

// The blocks of the places that are to be written, ascending and at least one, however many: `steps` are for
// `answer_length` of them, and fewer take their share.
std::vector<Block> blocks_of(const TextSettings& settings, const Ids& places);

}  // namespace mmada_lite::internal
