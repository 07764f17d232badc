// The two decoding loops, of texts and of pictures, over a canvas: rows of tokens that they fill, and one model call over them.
#include "decoding.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "canvas.hpp"
#include "common.hpp"
#include "schedules.hpp"

namespace mmada_lite::internal {
namespace {

// A candidate that is the mask itself would write nothing: the best other token there.
void never_mask(const Denoiser& denoiser, const Forward& result, std::int64_t mask, Prediction& candidates) {
  if (std::find(candidates.tokens.begin(), candidates.tokens.end(), mask) == candidates.tokens.end()) return;
  const Floats logits = denoiser.logits(Head::text, result.hidden, result.mix);
  const std::size_t size = logits.size() / candidates.tokens.size(), masked = static_cast<std::size_t>(mask);
  for (std::size_t i = 0; i < candidates.tokens.size(); ++i) {
    if (candidates.tokens[i] != mask) continue;
    const float* row = logits.data() + i * size;
    std::size_t best = masked == 0 ? 1 : 0;
    for (std::size_t v = 0; v < size; ++v) {
      if (v != masked && row[v] > row[best]) best = v;
    }
    double total = 0;
    for (std::size_t v = 0; v < size; ++v) {
      if (v != masked) total += std::exp(static_cast<double>(row[v]) - static_cast<double>(row[best]));
    }
    candidates.tokens[i] = static_cast<std::int64_t>(best);
    candidates.log_probability[i] = static_cast<float>(-std::log(total));
  }
}

void check_finite(const Prediction& drawn, std::int64_t number) {
  if (drawn.finite) return;
  fail("step ", number + 1, ": the model's numbers are not finite, so its weights are damaged or a setting is too large; ",
       "check the bundle with `mmada-lite info FOLDER --verify`");
}

// The masks that a step of the block may write: those left of its end and, with a cached context, in the window.
Ids open_positions(const Canvas& canvas, const Block& block, const std::optional<CachedContext>& context) {
  return canvas.masked(context ? context->start : 0, block.stop);
}

// The context that the block's later steps lean on: all but the window, which begins at the first mask.
CachedContext cached_context(const Forward& result, std::int64_t first, std::int64_t stop) {
  CachedContext context{{}, first, stop};
  for (const auto& branch : result.kept) context.pasts.push_back(past_without(branch, first, stop));
  return context;
}

// Which candidates [Q] are written; `quota` of them where no threshold says it.
Bools choose(const Ids& positions, const Prediction& candidates, const TextSettings& s, Sampler& sampler, std::int64_t number,
             std::int64_t quota) {
  const Floats confidence = s.order == "random" ? sampler.order(Head::text, number, positions) : candidates.log_probability;
  if (s.acceleration.threshold) return above_threshold(confidence, static_cast<float>(std::log(*s.acceleration.threshold)));
  return most_confident(confidence, quota);
}

using Written = std::map<std::int64_t, float>;  // log probabilities by position

Written write(Canvas& canvas, const Ids& positions, const Prediction& candidates, const Bools& chosen) {
  Written written;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if (!chosen[i]) continue;
    canvas.tokens[static_cast<std::size_t>(positions[i])] = candidates.tokens[i];
    written[positions[i]] = candidates.log_probability[i];
  }
  return written;
}

// A stop token that was written between two given tokens ends its hole: the masks behind it in the hole become that token, for
// certain. Behind the last given token it ends the text instead.
void close_holes(Canvas& canvas, const Ids& ends, Written& written) {
  const auto tail = canvas.tail();
  for (const auto& entry : written) {
    const auto stop = entry.first;
    const auto token = canvas.tokens[static_cast<std::size_t>(stop)];
    if (stop < canvas.start || stop >= tail || std::find(ends.begin(), ends.end(), token) == ends.end()) continue;
    for (auto i = static_cast<std::size_t>(stop) + 1; canvas.editable[i]; ++i) {
      if (canvas.tokens[i] != canvas.mask) continue;
      canvas.tokens[i] = token;
      written[static_cast<std::int64_t>(i)] = 0;
    }
  }
}

// What was written goes into the step, and the unconditional row follows.
void finish(Canvas& canvas, const Written& written, std::int64_t row, Step& step) {
  for (const auto& [position, log_probability] : written) {
    step.rows.push_back(row);
    step.positions.push_back(position);
    step.tokens.push_back(canvas.tokens[static_cast<std::size_t>(position)]);
    step.log_probabilities.push_back(log_probability);
  }
  canvas.update_unconditional();
  step.remaining += static_cast<std::int64_t>(canvas.masked(canvas.start, canvas.stop).size());
}

// A row of a text in a block: what is open, how much of it each step writes, and what cached steps lean on.
struct InBlock {
  Ids positions, quota;
  std::optional<CachedContext> context;
};

// The places of the answers at which any row has a mask.
Ids places_of(const std::vector<TextRow>& rows) {
  std::set<std::int64_t> places;
  for (const auto& [canvas, sampler] : rows) {
    for (const auto p : canvas->masked(canvas->start, canvas->stop)) places.insert(p);
  }
  return {places.begin(), places.end()};
}

// Whether a stop token is among the answer's finished tokens, behind those that are given.
bool ended(const Canvas& canvas, const Block& block, const Ids& ends) {
  const auto tokens = canvas.tokens.begin(), past = tokens + block.stop;
  return canvas.tail() < block.stop && std::find_first_of(tokens + canvas.tail(), past, ends.begin(), ends.end()) != past;
}

// How many codes go back to mask: fewer than now. Each later step keeps at least one to draw, and nothing is left after the
// last.
std::int64_t left_masked(std::int64_t open, std::int64_t planned, std::int64_t steps_left) {
  return std::max<std::int64_t>(std::min(open - 1, steps_left ? std::max(planned, steps_left) : 0), 0);
}

}  // namespace

