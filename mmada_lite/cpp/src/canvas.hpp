// A row of tokens that decoding fills, and one model call over it.
#pragma once

#include <vector>

#include "bundle.hpp"
#include "common.hpp"
#include "session.hpp"

namespace mmada_lite::internal {

// A row of tokens of which some are still masks. `editable` says where decoding may write; the region start..stop-1 is what the
// loop walks. With guidance, `unconditional` is the same row without its prompt: position p of `shared` stands there at p +
// shift.
struct Canvas {
  std::int64_t start = 0, stop = 0, mask = 0;
  Ids tokens;         // [L]
  Bools editable;     // [L]
  Ids unconditional;  // [Lu]; empty without guidance
  Ids shared;
  std::int64_t shift = 0;
  std::int64_t code_offset = 0;

  bool guided() const { return !unconditional.empty(); }
  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
  Ids masked(std::int64_t from, std::int64_t to) const;  // the positions there that are still to be written
  std::int64_t tail() const;  // where what stands behind the region's last given token begins
  void update_unconditional();                           // the unconditional row takes over what was written
};

// A prompt and the answer behind it: masks of either are written. With guidance the other row has masks for the prompt.
Canvas text_canvas(const Ids& prompt, const Ids& answer, std::int64_t mask, bool guided);
// A row to draw: all that stands before its codes and behind them. Where a code is `unknown` a mask stands. For guidance,
// `unconditional_prompt` stands in the other row in place of what is before the codes.
Canvas image_canvas(const Around& row, const Ids& codes, const Bools& unknown, const Bundle& bundle,
                    const Ids* unconditional_prompt);

// What one block keeps of its last full forward: a past for each branch, and the window that is computed afresh.
struct CachedContext {
  std::vector<Past> pasts;
  std::int64_t start = 0, stop = 0;
};

// Hidden states of some positions for each branch, conditional first, and how a head mixes them.
struct Forward {
  Hidden hidden;
  Floats mix;                // [R]
  std::vector<Values> kept;  // keys and values of each branch, where they were asked for
};

// One model call over the window (all of the row, or what `context` leaves), for `positions` of it.
Forward forward(const Denoiser& denoiser, const Canvas& canvas, const Ids& positions, double guidance,
                const CachedContext* context, bool keep);

}  // namespace mmada_lite::internal
