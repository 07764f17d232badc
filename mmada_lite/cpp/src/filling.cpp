// Rows of answers of which a part is given. It encodes and decodes with what it is handed, and knows no models.
#include "filling.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

bool among(const Ids& few, std::int64_t id) { return std::find(few.begin(), few.end(), id) != few.end(); }

Ids part_of(const Ids& ids, std::size_t start, std::size_t stop) {
  return {ids.begin() + static_cast<std::ptrdiff_t>(start), ids.begin() + static_cast<std::ptrdiff_t>(stop)};
}

// The ids of a piece, less the space that is the next hole's own.
Ids encoded(const std::string& piece, bool space, const Encode& encode) {
  return encode(space ? piece.substr(0, piece.size() - 1) : piece);
}

// The text of ids, of each run between masks alone.
std::string between_masks(const Ids& ids, const Decode& decode, std::int64_t mask) {
  std::string text;
  for (auto from = ids.begin(); from != ids.end();) {
    const auto to = std::find(from, ids.end(), mask);
    text += decode(Ids(from, to));
    from = to == ids.end() ? to : to + 1;
  }
  return text;
}

// Every choice of a length for each hole, by their sum and then from the left.
std::vector<Ids> combinations(const std::vector<Hole>& holes) {
  std::vector<Ids> found{{}};
  for (const auto& hole : holes) {
    std::vector<Ids> longer;
    for (const auto& lengths : found) {
      for (auto length = hole.least; length <= hole.most; ++length) {
        longer.push_back(lengths);
        longer.back().push_back(length);
      }
    }
    found = std::move(longer);
  }
  const auto sum = [](const Ids& lengths) { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); };
  std::sort(found.begin(), found.end(),
            [&](const Ids& a, const Ids& b) { return sum(a) != sum(b) ? sum(a) < sum(b) : a < b; });
  return found;
}

}  // namespace

std::size_t WrittenRow::length_of(const AnswerRow::Place& hole, const Ids& ends) const {
  std::size_t at = hole.start;
  while (at < hole.stop && !among(ends, ids[at])) ++at;
  return at - hole.start;
}

double WrittenRow::likeliness(const AnswerRow& row, const Ids& ends) const {
  double sum = 0;
  std::size_t count = 0;
  for (const auto& hole : row.holes) {
    const auto length = length_of(hole, ends);
    if (length == 0) return -std::numeric_limits<double>::infinity();
    for (std::size_t i = hole.start; i < hole.start + length; ++i) sum += log_probabilities[i];
    count += length;
  }
  return sum / static_cast<double>(count);
}

AnswerRow all_masked(std::int64_t length, std::int64_t mask) {
  const auto size = static_cast<std::size_t>(length);
  return {Ids(size, mask), {{0, size, false}}, {"", ""}, true};
}

AnswerRow row_of_ids(const Ids& ids, std::int64_t mask, const Decode& decode) {
  AnswerRow row{ids, {}, {}, true};
  for (std::size_t start = 0, stop = 0; start < ids.size(); start = stop) {
    const bool masked = ids[start] == mask;
    while (stop < ids.size() && (ids[stop] == mask) == masked) ++stop;
    if (masked) {
      if (row.pieces.size() == row.holes.size()) row.pieces.emplace_back();
      row.holes.push_back({start, stop, false});
    } else {
      row.pieces.push_back(decode(part_of(ids, start, stop)));
      row.plain = false;
    }
  }
  row.pieces.resize(row.holes.size() + 1);
  return row;
}

AnswerRow beginning(const Partial& partial, const Encode& encode, std::int64_t length, std::int64_t mask) {
  const std::string& piece = partial.pieces.front();
  const bool space = !piece.empty() && piece.back() == ' ';
  Ids ids = encoded(piece, space, encode);
  const std::size_t given = ids.size();
  ids.resize(std::max(given, static_cast<std::size_t>(length)), mask);
  const std::size_t stop = ids.size();
  return {std::move(ids), {{given, stop, space}}, {piece, ""}};
}

std::vector<AnswerRow> whole_answers(const Partial& partial, const Encode& encode, const Ids& end, std::int64_t filler,
                                     std::int64_t block_length, std::int64_t mask) {
  std::vector<Ids> pieces;
  std::size_t longest = end.size();
  for (std::size_t i = 0; i < partial.pieces.size(); ++i) {
    pieces.push_back(encoded(partial.pieces[i], i < partial.holes.size() && partial.holes[i].space, encode));
    longest += pieces.back().size();
    if (i < partial.holes.size()) longest += static_cast<std::size_t>(partial.holes[i].most);
  }
  const auto block = static_cast<std::size_t>(block_length), length = (longest + block - 1) / block * block;
  std::vector<AnswerRow> rows;
  for (const auto& lengths : combinations(partial.holes)) {
    AnswerRow row{pieces.front(), {}, partial.pieces};
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      const auto start = row.ids.size(), stop = start + static_cast<std::size_t>(lengths[i]);
      row.holes.push_back({start, stop, partial.holes[i].space});
      row.ids.resize(stop, mask);
      row.ids.insert(row.ids.end(), pieces[i + 1].begin(), pieces[i + 1].end());
    }
    row.ids.insert(row.ids.end(), end.begin(), end.end());
    row.ids.resize(length, filler);
    rows.push_back(std::move(row));
  }
  return rows;
}

void read_row(const AnswerRow& row, const WrittenRow& written, const Decode& decode, const Ids& ends, std::int64_t mask,
              Answer& answer) {
  answer.ids = written.ids;
  answer.text = row.pieces.front();
  for (std::size_t i = 0; i < row.holes.size(); ++i) {
    const auto& hole = row.holes[i];
    Span span;
    span.ids = part_of(written.ids, hole.start, hole.start + written.length_of(hole, ends));
    span.text = between_masks(span.ids, decode, mask);
    if (hole.space && span.text.rfind(' ', 0) == 0) span.text.erase(0, 1);
    for (std::size_t at = 0; at < span.ids.size(); ++at) span.log_probability += written.log_probabilities[hole.start + at];
    span.mean = span.log_probability / static_cast<double>(std::max<std::size_t>(1, span.ids.size()));
    span.start = answer.text.size();
    span.stop = span.start + span.text.size();
    answer.text += span.text + row.pieces[i + 1];
    answer.spans.push_back(std::move(span));
  }
  const auto& last = row.holes.back();
  answer.complete = last.stop < written.ids.size();
  for (std::size_t at = last.start; at < written.ids.size(); ++at) answer.complete |= among(ends, written.ids[at]);
  if (!row.plain) return;
  answer.text = stripped(answer.text);
  answer.spans.clear();
}

}  // namespace mmada_lite::internal
