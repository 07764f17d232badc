// What a loaded model holds, and the work that its public calls share.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "common.hpp"
#include "decoding.hpp"
#include "filling.hpp"
#include "pictures.hpp"
#include "session.hpp"
#include "settings.hpp"
#include "tokenizer.hpp"

namespace mmada_lite {

struct Model::Impl {
  using Bools = internal::Bools;
  using Raster = internal::Raster;

  Impl(internal::Bundle opened, const Options& options);

  internal::Bundle bundle;
  internal::Denoiser denoiser;
  internal::Codec codec;
  std::optional<internal::Tokenizer> tokenizer;
  std::string no_tokenizer;  // why there is none

  const internal::Tokenizer& need_tokenizer() const;
  void need_image_tokenizer() const { codec.grid(); }  // throws where there is none

  void check_ids(const Ids& ids) const;
  void check_codes(const Codes& codes) const;
  void check_length(std::size_t given, std::int64_t written, const char* what) const;

  // The ids around the open slot of a row, its texts encoded.
  internal::Around row(const char* name, const char* open_slot, const internal::Filled& filled) const;
  internal::Around paint_row(const Ids& words) const { return row("paint", "codes", {{"prompt", words}}); }
  Ids chat_ids(const std::vector<Message>& messages) const;
  Ids prompt_ids(const std::string& prompt) const;
  Codes encode(const Raster& square) const;
  Raster decode(const Codes& codes) const;

  // Writes rows of one length behind a prompt, and reads the likeliest.
  Answer write(const Ids& prompt, const std::vector<internal::AnswerRow>& rows, const TextSettings& settings,
               std::uint64_t seed, const OnStep& on_step) const;
  // An answer to be written behind a prompt, of which `given` is a part; none: all masks. With choices one of these.
  Answer answered(const Ids& prompt, const std::optional<std::string>& given, const std::vector<std::string>& choices,
                  const TextSettings& settings, std::uint64_t seed, const OnStep& on_step) const;
  // A text whose holes are to be written behind a prompt.
  Answer filled(const Ids& prompt, internal::Partial partial, const std::vector<std::string>& choices,
                const TextSettings& settings, std::uint64_t seed, const OnStep& on_step, const char* what) const;
  // The likeliest of a few choices in the one hole of each row, of which there is one for all choices or one for each.
  Answer chosen(const Ids& prompt, std::vector<internal::AnswerRow> rows, const std::vector<std::string>& choices,
                const TextSettings& settings, const OnStep& on_step, const char* what) const;
  std::vector<Ids> spelled(const std::vector<std::string>& choices, bool space) const;
  std::string text_of(const Ids& ids) const { return tokenizer ? tokenizer->decode(ids) : ""; }
  Ids ends() const { return {bundle.special.at("eos"), bundle.special.at("eot")}; }  // any of these ends a text

  // The given settings, or the bundle's own with at most a step for each unknown code. Throws where they or the row do not fit.
  ImageSettings image_settings_for(const internal::Around& row, const Bools& unknown,
                                   const std::optional<ImageSettings>& settings) const;
  // Draws the unknown codes of a grid; `sink` is told of every step. False when it stopped the drawing.
  bool draw_steps(const Ids& words, const Codes& codes, const Bools& unknown, const std::optional<ImageSettings>& settings,
                  std::uint64_t seed, const internal::Sink& sink) const;
  Drawing draw(const Ids& words, const Codes& codes, const Bools& unknown, const std::optional<ImageSettings>& settings,
               std::uint64_t seed, const OnStep& on_step) const;
  // A sink that keeps each step's codes in `drawing` and tells `on_step`.
  static internal::Sink recorder(Drawing& drawing, const OnStep& on_step);
};

namespace internal {

inline const Model::Impl& require(const std::unique_ptr<Model::Impl>& impl) {
  if (!impl) fail("this model was moved from; use the one that it was moved to");
  return *impl;
}

}  // namespace internal

}  // namespace mmada_lite
