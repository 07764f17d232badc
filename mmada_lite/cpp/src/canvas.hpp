// Rows of tokens that decoding fills, and one model call over them.
#pragma once

#include <vector>

#include "bundle.hpp"
#include "common.hpp"
#include "session.hpp"

namespace mmada_lite::internal {

// Rows of tokens of which some are still masks. `editable` says where decoding may write; the region start..stop is what the
// loop walks. With guidance, `unconditional` is the same rows without their prompt: position p of `shared` stands there at p +
// shift.
struct Canvas {
  std::int64_t rows = 1, length = 0, start = 0, stop = 0, mask = 0;
  Ids tokens;      // [B, L]
  Bools editable;  // [B, L]
  bool guided = false;
  std::int64_t other_length = 0;
  Ids unconditional;  // [B, Lu]
  Ids shared;
  std::int64_t shift = 0;
  std::int64_t code_offset = 0;

  Bools masked() const;  // [B, L]: what is still to be written
  std::size_t at(std::int64_t row, std::int64_t position) const { return static_cast<std::size_t>(row * length + position); }
  void follow();  // the unconditional rows take over what was written
};

Canvas text_canvas(const Ids& prompt, std::int64_t answer_length, std::int64_t mask, bool guided);
Ids paint_prompt(const Ids& words, const Special& special);
Canvas image_canvas(const Ids& prompt, const Ids& codes, const Bools& unknown, const Bundle& bundle,
                    const Ids* unconditional_prompt);

// What one block keeps of its last full forward: a past for each branch, and the window that is computed afresh.
struct Memory {
  std::vector<Past> pasts;
  std::int64_t start = 0, stop = 0;
};

struct Reading {
  Hidden hidden;
  Mix mix;
  std::int64_t width = 0;  // Q
  Ids positions;           // [B, Q]
  Bools valid;             // a row that has fewer repeats position 0 there
  std::vector<Values> kept;
};

// One model call over the window (all of the row, or what `memory` leaves), for the positions `where` [B, L].
Reading read(const Denoiser& denoiser, const Canvas& canvas, const Bools& where, double guidance, const Memory* memory,
             bool keep);

}  // namespace mmada_lite::internal
