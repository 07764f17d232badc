// How likely each of several choices is in a hole of a text.
#pragma once

#include <vector>

#include "canvas.hpp"
#include "common.hpp"

namespace mmada_lite::internal {

// A choice in its hole.
struct Scored {
  Ids answer;                             // the answer with it; behind an end in the answer's last hole masks are left
  std::vector<double> log_probabilities;  // of what was written, by the answer's places
  double log_likelihood = 0;              // the sum of those of its ids and, where it is shorter than the hole, of its end
  std::int64_t model_calls = 0;           // one for each of them
};

// The likeliest of several choices, the first of equally likely ones.
struct Scores {
  std::size_t best = 0;
  std::vector<Scored> choices;        // all of them, in the order given
  std::vector<double> probabilities;  // the softmax of their log likelihoods
};

// Writes each choice of ids into the one hole of an answer, a place a forward, the one first at which the model is surest of
// anything. Every id counts with its log probability at that moment, among all ids but the mask. A choice that is shorter than
// the hole is followed by an end, as likely as all `ends` together. `answers`: one for all choices, or one for each. No caches,
// and of settings guidance alone. Throws Error for no or too many choices, for empty and equal ones, for one that is longer
// than its hole, and for an answer that has not exactly one.
Scores score_choices(const Denoiser& denoiser, const Ids& prompt, const std::vector<Ids>& answers,
                     const std::vector<Ids>& choices, double guidance, std::int64_t mask, const Ids& ends);

}  // namespace mmada_lite::internal
