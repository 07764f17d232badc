// The model: opening a bundle, and what a program asks of its texts.
#include "model.hpp"

#include <algorithm>
#include <utility>

#include "canvas.hpp"
#include "choosing.hpp"
#include "json.hpp"
#include "sampling.hpp"
#include "unicode.hpp"

namespace mmada_lite {

using namespace internal;

namespace {

constexpr std::size_t kTogether = 16, kMostChoices = 64;  // rows that are written in the same steps; choices of one hole

}  // namespace

Model::Impl::Impl(Bundle opened, const Options& options)
    : bundle(std::move(opened)), denoiser(bundle, options), codec(bundle, options) {
  if (!bundle.has_file("tokenizer.json")) {
    no_tokenizer = join(bundle.path.string(), " has no tokenizer.json, so it cannot read text; export it with its tokenizer");
    return;
  }
  try {
    tokenizer.emplace(bundle.path / "tokenizer.json", bundle.lower_case);
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

Answer Model::Impl::filled(const Ids& prompt, Partial partial, const std::vector<std::string>& choices, const TextSettings& s,
                           std::uint64_t seed, const OnStep& on_step, const char* what) const {
  const Encode encode = [this](const std::string& text) { return need_tokenizer().encode(text); };
  const auto eos = bundle.special.at("eos"), mask = bundle.special.at("mask");
  Ids end = bundle.rows.turn_end(encode);
  if (end.empty()) end.push_back(eos);
  const auto rows = [&] { return whole_answers(partial, encode, end, eos, s.block_length, mask); };
  if (choices.empty()) {
    std::int64_t longest = 0;
    for (const auto& hole : partial.holes) longest += hole.most;
    check_length(prompt.size(), longest, what);
    auto all = rows();
    check_length(prompt.size(), static_cast<std::int64_t>(all.front().ids.size()), what);
    return write(prompt, all, s, seed, on_step);
  }
  if (partial.holes.size() > 1) {
    fail("choices are for one hole and the text has ", partial.holes.size(), "; leave one, or ask for each in turn");
  }
  auto& [least, most, space] = partial.holes.front();
  const auto spelled_choices = spelled(choices, space);
  if (least != most) {  // as long as each
    least = most = 1;
    for (const auto& ids : spelled_choices) most = std::max(most, static_cast<std::int64_t>(ids.size()));
  }
  auto all = rows();
  if (all.size() == 1) return chosen(prompt, std::move(all), choices, s, on_step, what);
  std::vector<AnswerRow> own;
  for (const auto& ids : spelled_choices) own.push_back(all[ids.size() - 1]);
  return chosen(prompt, std::move(own), choices, s, on_step, what);
}

Answer Model::Impl::answered(const Ids& prompt, const std::optional<std::string>& given,
                             const std::vector<std::string>& choices, const TextSettings& s, std::uint64_t seed,
                             const OnStep& on_step) const {
  const char* what = "the conversation with its answer";
  const auto mask = bundle.special.at("mask");
  const auto of_row = [&](AnswerRow row) {
    check_length(prompt.size(), static_cast<std::int64_t>(row.ids.size()), what);
    if (choices.empty()) return write(prompt, {std::move(row)}, s, seed, on_step);
    row.plain = false;
    return chosen(prompt, {std::move(row)}, choices, s, on_step, what);
  };
  if (!given) return of_row(all_masked(s.answer_length, mask));
  if (stripped(require_utf8(*given, "given answer")).empty()) {
    fail("the given answer is empty; say how it begins, or leave it out");
  }
  const Encode encode = [this](const std::string& text) { return need_tokenizer().encode(text); };
  Partial partial = read_partial(*given, need_tokenizer().specials());
  const auto leaves_room = [&](std::size_t length) {
    if (static_cast<std::int64_t>(length) <= s.answer_length) return;
    fail("the given answer takes ", length, " tokens with its holes and the answer has ", s.answer_length,
         "; shorten it, or use a longer answer");
  };
  if (partial.holes.empty()) {
    AnswerRow row = beginning(partial, encode, s.answer_length, mask);
    leaves_room(row.holes.front().start + 1);
    return of_row(std::move(row));
  }
  std::size_t length = 0;
  for (std::size_t i = 0; i < partial.pieces.size(); ++i) {
    const auto& piece = partial.pieces[i];
    const bool space = i < partial.holes.size() && partial.holes[i].space;  // it is the hole's own
    length += encode(piece.substr(0, piece.size() - (space ? 1 : 0))).size();
  }
  for (const auto& hole : partial.holes) length += static_cast<std::size_t>(hole.most);
  leaves_room(length);
  return filled(prompt, std::move(partial), choices, s, seed, on_step, what);
}

std::vector<Ids> Model::Impl::spelled(const std::vector<std::string>& choices, bool space) const {
  if (choices.size() > kMostChoices) fail("there are ", choices.size(), " choices; give 1 to ", kMostChoices);
  std::vector<Ids> spelled;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (stripped(require_utf8(choices[i], "choice")).empty()) {
      fail("choice ", i + 1, " is empty; write something, or leave it out");
    }
    const std::string text = (space ? " " : "") + choices[i];
    Ids ids = need_tokenizer().encode(text);
    if (ids.empty() || tokenizer->decode(ids) != text) {
      fail("no tokens of this model spell the choice ", quoted(choices[i]), "; use characters that its tokenizer has");
    }
    const auto twin = static_cast<std::size_t>(std::find(spelled.begin(), spelled.end(), ids) - spelled.begin());
    if (twin < i) {
      fail("the choices ", quoted(choices[twin]), " and ", quoted(choices[i]), " are the same tokens; leave one out");
    }
    spelled.push_back(std::move(ids));
  }
  return spelled;
}

Answer Model::Impl::chosen(const Ids& prompt, std::vector<AnswerRow> rows, const std::vector<std::string>& choices,
                           const TextSettings& s, const OnStep& on_step, const char* what) const {
  const Clock clock;
  const auto mask = bundle.special.at("mask");
  check_length(prompt.size(), static_cast<std::int64_t>(rows.front().ids.size()), what);
  const auto ids = spelled(choices, rows.front().holes.front().space);
  rows.resize(choices.size(), rows.front());
  std::vector<Ids> answers;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const auto room = rows[i].holes.front().stop - rows[i].holes.front().start;
    if (ids[i].size() > room) {
      fail("the choice ", quoted(choices[i]), " takes ", ids[i].size(), " tokens and the hole has ", room,
           "; make the hole longer, or write [mask:*]");
    }
    answers.push_back(rows[i].ids);
  }
  const Scores scores = score_choices(denoiser, prompt, answers, ids, s.guidance, mask, ends());
  const Scored& best = scores.choices[scores.best];
  Answer answer;
  Step step;
  step.total_steps = 1;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    answer.choices.push_back({choices[i], ids[i], scores.choices[i].log_likelihood, scores.probabilities[i]});
    step.model_calls += scores.choices[i].model_calls;
  }
  for (std::size_t place = 0; place < best.answer.size(); ++place) {
    step.remaining += best.answer[place] == mask;
    if (best.answer[place] == answers[scores.best][place]) continue;
    step.rows.push_back(0);
    step.positions.push_back(static_cast<std::int64_t>(prompt.size() + place));
    step.tokens.push_back(best.answer[place]);
    step.log_probabilities.push_back(static_cast<float>(best.log_probabilities[place]));
  }
  step.seconds = answer.seconds = clock.seconds();
  answer.steps = 1;
  answer.stopped = on_step && !on_step(step);
  const WrittenRow written{best.answer, best.log_probabilities};
  read_row(rows[scores.best], written, [this](const Ids& each) { return text_of(each); }, ends(), mask, answer);
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
                   const OnStep& on_step, const std::optional<std::string>& answer,
                   const std::vector<std::string>& choices) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  return model.answered(model.chat_ids(messages), answer, choices, s, seed, on_step);
}

