// Rows of tokens that decoding fills, and one model call over them.
#include "canvas.hpp"

#include <algorithm>

#include "common.hpp"

namespace mmada_lite::internal {

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

Canvas text_canvas(const Ids& prompt, std::int64_t answer_length, std::int64_t mask, bool guided) {
  Canvas canvas;
  canvas.start = static_cast<std::int64_t>(prompt.size());
  canvas.stop = canvas.start + answer_length;
  canvas.mask = mask;
  canvas.tokens = prompt;
  canvas.tokens.resize(static_cast<std::size_t>(canvas.stop), mask);
  for (const auto token : canvas.tokens) canvas.editable.push_back(token == mask);
  if (!guided) return canvas;
  canvas.unconditional.assign(canvas.tokens.size(), mask);
  canvas.shared = canvas.masked(0, canvas.stop);
  return canvas;
}

Ids paint_prompt(const Ids& words, const Special& special) {
  Ids row{special.t2i};
  if (words.empty() || words.front() != special.bos) row.push_back(special.bos);
  row.insert(row.end(), words.begin(), words.end());
  row.push_back(special.eos);
  return row;
}

Canvas image_canvas(const Ids& prompt, const Ids& codes, const Bools& unknown, const Bundle& bundle,
                    const Ids* unconditional_prompt) {
  Canvas canvas;
  canvas.mask = bundle.special.mask;
  canvas.code_offset = bundle.code_offset;
  canvas.tokens = prompt;
  canvas.tokens.push_back(bundle.special.soi);
  canvas.start = static_cast<std::int64_t>(canvas.tokens.size());
  canvas.stop = canvas.start + static_cast<std::int64_t>(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i)
    canvas.tokens.push_back(unknown[i] ? canvas.mask : canvas.code_offset + codes[i]);
  canvas.tokens.push_back(bundle.special.eoi);
  canvas.editable.assign(canvas.tokens.size(), 0);
  std::copy(unknown.begin(), unknown.end(), canvas.editable.begin() + canvas.start);
  if (!unconditional_prompt) return canvas;
  canvas.unconditional = *unconditional_prompt;
  canvas.unconditional.insert(canvas.unconditional.end(), canvas.tokens.begin() + canvas.start - 1, canvas.tokens.end());
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
