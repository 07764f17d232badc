// Reading the notation of holes. It knows no ids, no tokenizer and no model.
#include "partial.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "json.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

constexpr std::int64_t kMost = 8;           // tokens of [mask:*], where it does not say how many at most
constexpr std::int64_t kCombinations = 64;  // of lengths, that are tried for one text
constexpr std::int64_t kLargest = 1 << 20;

// What stands in brackets with a colon: [name:*4].
struct Written {
  std::string text, name, digits;
  bool colon = false, star = false;
};

// From the bracket at `start` to the one that closes it, where something like a hole is written there.
std::optional<Written> written_at(const std::string& text, std::size_t start) {
  Written found;
  std::size_t at = start + 1;
  while (at < text.size()) {
    const auto [code, length] = character_at(text, at);
    if (!length || (code != U'_' && !is_letter(code) && !is_number(code))) break;
    found.name += text.substr(at, length);
    at += length;
  }
  const auto next = [&](char letter) { return at < text.size() && text[at] == letter ? ++at != 0 : false; };
  found.colon = next(':');
  found.star = found.colon && next('*');
  while (found.colon && at < text.size() && text[at] >= '0' && text[at] <= '9') found.digits += text[at++];
  if (found.name.empty() || !next(']')) return std::nullopt;
  found.text = text.substr(start, at - start);
  return found;
}

// The hole that is written at a bracket, nothing where the bracket is text.
std::optional<Written> hole_at(const std::string& text, std::size_t start) {
  auto found = written_at(text, start);
  if (found && found->name == "mask") return found;
  const bool named = found && found->colon && (found->star || !found->digits.empty());
  if (!named && text.compare(start, 5, "[mask") != 0) return std::nullopt;
  const auto close = text.find(']', start);
  std::string line = named ? found->text : text.substr(start, close == std::string::npos ? 12 : close - start + 1);
  if (line.size() > 80) line = line.substr(0, 77) + "...";
  fail("no hole is written ", quoted(lossy_utf8(line)), "; write [mask:3] or [mask:*], and \\[ for a bracket that is text");
}

Hole hole_of(const Written& written, bool space) {
  if (!written.star && written.digits.empty()) {
    fail(written.text, " says no length; write [mask:3] for three tokens, or [mask:*] where you do not know");
  }
  const std::int64_t count = written.digits.empty() ? kMost : std::stoll(written.digits.substr(0, 8));
  if (count < 1 || count > kLargest) {
    fail(written.text, " is a hole of ", written.digits, " tokens; give 1 or more, and no more than the model reads");
  }
  return {written.star ? 1 : count, count, space};
}

void check_specials(const Partial& partial, const std::vector<std::string>& specials) {
  std::string whole;
  for (const auto& piece : partial.pieces) whole += piece;
  std::size_t edge = 0;
  for (std::size_t i = 0; i + 1 < partial.pieces.size(); ++i) {
    edge += partial.pieces[i].size();
    for (const auto& special : specials) {
      const auto found = whole.find(special, edge + 1 > special.size() ? edge + 1 - special.size() : 0);
      if (found < edge) fail("a hole stands inside ", special, ", which is one token; put it before or behind");
    }
  }
}

}  // namespace

Partial read_partial(const std::string& text, const std::vector<std::string>& specials) {
  Partial partial;
  std::string piece;
  std::int64_t tried = 1;
  for (std::size_t at = 0; at < text.size();) {
    if (text.compare(at, 2, "\\[") == 0) {
      piece += '[';
      at += 2;
      continue;
    }
    const auto written = text[at] == '[' ? hole_at(text, at) : std::nullopt;
    if (!written) {
      piece += text[at++];
      continue;
    }
    if (!partial.holes.empty() && (piece.empty() || piece == " ")) {
      fail("two holes stand side by side at ", written->text, "; write one hole of their length together");
    }
    partial.holes.push_back(hole_of(*written, !piece.empty() && piece.back() == ' '));
    partial.pieces.push_back(std::move(piece));
    piece.clear();
    at += written->text.size();
    tried = std::min(tried * (partial.holes.back().most - partial.holes.back().least + 1), kLargest);
  }
  partial.pieces.push_back(std::move(piece));
  check_specials(partial, specials);
  if (tried <= kCombinations) return partial;
  fail("the holes have ", tried, " combinations of lengths, and at most ", kCombinations,
       " are tried; say fewer, as [mask:*4], or the length, as [mask:4]");
}

}  // namespace mmada_lite::internal
