// The notation of holes in a text.
#pragma once

#include <string>
#include <vector>

#include "common.hpp"

namespace mmada_lite::internal {

// Where a model writes: `least` to `most` tokens. `space`: the space right before it is its own, for words carry theirs.
struct Hole {
  std::int64_t least = 0, most = 0;
  bool space = false;
};

// A text with holes: piece, hole, piece and so on, one piece more than there are holes. The space that is a hole's own still
// stands at the end of the piece before it.
struct Partial {
  std::vector<std::string> pieces;
  std::vector<Hole> holes;
};

// Reads "[mask:3]", a hole of three tokens, "[mask:*]", one of unknown length, and "\[", a bracket. `specials`: spellings of
// special tokens, across which no hole may stand. Throws Error for a hole of no length, another name, two holes side by side,
// and too many lengths to try.
Partial read_partial(const std::string& text, const std::vector<std::string>& specials);

}  // namespace mmada_lite::internal
