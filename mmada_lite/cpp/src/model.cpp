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

namespace {

constexpr std::size_t kTogether = 16;  // rows that are written in the same steps

}  // namespace

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

Answer Model::Impl::write(const Ids& prompt, const std::vector<AnswerRow>& rows, const TextSettings& s, std::uint64_t seed,
                          const OnStep& on_step) const {
  const auto mask = bundle.special.at("mask");
  const Ids stops = ends();
  std::vector<WrittenRow> written;
  for (const auto& row : rows) written.push_back({row.ids, std::vector<double>(row.ids.size())});
  Answer answer;
  std::int64_t steps = 0;
  double seconds = 0;
  for (std::size_t first = 0; first < rows.size() && !answer.stopped; first += kTogether) {
    const std::size_t past = std::min(first + kTogether, rows.size());
    std::vector<Canvas> canvases;
    std::vector<PhiloxSampler> samplers;
    std::vector<TextRow> part;
    for (std::size_t row = first; row < past; ++row) {
      canvases.push_back(text_canvas(prompt, rows[row].ids, mask, s.guidance > 0));
      samplers.emplace_back(seed, s.temperature, canvases.back().start, static_cast<std::uint32_t>(row - first));
    }
    for (std::size_t row = 0; row < canvases.size(); ++row) part.push_back({&canvases[row], &samplers[row]});
    answer.stopped = !decode_text(denoiser, part, s, stops, [&](Step&& step) {
      step.index += steps;
      step.model_calls += steps;
      step.seconds += seconds;
      if (rows.size() > kTogether) step.total_steps.reset();
      for (std::size_t i = 0; i < step.positions.size(); ++i) {
        step.rows[i] += static_cast<std::int64_t>(first);
        const auto place = step.positions[i] - static_cast<std::int64_t>(prompt.size());
        if (place < 0) continue;  // masks of a prompt are written too
        auto& [ids, log_probabilities] = written[static_cast<std::size_t>(step.rows[i])];
        ids[static_cast<std::size_t>(place)] = step.tokens[i];
        log_probabilities[static_cast<std::size_t>(place)] = static_cast<double>(step.log_probabilities[i]);
      }
      answer.steps = step.index + 1;
      answer.seconds = step.seconds;
      return !on_step || on_step(step);
    });
    steps = answer.steps;
    seconds = answer.seconds;
  }
  std::size_t best = 0;
  for (std::size_t row = 1; row < rows.size() && !answer.stopped; ++row) {
    if (written[row].likeliness(rows[row], stops) > written[best].likeliness(rows[best], stops)) best = row;
  }
  read_row(rows[best], written[best], [this](const Ids& ids) { return text_of(ids); }, stops, mask, answer);
  return answer;
}

std::vector<AnswerRow> Model::Impl::filled_rows(std::size_t prompt, const Partial& partial, const TextSettings& s,
                                                const char* what) const {
  const Encode encode = [this](const std::string& text) { return need_tokenizer().encode(text); };
  const auto eos = bundle.special.at("eos");
  std::int64_t longest = 0;
  for (const auto& hole : partial.holes) longest += hole.most;
  check_length(prompt, longest, what);
  Ids end = bundle.rows.turn_end(encode);
  if (end.empty()) end.push_back(eos);
  auto rows = whole_answers(partial, encode, end, eos, s.block_length, bundle.special.at("mask"));
  check_length(prompt, static_cast<std::int64_t>(rows.front().ids.size()), what);
  return rows;
}

Answer Model::Impl::answered(const Ids& prompt, const std::optional<std::string>& given, const TextSettings& s,
                             std::uint64_t seed, const OnStep& on_step) const {
  const char* what = "the conversation with its answer";
  const auto mask = bundle.special.at("mask");
  if (!given) {
    check_length(prompt.size(), s.answer_length, what);
    return write(prompt, {all_masked(s.answer_length, mask)}, s, seed, on_step);
  }
  if (stripped(require_utf8(*given, "given answer")).empty()) {
    fail("the given answer is empty; say how it begins, or leave it out");
  }
  const Encode encode = [this](const std::string& text) { return need_tokenizer().encode(text); };
  const Partial partial = read_partial(*given, need_tokenizer().specials());
  const auto leaves_room = [&](std::size_t length) {
    if (static_cast<std::int64_t>(length) <= s.answer_length) return;
    fail("the given answer takes ", length, " tokens with its holes and the answer has ", s.answer_length,
         "; shorten it, or use a longer answer");
  };
  if (partial.holes.empty()) {
    const AnswerRow row = beginning(partial, encode, s.answer_length, mask);
    leaves_room(row.holes.front().start + 1);
    check_length(prompt.size(), s.answer_length, what);
    return write(prompt, {row}, s, seed, on_step);
  }
  std::size_t length = 0;
  for (const auto& piece : partial.pieces) length += encode(piece).size();
  for (const auto& hole : partial.holes) length += static_cast<std::size_t>(hole.most);
  leaves_room(length);
  return write(prompt, filled_rows(prompt.size(), partial, s, what), s, seed, on_step);
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
                   const OnStep& on_step, const std::optional<std::string>& answer) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  return model.answered(model.chat_ids(messages), answer, s, seed, on_step);
}

Answer Model::chat(const std::string& message, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step, const std::optional<std::string>& answer) const {
  return chat(std::vector<Message>{{"user", message}}, settings, seed, on_step, answer);
}

Answer Model::ask(const Picture& picture, const std::string& question, const std::optional<TextSettings>& settings,
                  std::uint64_t seed, const OnStep& on_step, Fit fit, const std::optional<std::string>& answer) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.need_image_tokenizer();
  Ids codes = model.encode(fitted(raster_of(picture), model.bundle.resolution, fit)).ids;
  for (auto& code : codes) code += model.bundle.code_offset;
  const Ids prompt = model.row("ask", "", {{"codes", codes}, {"chat", model.chat_ids({{"user", question}})}}).before;
  return model.answered(prompt, answer, s, seed, on_step);
}

Answer Model::fill(const std::string& text, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  const Partial partial = read_partial(require_utf8(text, "text"), model.need_tokenizer().specials());
  if (partial.holes.empty()) {
    fail("the text has no hole; write [mask:3] for three tokens, or [mask:*], where something is missing");
  }
  const Ids prompt = model.row("chat", "masks", {{"messages", {}}}).before;
  return model.write(prompt, model.filled_rows(prompt.size(), partial, s, "the text with its holes"), s, seed, on_step);
}

Answer Model::complete(const Ids& prompt, const std::optional<TextSettings>& settings, std::uint64_t seed,
                       const OnStep& on_step, const Ids& answer) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.check_ids(prompt);
  model.check_ids(answer);
  if (answer.empty()) return model.answered(prompt, {}, s, seed, on_step);
  model.check_length(prompt.size(), static_cast<std::int64_t>(answer.size()), "the conversation with its answer");
  const auto mask = model.bundle.special.at("mask");
  const AnswerRow row = row_of_ids(answer, mask, [&](const Ids& ids) { return model.text_of(ids); });
  if (!row.holes.empty()) return model.write(prompt, {row}, s, seed, on_step);
  fail("an answer of ", answer.size(), " tokens without a mask leaves nothing to write; put masks where something is to be ",
       "written");
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
