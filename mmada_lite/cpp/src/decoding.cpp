// The two decoding loops: texts block by block, pictures all at once.
#include "decoding.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common.hpp"

namespace mmada_lite::internal {
namespace {

Bools candidates(const Canvas& canvas, const Block& block, const Memory* memory) {
  Bools where = canvas.masked();
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    for (std::int64_t p = 0; p < canvas.length; ++p) {
      if (p >= block.stop || (memory && p < memory->start)) where[canvas.at(row, p)] = 0;
    }
  }
  return where;
}

std::int64_t count_between(const Canvas& canvas, const Bools& flags, std::int64_t row, std::int64_t start, std::int64_t stop) {
  std::int64_t count = 0;
  for (std::int64_t p = start; p < stop; ++p) count += flags[canvas.at(row, p)];
  return count;
}

bool any_between(const Canvas& canvas, const Bools& flags, std::int64_t start, std::int64_t stop) {
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    if (count_between(canvas, flags, row, start, stop)) return true;
  }
  return false;
}

bool finished(const Canvas& canvas, const Block& block, const Memory* memory) {
  return !any_between(canvas, candidates(canvas, block, memory), 0, canvas.length);
}

// A guess that is the mask itself would write nothing: the best other token there.
void never_mask(const Denoiser& denoiser, Head head, const Reading& reading, std::int64_t mask, Prediction& guess) {
  bool any = false;
  for (std::size_t i = 0; i < guess.token.size(); ++i) any = any || (guess.token[i] == mask && reading.valid[i]);
  if (!any) return;
  const Floats logits = denoiser.logits(head, reading.hidden, reading.mix);
  const std::size_t size = logits.size() / guess.token.size(), masked = static_cast<std::size_t>(mask);
  for (std::size_t i = 0; i < guess.token.size(); ++i) {
    if (guess.token[i] != mask || !reading.valid[i]) continue;
    const float* row = logits.data() + i * size;
    std::size_t best = masked == 0 ? 1 : 0;
    for (std::size_t v = 0; v < size; ++v) {
      if (v != masked && row[v] > row[best]) best = v;
    }
    double total = 0;
    for (std::size_t v = 0; v < size; ++v) {
      if (v != masked) total += std::exp(static_cast<double>(row[v]) - static_cast<double>(row[best]));
    }
    guess.token[i] = static_cast<std::int64_t>(best);
    guess.log_probability[i] = static_cast<float>(-std::log(total));
  }
}

// Tokens to write at each step of a block [B][steps].
std::vector<Ids> quota_of(const Canvas& canvas, const Block& block) {
  std::vector<Ids> quota;
  const Bools masked = canvas.masked();
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    quota.push_back(transfers(count_between(canvas, masked, row, 0, block.stop), block.steps));
  }
  return quota;
}

Bools choose(const Canvas& canvas, const Prediction& guess, const Reading& reading, const TextSettings& s, Sampler& sampler,
             std::int64_t number, const std::vector<Ids>& quota, std::int64_t turn) {
  Floats confidence = guess.log_probability;
  if (s.order == "random") confidence = sampler.order(Head::text, number, reading.positions, canvas.rows);
  for (std::size_t i = 0; i < confidence.size(); ++i) {
    if (!reading.valid[i]) confidence[i] = kNever;
  }
  if (s.threshold) return above_threshold(confidence, reading.width, canvas.rows, static_cast<float>(std::log(*s.threshold)));
  Ids counts;
  for (std::size_t row = 0; row < quota.size(); ++row) {
    const auto first = reading.valid.begin() + static_cast<std::ptrdiff_t>(row) * reading.width;
    const auto all = static_cast<std::int64_t>(std::count(first, first + reading.width, 1));
    counts.push_back(turn < static_cast<std::int64_t>(quota[row].size()) ? quota[row][static_cast<std::size_t>(turn)] : all);
  }
  return most_confident(confidence, reading.width, counts);
}

// True when every row's answer is over: a stop token among its finished tokens.
bool ended(const Canvas& canvas, const Block& block, const Ids& ends) {
  if (ends.empty()) return false;
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    const auto first = canvas.tokens.begin() + row * canvas.length;
    if (std::find_first_of(first + canvas.start, first + block.stop, ends.begin(), ends.end()) == first + block.stop)
      return false;
  }
  return true;
}

// How many codes go back to mask: fewer than now. Each later step keeps at least one to draw, and nothing is left after the
// last.
std::int64_t left_masked(std::int64_t open, std::int64_t planned, std::int64_t steps_left) {
  return std::max<std::int64_t>(std::min(open - 1, steps_left ? std::max(planned, steps_left) : 0), 0);
}

}  // namespace

