// Rows of tokens that decoding fills, and one model call over them.
#include "canvas.hpp"

#include <algorithm>

#include "common.hpp"

namespace mmada_lite::internal {

Bools Canvas::masked() const {
  Bools found(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) found[i] = tokens[i] == mask && editable[i];
  return found;
}

void Canvas::follow() {
  for (std::int64_t row = 0; guided && row < rows; ++row) {
    for (const auto p : shared) unconditional[static_cast<std::size_t>(row * other_length + p + shift)] = tokens[at(row, p)];
  }
}

Canvas text_canvas(const Ids& prompt, std::int64_t answer_length, std::int64_t mask, bool guided) {
  Canvas canvas;
  canvas.start = static_cast<std::int64_t>(prompt.size());
  canvas.length = canvas.stop = canvas.start + answer_length;
  canvas.mask = mask;
  canvas.tokens = prompt;
  canvas.tokens.resize(static_cast<std::size_t>(canvas.length), mask);
  for (const auto token : canvas.tokens) canvas.editable.push_back(token == mask);
  canvas.guided = guided;
  if (!guided) return canvas;
  canvas.other_length = canvas.length;
  canvas.unconditional.assign(canvas.tokens.size(), mask);
  for (std::int64_t p = 0; p < canvas.length; ++p) {
    if (canvas.editable[static_cast<std::size_t>(p)]) canvas.shared.push_back(p);
  }
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
  canvas.length = static_cast<std::int64_t>(canvas.tokens.size());
  canvas.editable.assign(canvas.tokens.size(), 0);
  std::copy(unknown.begin(), unknown.end(), canvas.editable.begin() + canvas.start);
  if (!unconditional_prompt) return canvas;
  canvas.guided = true;
  canvas.unconditional = *unconditional_prompt;
  canvas.unconditional.insert(canvas.unconditional.end(), canvas.tokens.begin() + canvas.start - 1, canvas.tokens.end());
  canvas.other_length = static_cast<std::int64_t>(canvas.unconditional.size());
  canvas.shift = canvas.other_length - canvas.length;
  for (std::int64_t p = canvas.start; p < canvas.stop; ++p) canvas.shared.push_back(p);
  return canvas;
}

Reading read(const Denoiser& denoiser, const Canvas& canvas, const Bools& where, double guidance, const Memory* memory,
             bool keep) {
  Reading reading;
  std::vector<Ids> found(static_cast<std::size_t>(canvas.rows));
  for (std::int64_t row = 0; row < canvas.rows; ++row) {
    for (std::int64_t p = 0; p < canvas.length; ++p) {
      if (where[canvas.at(row, p)]) found[static_cast<std::size_t>(row)].push_back(p);
    }
    reading.width =
        std::max({reading.width, std::int64_t{1}, static_cast<std::int64_t>(found[static_cast<std::size_t>(row)].size())});
  }
  for (auto& row : found) {
    const std::size_t count = row.size(), width = static_cast<std::size_t>(reading.width);
    row.resize(width, 0);
    reading.positions.insert(reading.positions.end(), row.begin(), row.end());
    for (std::size_t i = 0; i < width; ++i) reading.valid.push_back(i < count);
  }
  const int branches = canvas.guided ? 2 : 1;
  for (int branch = 0; branch < branches; ++branch) {
    const std::int64_t shift = branch ? canvas.shift : 0, length = branch ? canvas.other_length : canvas.length;
    Window window{canvas.rows, memory ? memory->start + shift : 0, memory ? memory->stop + shift : length, {}, {}, nullptr};
    const Ids& tokens = branch ? canvas.unconditional : canvas.tokens;
    for (std::int64_t row = 0; row < canvas.rows; ++row) {
      const auto first = tokens.begin() + row * length;
      window.tokens.insert(window.tokens.end(), first + window.start, first + window.stop);
    }
    for (const auto p : reading.positions) {
      window.queried.push_back(std::clamp<std::int64_t>(p + shift - window.start, 0, window.stop - window.start - 1));
    }
    if (memory) window.past = &memory->pasts[static_cast<std::size_t>(branch)];
    Values kept;
    Hidden hidden = denoiser.forward(window, keep ? &kept : nullptr);
    if (keep) reading.kept.push_back(std::move(kept));
    if (!branch) {
      reading.hidden = std::move(hidden);
    } else {
      reading.hidden.states.insert(reading.hidden.states.end(), hidden.states.begin(), hidden.states.end());
      reading.hidden.rows += hidden.rows;
    }
  }
  const auto rows = static_cast<std::size_t>(canvas.rows), columns = rows * static_cast<std::size_t>(branches);
  reading.mix = {Floats(rows * columns, 0.0f), canvas.rows};
  for (std::size_t row = 0; row < rows; ++row) {
    reading.mix.weights[row * columns + row] = branches == 1 ? 1.0f : static_cast<float>(1 + guidance);
    if (branches == 2) reading.mix.weights[row * columns + rows + row] = static_cast<float>(-guidance);
  }
  return reading;
}

}  // namespace mmada_lite::internal