Prediction text_candidates(const Denoiser& denoiser, const Canvas& canvas, const Forward& result, Sampler& sampler,
                           std::int64_t number, const Ids& positions) {
  Prediction candidates = sampler.draw(denoiser, Head::text, result.hidden, result.mix, number, positions);
  check_finite(candidates, number);
  never_mask(denoiser, result, canvas.mask, candidates);
  return candidates;
}

bool decode_text(const Denoiser& denoiser, const std::vector<TextRow>& rows, const TextSettings& s, const Ids& ends,
                 const Sink& sink) {
  const Clock clock;
  const auto blocks = blocks_of(s, places_of(rows));
  std::optional<std::int64_t> total;
  if (!s.acceleration.threshold) {
    total = 0;
    for (const auto& block : blocks) *total += block.steps;
  }
  std::int64_t number = 0;
  for (const auto& block : blocks) {
    std::vector<InBlock> states(rows.size());
    const auto look = [&] {  // the first position that is open in any row; none: the block's end
      auto first = block.stop;
      for (std::size_t row = 0; row < rows.size(); ++row) {
        states[row].positions = open_positions(*rows[row].canvas, block, states[row].context);
        if (!states[row].positions.empty()) first = std::min(first, states[row].positions.front());
      }
      return first;
    };
    auto first = look();
    for (auto& state : states) state.quota = transfers(static_cast<std::int64_t>(state.positions.size()), block.steps);
    for (std::size_t turn = 0; first < block.stop; ++turn, ++number) {
      const bool keep = s.acceleration.cache != "none" && turn == 0;
      const auto window = std::min(block.start, first);
      Step step;
      step.index = number;
      step.total_steps = total;
      for (std::size_t row = 0; row < rows.size(); ++row) {
        auto& [positions, quota, context] = states[row];
        Canvas& canvas = *rows[row].canvas;
        Written written;
        if (!positions.empty()) {
          const Forward result = forward(denoiser, canvas, positions, s.guidance, context ? &*context : nullptr, keep);
          const Prediction candidates = text_candidates(denoiser, canvas, result, *rows[row].sampler, number, positions);
          const auto count = turn < quota.size() ? quota[turn] : static_cast<std::int64_t>(positions.size());
          const Bools chosen = choose(positions, candidates, s, *rows[row].sampler, number, count);
          if (keep) context = cached_context(result, window, s.acceleration.cache == "dual" ? block.stop : canvas.length());
          written = write(canvas, positions, candidates, chosen);
          close_holes(canvas, ends, written);
        }
        finish(canvas, written, static_cast<std::int64_t>(row), step);
      }
      step.model_calls = number + 1;
      step.seconds = clock.seconds();
      if (!sink(std::move(step))) return false;
      first = look();
    }
    if (std::all_of(rows.begin(), rows.end(), [&](const TextRow& row) { return ended(*row.canvas, block, ends); })) break;
  }
  return true;
}

