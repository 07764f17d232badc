// The model: opening a bundle, and what a program asks of its texts.
#include "model.hpp"

#include <algorithm>
#include <utility>

#include "canvas.hpp"
#include "choosing.hpp"
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
    return;
  }
  try {
    tokenizer->check(bundle.special, bundle.code_offset);
  } catch (const Error& error) {
    fail((bundle.path / kManifest).string(), ": ", error.what(), "; ", kFetchAgain);
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

void Model::Impl::check_codes(const Codes& codes) const {
  if (codes.rows < 1 || codes.columns < 1 ||
      static_cast<std::int64_t>(codes.ids.size()) != std::int64_t{codes.rows} * codes.columns) {
    fail("the grid is said to be ", codes.rows, " x ", codes.columns, " codes and holds ", codes.ids.size(),
         "; give one for each cell");
  }
  for (const auto code : codes.ids) {
    if (code < 0 || code >= bundle.codebook_size)
      fail("the code ", code, " is none of the model's 0 to ", bundle.codebook_size - 1);
  }
}

void Model::Impl::check_length(std::size_t given, std::int64_t written, const char* what) const {
  if (written <= bundle.max_sequence_length - static_cast<std::int64_t>(given)) return;
  fail(what, " takes ", given, " + ", written, " tokens and the model reads ", bundle.max_sequence_length, "; shorten it");
}

Around Model::Impl::row(const char* name, const char* open_slot, const Filled& filled) const {
  return bundle.rows.around(name, open_slot, filled, [this](const std::string& text) { return need_tokenizer().encode(text); });
}

Ids Model::Impl::chat_ids(const std::vector<Message>& messages) const {
  const auto& tokenizer = need_tokenizer();
  if (messages.empty()) fail("the conversation is empty; give at least one user message");
  Ids ids;
  std::size_t number = 0;
  for (const auto& [role, content] : messages) {
    ++number;
    if (role != "system" && role != "user" && role != "assistant") {
      fail("message ", number, " has the role ", quoted(role), "; use one of system, user, assistant");
    }
    const Words words{{"role", role}, {"content", stripped(require_utf8(content, "message"))}};
    if (words.at("content").empty()) fail("message ", number, " (", role, ") is empty; write something");
    const auto encode = [&](const std::string& text) { return tokenizer.encode(worded(text, words)); };
    const Ids message = bundle.rows.around("message", "", {}, encode).before;
    ids.insert(ids.end(), message.begin(), message.end());
  }
  return row("chat", "masks", {{"messages", ids}}).before;
}

Answer Model::Impl::complete(const Ids& prompt, Ids answer, const TextSettings& s, std::uint64_t seed,
                             const OnStep& on_step) const {
  const auto mask = bundle.special.at("mask");
  if (answer.empty()) answer.assign(static_cast<std::size_t>(s.answer_length), mask);
  if (std::find(answer.begin(), answer.end(), mask) == answer.end()) {
    fail("an answer of ", answer.size(), " tokens without a mask leaves nothing to write; put masks where something is to be ",
         "written");
  }
  check_length(prompt.size(), static_cast<std::int64_t>(answer.size()), "the conversation with its answer");
  Canvas canvas = text_canvas(prompt, answer, mask, s.guidance > 0);
  PhiloxSampler sampler(seed, s.temperature, canvas.start);
  const Ids ends = this->ends();
  Answer written;
  written.stopped = !decode_text(denoiser, canvas, s, sampler, ends, [&](Step&& step) {
    written.steps = step.index + 1;
    written.seconds = step.seconds;
    return !on_step || on_step(step);
  });
  written.ids.assign(canvas.tokens.begin() + canvas.start, canvas.tokens.end());
  const auto tail = written.ids.begin() + (canvas.tail() - canvas.start);
  const auto end = std::find_first_of(tail, written.ids.end(), ends.begin(), ends.end());
  written.complete = end != written.ids.end();
  if (tokenizer) written.text = stripped(tokenizer->decode(Ids(written.ids.begin(), end)));
  return written;
}

Chosen Model::Impl::choose(const Ids& prompt, const Ids& answer, const std::vector<Ids>& choices, const TextSettings& s,
                           bool grows) const {
  const Scores scores = score_choices(denoiser, prompt, answer, choices, s.guidance, bundle.special.at("mask"), ends(), grows);
  Chosen chosen{scores.best, scores.choices[scores.best].answer, {}};
  for (std::size_t i = 0; i < choices.size(); ++i) {
    chosen.choices.push_back({choices[i], scores.choices[i].log_likelihood, scores.probabilities[i]});
  }
  return chosen;
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
  return model.complete(model.chat_ids(messages), {}, s, seed, on_step);
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
  Ids codes = model.encode(fitted(raster_of(picture), model.bundle.resolution, fit)).ids;
  for (auto& code : codes) code += model.bundle.code_offset;
  const Ids prompt = model.row("ask", "", {{"codes", codes}, {"chat", model.chat_ids({{"user", question}})}}).before;
  return model.complete(prompt, {}, s, seed, on_step);
}

Answer Model::complete(const Ids& prompt, const std::optional<TextSettings>& settings, std::uint64_t seed,
                       const OnStep& on_step, const Ids& answer) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.check_ids(prompt);
  model.check_ids(answer);
  return model.complete(prompt, answer, s, seed, on_step);
}

Chosen Model::choose(const Ids& prompt, const Ids& answer, const std::vector<Ids>& choices,
                     const std::optional<TextSettings>& settings, bool grows) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  std::size_t longest = 0;
  for (const auto& choice : choices) {
    model.check_ids(choice);
    longest = std::max(longest, choice.size());
  }
  model.check_ids(prompt);
  model.check_ids(answer);
  const auto room = answer.size() + (grows ? longest + 1 : 0);
  model.check_length(prompt.size(), static_cast<std::int64_t>(room), "the conversation with its answer");
  return model.choose(prompt, answer, choices, s, grows);
}

Ids Model::encode(const std::string& text) const { return require(impl_).need_tokenizer().encode(require_utf8(text, "text")); }
std::string Model::decode(const Ids& ids) const { return require(impl_).need_tokenizer().decode(ids); }

}  // namespace mmada_lite