Answer Model::chat(const std::string& message, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step, const std::optional<std::string>& answer,
                   const std::vector<std::string>& choices) const {
  return chat(std::vector<Message>{{"user", message}}, settings, seed, on_step, answer, choices);
}

Answer Model::ask(const Picture& picture, const std::string& question, const std::optional<TextSettings>& settings,
                  std::uint64_t seed, const OnStep& on_step, Fit fit, const std::optional<std::string>& answer,
                  const std::vector<std::string>& choices) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.need_image_tokenizer();
  Ids codes = model.encode(fitted(raster_of(picture), model.bundle.resolution, fit)).ids;
  for (auto& code : codes) code += model.bundle.code_offset;
  const Ids prompt = model.row("ask", "", {{"codes", codes}, {"chat", model.chat_ids({{"user", question}})}}).before;
  return model.answered(prompt, answer, choices, s, seed, on_step);
}

Answer Model::fill(const std::string& text, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step, const std::vector<std::string>& choices) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  const Partial partial = read_partial(require_utf8(text, "text"), model.need_tokenizer().specials());
  if (partial.holes.empty()) {
    fail("the text has no hole; write [mask:3] for three tokens, or [mask:*], where something is missing");
  }
  const Ids prompt = model.row("chat", "masks", {{"messages", {}}}).before;
  return model.filled(prompt, partial, choices, s, seed, on_step, "the text with its holes");
}

Answer Model::complete(const Ids& prompt, const std::optional<TextSettings>& settings, std::uint64_t seed,
                       const OnStep& on_step, const Ids& answer) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.check_ids(prompt);
  model.check_ids(answer);
  if (answer.empty()) return model.answered(prompt, {}, {}, s, seed, on_step);
  model.check_length(prompt.size(), static_cast<std::int64_t>(answer.size()), "the conversation with its answer");
  const auto mask = model.bundle.special.at("mask");
  const AnswerRow row = row_of_ids(answer, mask, [&](const Ids& ids) { return model.text_of(ids); });
  if (!row.holes.empty()) return model.write(prompt, {row}, s, seed, on_step);
  fail("an answer of ", answer.size(), " tokens without a mask leaves nothing to write; put masks where something is to be ",
       "written");
}

Chosen Model::choose(const Ids& prompt, const std::vector<Ids>& answers, const std::vector<Ids>& choices,
                     const std::optional<TextSettings>& settings) const {
  const auto& model = require(impl_);
  const TextSettings s = checked(settings, model);
  model.check_ids(prompt);
  for (const auto& choice : choices) model.check_ids(choice);
  for (const auto& answer : answers) {
    model.check_ids(answer);
    model.check_length(prompt.size(), static_cast<std::int64_t>(answer.size()), "the conversation with its answer");
  }
  const auto mask = model.bundle.special.at("mask");
  const Scores scores = score_choices(model.denoiser, prompt, answers, choices, s.guidance, mask, model.ends());
  Chosen chosen{scores.best, scores.choices[scores.best].answer, {}};
  for (std::size_t i = 0; i < choices.size(); ++i) {
    chosen.choices.push_back({"", choices[i], scores.choices[i].log_likelihood, scores.probabilities[i]});
  }
  return chosen;
}

Ids Model::encode(const std::string& text) const { return require(impl_).need_tokenizer().encode(require_utf8(text, "text")); }
std::string Model::decode(const Ids& ids) const { return require(impl_).need_tokenizer().decode(ids); }

}  // namespace mmada_lite