bool decode_image(const Denoiser& denoiser, Canvas& canvas, const ImageSettings& s, Sampler& sampler, const Sink& sink) {
  const Clock clock;
  const auto region = static_cast<std::size_t>(canvas.stop - canvas.start);
  Ids everywhere;
  for (auto p = canvas.start; p < canvas.stop; ++p) everywhere.push_back(p);
  const auto unknown = static_cast<std::int64_t>(canvas.masked(canvas.start, canvas.stop).size());
  const Ids plan = masked_after(s.schedule, unknown, s.steps);
  const auto temperatures = noise_temperatures(s.temperature, s.steps);
  const float least = static_cast<float>(std::log(static_cast<double>(1e-20f)));
  for (std::int64_t k = 0; k < s.steps; ++k) {
    const Ids open = canvas.masked(canvas.start, canvas.stop);
    const Ids before(canvas.tokens.begin() + canvas.start, canvas.tokens.begin() + canvas.stop);
    Ids candidates = before;
    Floats log_probability(region, std::numeric_limits<float>::infinity());
    if (!open.empty()) {
      const Forward result = forward(denoiser, canvas, open, s.guidance, nullptr, false);
      const Prediction drawn = sampler.draw(denoiser, Head::image, result.hidden, result.mix, k, open);
      check_finite(drawn, k);
      for (std::size_t i = 0; i < open.size(); ++i) {
        const auto cell = static_cast<std::size_t>(open[i] - canvas.start);
        candidates[cell] = drawn.tokens[i] + canvas.code_offset;
        log_probability[cell] = std::max(drawn.log_probability[i], least);
      }
    }
    Floats confidence = log_probability;
    const double temperature = temperatures[static_cast<std::size_t>(k)];
    if (temperature > 0) {
      const Floats noise = sampler.order(Head::image, k, everywhere);
      for (std::size_t i = 0; i < region; ++i) {
        confidence[i] += rounded(static_cast<float>(temperature) * gumbel(noise[i]));
      }
    }
    const auto planned = plan[static_cast<std::size_t>(k)];
    const auto count = left_masked(static_cast<std::int64_t>(open.size()), planned, s.steps - 1 - k);
    const Bools again = remask_least_confident(confidence, count);
    Step step;
    step.index = k;
    step.total_steps = s.steps;
    Bools changed(region);
    for (std::size_t i = 0; i < region; ++i) {
      step.predicted_codes.ids.push_back(candidates[i] - canvas.code_offset);
      if (again[i]) candidates[i] = canvas.mask;
      changed[i] = candidates[i] != before[i];
    }
    finish(canvas, write(canvas, everywhere, {std::move(candidates), std::move(log_probability)}, changed), 0, step);
    step.model_calls = k + 1;
    step.seconds = clock.seconds();
    if (!sink(std::move(step))) return false;
  }
  return true;
}

Ids Canvas::masked(std::int64_t from, std::int64_t to) const {
  Ids positions;
  for (auto p = from; p < to; ++p) {
    if (const auto i = static_cast<std::size_t>(p); tokens[i] == mask && editable[i]) positions.push_back(p);
  }
  return positions;
}

