// The likelihood of a choice in its hole, by the order in which the loop would write it.
#include "choosing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "decoding.hpp"
#include "sampling.hpp"

namespace mmada_lite::internal {
namespace {

constexpr std::size_t kMostChoices = 64;

// Log probabilities in a row of logits [V], in double precision, of all ids but the mask.
class LogSoftmax {
 public:
  LogSoftmax(const float* logits, std::size_t size, std::int64_t mask) : logits_(logits), mask_(mask) {
    peak_ = -std::numeric_limits<double>::infinity();
    for (std::size_t v = 0; v < size; ++v) {
      if (static_cast<std::int64_t>(v) != mask) peak_ = std::max(peak_, static_cast<double>(logits[v]));
    }
    for (std::size_t v = 0; v < size; ++v) total_ += weight(static_cast<std::int64_t>(v));
  }

  double of(std::int64_t id) const { return static_cast<double>(logits_[id]) - peak_ - std::log(total_); }
  double of_any(const Ids& ids) const {
    double sum = 0;
    for (const auto id : ids) sum += weight(id);
    return std::log(sum) - std::log(total_);
  }

 private:
  double weight(std::int64_t id) const { return id == mask_ ? 0 : std::exp(static_cast<double>(logits_[id]) - peak_); }

  const float* logits_;
  std::int64_t mask_;
  double peak_ = 0, total_ = 0;
};

// From and to before which place of an answer its one hole lies.
struct Gap {
  std::int64_t start, stop;
};

Gap gap_of(const Ids& answer, std::int64_t mask) {
  const auto first = std::find(answer.begin(), answer.end(), mask);
  const auto behind = std::find_if(first, answer.end(), [&](auto id) { return id != mask; });
  if (first == answer.end() || std::find(behind, answer.end(), mask) != answer.end()) {
    fail("choices are for one hole, a run of masks, and the answer has none or more; leave one");
  }
  return {first - answer.begin(), behind - answer.begin()};
}

void check_choices(const std::vector<Ids>& answers, const std::vector<Ids>& choices, std::int64_t mask) {
  if (choices.empty() || choices.size() > kMostChoices) {
    fail("there are ", choices.size(), " choices; give 1 to ", kMostChoices);
  }
  if (answers.size() != 1 && answers.size() != choices.size()) {
    fail("there are ", choices.size(), " choices and ", answers.size(), " answers; give one for all, or one for each");
  }
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const auto& choice = choices[i];
    if (choice.empty() || std::find(choice.begin(), choice.end(), mask) != choice.end()) {
      fail("choice ", i + 1, " is empty or holds the mask; give ids of text");
    }
    const auto twin = static_cast<std::size_t>(std::find(choices.begin(), choices.end(), choice) - choices.begin());
    if (twin < i) fail("choices ", twin + 1, " and ", i + 1, " are the same tokens; leave one out");
    const Gap gap = gap_of(answers[answers.size() == 1 ? 0 : i], mask);
    const auto size = static_cast<std::int64_t>(choice.size()), room = gap.stop - gap.start;
    if (size > room) fail("choice ", i + 1, " takes ", size, " tokens and the hole has ", room, "; make the hole longer");
  }
}

Scored score_choice(const Denoiser& denoiser, const Ids& prompt, const Ids& answer, const Ids& choice, double guidance,
                    std::int64_t mask, const Ids& ends) {
  const Gap gap = gap_of(answer, mask);
  const bool last = gap.stop == static_cast<std::int64_t>(answer.size());  // nothing is given behind the hole
  Canvas canvas = text_canvas(prompt, answer, mask, guidance > 0);
  const auto first = canvas.start + gap.start, stop = canvas.start + gap.stop;
  const auto end = first + static_cast<std::int64_t>(choice.size());
  PhiloxSampler sampler(0, 0, canvas.start);
  std::map<std::int64_t, double> scores;  // by position
  Scored scored;
  for (Ids open = canvas.masked(first, std::min(end + 1, stop)); !open.empty(); ++scored.model_calls) {
    const Forward result = forward(denoiser, canvas, open, guidance, nullptr, false);
    const Prediction candidates = text_candidates(denoiser, canvas, result, sampler, scored.model_calls, open);
    const Bools chosen = most_confident(candidates.log_probability, 1);
    const auto best = std::find(chosen.begin(), chosen.end(), 1) - chosen.begin();
    const auto place = open[static_cast<std::size_t>(best)];
    const Floats logits = denoiser.logits(Head::text, result.hidden, result.mix);
    const std::size_t columns = logits.size() / open.size();
    const float* row = logits.data() + static_cast<std::size_t>(best) * columns;
    const LogSoftmax log_softmax(row, columns, mask);
    if (place < end) {
      canvas.tokens[static_cast<std::size_t>(place)] = choice[static_cast<std::size_t>(place - first)];
      scores[place] = log_softmax.of(choice[static_cast<std::size_t>(place - first)]);
    } else {
      Ids sorted = ends;
      std::sort(sorted.begin(), sorted.end());
      const auto stronger = [&](std::int64_t a, std::int64_t b) { return row[a] < row[b]; };
      const auto token = *std::max_element(sorted.begin(), sorted.end(), stronger);
      scores[place] = log_softmax.of_any(ends);
      for (auto p = place; p < (last ? place + 1 : stop); ++p) {
        canvas.tokens[static_cast<std::size_t>(p)] = token;
        scores.insert({p, 0.0});
      }
    }
    canvas.update_unconditional();
    open.erase(open.begin() + best);
  }
  scored.log_probabilities.resize(answer.size());
  for (const auto& [position, score] : scores) {
    scored.log_probabilities[static_cast<std::size_t>(position - canvas.start)] = score;
    scored.log_likelihood += score;
  }
  scored.answer.assign(canvas.tokens.begin() + canvas.start, canvas.tokens.end());
  return scored;
}

}  // namespace

Scores score_choices(const Denoiser& denoiser, const Ids& prompt, const std::vector<Ids>& answers,
                     const std::vector<Ids>& choices, double guidance, std::int64_t mask, const Ids& ends) {
  check_choices(answers, choices, mask);
  Scores scores;
  for (const auto& choice : choices) {
    const Ids& answer = answers[answers.size() == 1 ? 0 : scores.choices.size()];
    scores.choices.push_back(score_choice(denoiser, prompt, answer, choice, guidance, mask, ends));
    if (scores.choices.back().log_likelihood > scores.choices[scores.best].log_likelihood)
      scores.best = scores.choices.size() - 1;
  }
  double total = 0;
  for (const auto& scored : scores.choices) {
    scores.probabilities.push_back(std::exp(scored.log_likelihood - scores.choices[scores.best].log_likelihood));
    total += scores.probabilities.back();
  }
  for (auto& probability : scores.probabilities) probability /= total;
  return scores;
}

}  // namespace mmada_lite::internal
