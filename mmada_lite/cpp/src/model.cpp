// The model: opening a bundle, and what a program asks of its texts.
#include "model.hpp"

#include <algorithm>
#include <utility>

#include "canvas.hpp"
#include "sampling.hpp"
#include "unicode.hpp"

namespace mmada_lite {

using namespace internal;

Model::Impl::Impl(Bundle opened, const Options& options)
    : bundle(std::move(opened)), denoiser(bundle, options), codec(bundle, options) {
  if (!bundle.has_file("tokenizer.json")) {
    no_tokenizer = join(bundle.path.string(), " has no tokenizer.json, so it cannot read text; export it with its tokenizer");
    return;
  }
  try {
    tokenizer.emplace(bundle.path / "tokenizer.json");
  } catch (const Error& error) {
    no_tokenizer = error.what();
    if (no_tokenizer.find(" is not a tokenizer.json") != std::string::npos) throw;
  }
}

const Tokenizer& Model::Impl::need_tokenizer() const {
  if (!tokenizer) throw Error(no_tokenizer);
  return *tokenizer;
}

void Model::Impl::check_ids(const Ids& ids) const {
  for (const auto id : ids) {
    if (id < 0 || id >= bundle.vocabulary_size)
      fail("the id ", id, " is none of the model's 0 to ", bundle.vocabulary_size - 1);
  }
}

void Model::Impl::check_length(std::size_t given, std::int64_t written, const char* what) const {
  if (written <= bundle.max_sequence_length - static_cast<std::int64_t>(given)) return;
  fail(what, " takes ", given, " + ", written, " tokens and the model reads ", bundle.max_sequence_length, "; shorten it");
}

Ids Model::Impl::chat_ids(const std::vector<Message>& messages) const {
  const auto& tokenizer = need_tokenizer();
  if (messages.empty()) fail("the conversation is empty; give at least one user message");
  const auto& special = bundle.special;
  Ids ids{special.bos};
  const auto append = [&](const std::string& text) {
    const Ids more = tokenizer.encode(text);
    ids.insert(ids.end(), more.begin(), more.end());
  };
  std::size_t number = 0;
  for (const auto& [role, content] : messages) {
    ++number;
    if (role != "system" && role != "user" && role != "assistant") {
      fail("message ", number, " has the role ", quoted(role), "; use one of system, user, assistant");
    }
    const std::string body = stripped(require_utf8(content, "message"));
    if (body.empty()) fail("message ", number, " (", role, ") is empty; write something");
    ids.push_back(special.start_header);
    append(role);
    ids.push_back(special.end_header);
    append("\n" + body);
    ids.push_back(special.eot);
  }
  ids.push_back(special.start_header);
  append("assistant");
  ids.push_back(special.end_header);
  append("\n");
  return ids;
}

Answer Model::Impl::complete(const Ids& prompt, const TextSettings& s, std::uint64_t seed, const OnStep& on_step) const {
  check_length(prompt.size(), s.answer_length, "the conversation with its answer");
  Canvas canvas = text_canvas(prompt, s.answer_length, bundle.special.mask, s.guidance > 0);
  PhiloxSampler sampler(seed, s.temperature, canvas.start);
  const Ids ends{bundle.special.eos, bundle.special.eot};
  Answer answer;
  answer.stopped = !decode_text(denoiser, canvas, s, sampler, ends, [&](Step&& step) {
    answer.steps = step.index + 1;
    answer.seconds = step.seconds;
    return !on_step || on_step(step);
  });
  answer.ids.assign(canvas.tokens.begin() + canvas.start, canvas.tokens.end());
  const auto end = std::find_first_of(answer.ids.begin(), answer.ids.end(), ends.begin(), ends.end());
  answer.complete = end != answer.ids.end();
  if (tokenizer) answer.text = stripped(tokenizer->decode(Ids(answer.ids.begin(), end)));
  return answer;
}

namespace {

TextSettings checked(const std::optional<TextSettings>& settings, const Model::Impl& model) {
  if (settings) check(*settings);
  return settings.value_or(model.bundle.text_defaults);
}

}  // namespace

Model::Model(const std::string& folder, const Options& options) {
  check_runtime(options.device);
  impl_ = std::make_unique<Impl>(open_bundle(folder, options.verify_all), options);
}

Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

const TextSettings& Model::text_defaults() const { return require(impl_).bundle.text_defaults; }
const ImageSettings& Model::image_defaults() const { return require(impl_).bundle.image_defaults; }
int Model::resolution() const { return static_cast<int>(require(impl_).bundle.resolution); }

Answer Model::chat(const std::vector<Message>& messages, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  return model.complete(model.chat_ids(messages), s, seed, on_step);
}

Answer Model::chat(const std::string& message, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  return chat(std::vector<Message>{{"user", message}}, settings, seed, on_step);
}

Answer Model::ask(const Picture& picture, const std::string& question, const std::optional<TextSettings>& settings,
                  std::uint64_t seed, const OnStep& on_step, Fit fit) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.need_image_tokenizer();
  const Codes codes = model.encode(fitted(raster_of(picture), model.bundle.resolution, fit));
  Ids row{model.bundle.special.mmu, model.bundle.special.soi};
  for (const auto code : codes.ids) row.push_back(model.bundle.code_offset + code);
  row.push_back(model.bundle.special.eoi);
  const Ids chat = model.chat_ids({{"user", question}});
  row.insert(row.end(), chat.begin(), chat.end());
  return model.complete(row, s, seed, on_step);
}

Answer Model::complete(const Ids& prompt, const std::optional<TextSettings>& settings, std::uint64_t seed,
                       const OnStep& on_step) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.check_ids(prompt);
  return model.complete(prompt, s, seed, on_step);
}

Ids Model::encode(const std::string& text) const { return require(impl_).need_tokenizer().encode(require_utf8(text, "text")); }
std::string Model::decode(const Ids& ids) const { return require(impl_).need_tokenizer().decode(ids); }

}  // namespace mmada_lite