bool decode_text(const Denoiser& denoiser, Canvas& canvas, const TextSettings& s, Sampler& sampler, const Ids& ends,
                 const Sink& sink) {
  const Clock clock;
  const auto blocks = blocks_of(s, canvas.start);
  std::optional<std::int64_t> total;
  if (!s.threshold) {
    total = 0;
    for (const auto& block : blocks) *total += block.steps;
  }
  std::int64_t number = 0;
  for (const auto& block : blocks) {
    const auto quota = quota_of(canvas, block);
    std::optional<Memory> memory;
    for (std::int64_t turn = 0; !finished(canvas, block, memory ? &*memory : nullptr); ++turn, ++number) {
      const Bools where = candidates(canvas, block, memory ? &*memory : nullptr);
      const bool keep = s.cache != "none" && turn == 0;
      const Reading reading = read(denoiser, canvas, where, s.guidance, memory ? &*memory : nullptr, keep);
      Prediction guess = sampler.draw(denoiser, Head::text, reading.hidden, reading.mix, number, reading.positions);
      never_mask(denoiser, Head::text, reading, canvas.mask, guess);
      const Bools chosen = choose(canvas, guess, reading, s, sampler, number, quota, turn);
      if (keep) {
        std::int64_t first = block.start;
        for (std::int64_t p = 0; p < first; ++p) {
          if (any_between(canvas, where, p, p + 1)) first = p;
        }
        memory.emplace(Memory{{}, first, s.cache == "dual" ? block.stop : canvas.length});
        for (const auto& branch : reading.kept) memory->pasts.push_back(without(branch, memory->start, memory->stop));
      }
      Step step;
      step.index = number;
      step.of = total;
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        if (!chosen[i]) continue;
        canvas.tokens[canvas.at(static_cast<std::int64_t>(i) / reading.width, reading.positions[i])] = guess.token[i];
        step.positions.push_back(reading.positions[i]);
        step.tokens.push_back(guess.token[i]);
        step.log_probabilities.push_back(guess.log_probability[i]);
      }
      canvas.follow();
      const Bools masked = canvas.masked();
      for (std::int64_t row = 0; row < canvas.rows; ++row)
        step.remaining += count_between(canvas, masked, row, canvas.start, canvas.stop);
      step.forwards = number + 1;
      step.seconds = clock.seconds();
      if (!sink(std::move(step))) return false;
    }
    if (ended(canvas, block, ends)) break;
  }
  return true;
}

bool decode_image(const Denoiser& denoiser, Canvas& canvas, const ImageSettings& s, Sampler& sampler, const Sink& sink) {
  const Clock clock;
  const std::int64_t length = canvas.stop - canvas.start;
  const auto cell = [&](std::int64_t row, std::int64_t i) { return static_cast<std::size_t>(row * length + i); };
  std::vector<Ids> plans;
  Ids everywhere;
  const Bools unknown = canvas.masked();
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    const auto open = count_between(canvas, unknown, row, canvas.start, canvas.stop);
    plans.push_back(masked_after(s.schedule, open, s.steps));
    for (std::int64_t p = canvas.start; p < canvas.stop; ++p) everywhere.push_back(p);
  }
  const auto temperatures = noise_temperatures(s.temperature, s.steps);
  const float known = std::numeric_limits<float>::infinity();
  const float least = static_cast<float>(std::log(static_cast<double>(1e-20f)));
  for (std::int64_t k = 0; k < s.steps; ++k) {
    const Bools masked = canvas.masked();
    Ids guess, open, counts;
    for (std::int64_t row = 0; row < canvas.rows; ++row) {
      open.push_back(count_between(canvas, masked, row, canvas.start, canvas.stop));
      const auto planned = plans[static_cast<std::size_t>(row)][static_cast<std::size_t>(k)];
      counts.push_back(left_masked(open.back(), planned, s.steps - 1 - k));
      guess.insert(guess.end(), canvas.tokens.begin() + row * canvas.length + canvas.start,
                   canvas.tokens.begin() + row * canvas.length + canvas.stop);
    }
    const Ids given = guess;
    Floats confidence(guess.size(), known);
    if (std::any_of(open.begin(), open.end(), [](auto n) { return n > 0; })) {
      const Reading reading = read(denoiser, canvas, masked, s.guidance, nullptr, false);
      const Prediction drawn = sampler.draw(denoiser, Head::image, reading.hidden, reading.mix, k, reading.positions);
      for (std::size_t i = 0; i < reading.positions.size(); ++i) {
        if (!reading.valid[i]) continue;
        const auto to = cell(static_cast<std::int64_t>(i) / reading.width, reading.positions[i] - canvas.start);
        guess[to] = drawn.token[i] + canvas.code_offset;
        confidence[to] = std::max(drawn.log_probability[i], least);
      }
    }
    const Floats surest = confidence;
    const double temperature = temperatures[static_cast<std::size_t>(k)];
    if (temperature > 0) {
      const Floats noise = sampler.order(Head::image, k, everywhere, canvas.rows);
      for (std::size_t i = 0; i < noise.size(); ++i)
        confidence[i] += rounded(static_cast<float>(temperature) * gumbel(noise[i]));
    }
    const Bools again = remask_least_confident(confidence, length, counts);
    Step step;
    step.index = k;
    step.of = s.steps;
    for (std::int64_t row = 0; row < canvas.rows; ++row) {
      for (std::int64_t i = 0; i < length; ++i) {
        const auto token = again[cell(row, i)] ? canvas.mask : guess[cell(row, i)];
        step.guess.ids.push_back(guess[cell(row, i)] - canvas.code_offset);
        if (token == given[cell(row, i)]) continue;
        canvas.tokens[canvas.at(row, canvas.start + i)] = token;
        step.positions.push_back(canvas.start + i);
        step.tokens.push_back(token);
        step.log_probabilities.push_back(surest[cell(row, i)]);
      }
    }
    canvas.follow();
    const Bools after = canvas.masked();
    for (std::int64_t row = 0; row < canvas.rows; ++row) step.remaining += count_between(canvas, after, row, 0, canvas.length);
    step.forwards = k + 1;
    step.seconds = clock.seconds();
    if (!sink(std::move(step))) return false;
  }
  return true;
}

}  // namespace mmada_lite::internal