void Canvas::update_unconditional() {
  if (!guided()) return;
  for (const auto p : shared) unconditional[static_cast<std::size_t>(p + shift)] = tokens[static_cast<std::size_t>(p)];
}

std::int64_t Canvas::tail() const {
  auto first = stop;
  while (first > start && editable[static_cast<std::size_t>(first - 1)]) --first;
  return first;
}

Canvas text_canvas(const Ids& prompt, const Ids& answer, std::int64_t mask, bool guided) {
  Canvas canvas;
  canvas.start = static_cast<std::int64_t>(prompt.size());
  canvas.stop = canvas.start + static_cast<std::int64_t>(answer.size());
  canvas.mask = mask;
  canvas.tokens = prompt;
  canvas.tokens.insert(canvas.tokens.end(), answer.begin(), answer.end());
  for (const auto token : canvas.tokens) canvas.editable.push_back(token == mask);
  if (!guided) return canvas;
  canvas.unconditional.assign(prompt.size(), mask);
  canvas.unconditional.insert(canvas.unconditional.end(), answer.begin(), answer.end());
  canvas.shared = canvas.masked(0, canvas.stop);
  return canvas;
}

Canvas image_canvas(const Around& row, const Ids& codes, const Bools& unknown, const Bundle& bundle,
                    const Ids* unconditional_prompt) {
  Canvas canvas;
  canvas.mask = bundle.special.at("mask");
  canvas.code_offset = bundle.code_offset;
  canvas.tokens = row.before;
  canvas.start = static_cast<std::int64_t>(canvas.tokens.size());
  canvas.stop = canvas.start + static_cast<std::int64_t>(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i)
    canvas.tokens.push_back(unknown[i] ? canvas.mask : canvas.code_offset + codes[i]);
  canvas.tokens.insert(canvas.tokens.end(), row.behind.begin(), row.behind.end());
  canvas.editable.assign(canvas.tokens.size(), 0);
  std::copy(unknown.begin(), unknown.end(), canvas.editable.begin() + canvas.start);
  if (!unconditional_prompt) return canvas;
  canvas.unconditional = *unconditional_prompt;
  canvas.unconditional.insert(canvas.unconditional.end(), canvas.tokens.begin() + canvas.start, canvas.tokens.end());
  canvas.shift = static_cast<std::int64_t>(canvas.unconditional.size()) - canvas.length();
  for (std::int64_t p = canvas.start; p < canvas.stop; ++p) canvas.shared.push_back(p);
  return canvas;
}

Forward forward(const Denoiser& denoiser, const Canvas& canvas, const Ids& positions, double guidance,
                const CachedContext* context, bool keep) {
  Forward result;
  for (std::size_t branch = 0; branch < (canvas.guided() ? 2 : 1); ++branch) {
    const Ids& tokens = branch ? canvas.unconditional : canvas.tokens;
    const std::int64_t shift = branch ? canvas.shift : 0;
    Window window;
    window.start = context ? context->start + shift : 0;
    window.stop = context ? context->stop + shift : static_cast<std::int64_t>(tokens.size());
    window.tokens.assign(tokens.begin() + window.start, tokens.begin() + window.stop);
    for (const auto p : positions) window.queried.push_back(p + shift - window.start);
    if (context) window.past = &context->pasts[branch];
    Values kept;
    Hidden hidden = denoiser.forward(window, keep ? &kept : nullptr);
    if (keep) result.kept.push_back(std::move(kept));
    if (!branch) {
      result.hidden = std::move(hidden);
    } else {
      result.hidden.states.insert(result.hidden.states.end(), hidden.states.begin(), hidden.states.end());
      ++result.hidden.branches;
    }
  }
  result.mix = canvas.guided() ? Floats{static_cast<float>(1 + guidance), static_cast<float>(-guidance)} : Floats{1.0f};
  return result;
}

}  // namespace mmada_lite::internal
