// Answers of which a part is given: from pieces and holes to rows of ids, and from written rows back to a text and its spans.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "partial.hpp"
#include "rows.hpp"

namespace mmada_lite::internal {

using Decode = std::function<std::string(const Ids&)>;

// An answer to be written: masks where a model writes, and the texts around its holes, one more than holes. What is behind the
// last piece is in no text. `plain`: nothing is given.
struct AnswerRow {
  struct Place {
    std::size_t start, stop;
    bool space;  // the space at the end of the piece before is the hole's own
  };

  Ids ids;
  std::vector<Place> holes;
  std::vector<std::string> pieces;
  bool plain = false;
};

// What stands in a row: its ids, what each had when it was written, and which ids end a hole.
struct WrittenRow {
  Ids ids;
  std::vector<double> log_probabilities;

  std::size_t length_of(const AnswerRow::Place& hole, const Ids& ends) const;  // up to its end
  double likeliness(const AnswerRow& row, const Ids& ends) const;  // the mean of its holes; of an empty one the least
};

AnswerRow all_masked(std::int64_t length, std::int64_t mask);
AnswerRow row_of_ids(const Ids& ids, std::int64_t mask, const Decode& decode);
// A text without holes as the beginning of an answer of so many tokens in all, or of more where it is that long.
AnswerRow beginning(const Partial& partial, const Encode& encode, std::int64_t length, std::int64_t mask);
// A text with holes as a whole answer: a row for every combination of lengths, shortest first, and behind each the `end` of a
// turn and then `filler` up to whole blocks of the longest, which is what follows an answer in training.
std::vector<AnswerRow> whole_answers(const Partial& partial, const Encode& encode, const Ids& end, std::int64_t filler,
                                     std::int64_t block_length, std::int64_t mask);

// Puts a row's text and spans into an answer, and whether it came to its end.
void read_row(const AnswerRow& row, const WrittenRow& written, const Decode& decode, const Ids& ends, std::int64_t mask,
              Answer& answer);

}  // namespace mmada_lite::internal
