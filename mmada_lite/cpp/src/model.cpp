// The model: what a program asks of it, put together from the parts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "bundle.hpp"
#include "common.hpp"
#include "decoding.hpp"
#include "pictures.hpp"
#include "sampling.hpp"
#include "schedules.hpp"
#include "session.hpp"
#include "settings.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace mmada_lite {

using namespace internal;

struct Model::Impl {
  Impl(Bundle opened, const Options& options) : bundle(std::move(opened)), denoiser(bundle, options), codec(bundle, options) {
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

  Bundle bundle;
  Denoiser denoiser;
  Codec codec;
  std::optional<Tokenizer> tokenizer;
  std::string no_tokenizer;

  const Tokenizer& need_tokenizer() const {
    if (!tokenizer) throw Error(no_tokenizer);
    return *tokenizer;
  }

  Codes encode(const Raster& square) const { return {codec.grid(), codec.grid(), codec.encode(pixels_of(square))}; }

  Raster decode(const Codes& codes) const {
    check_codes(codes);
    return raster_from(codec.decode(codes), codes.columns * bundle.downsample, codes.rows * bundle.downsample);
  }

  void check_codes(const Codes& codes) const {
    if (codes.rows < 1 || codes.columns < 1 ||
        static_cast<std::int64_t>(codes.ids.size()) != std::int64_t{codes.rows} * codes.columns) {
      fail("the grid is said to be ", codes.rows, " x ", codes.columns, " codes and holds ", codes.ids.size(),
           "; give one for each cell");
    }
    for (const auto code : codes.ids) {
      if (code < 0 || code >= bundle.codebook) fail("the code ", code, " is none of the model's 0 to ", bundle.codebook - 1);
    }
  }

  void check_ids(const Ids& ids) const {
    for (const auto id : ids) {
      if (id < 0 || id >= bundle.size) fail("the id ", id, " is none of the model's 0 to ", bundle.size - 1);
    }
  }

  void fits(std::size_t given, std::int64_t written, const char* what) const {
    if (written <= bundle.longest - static_cast<std::int64_t>(given)) return;
    fail(what, " takes ", given, " + ", written, " tokens and the model reads ", bundle.longest, "; shorten it");
  }

  Ids chat_ids(const std::vector<Message>& messages) const {
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

  Answer answer(const Ids& prompt, const TextSettings& s, std::uint64_t seed, const OnStep& on_step) const {
    fits(prompt.size(), s.answer_length, "the conversation with its answer");
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

  // What is to be drawn, checked: the ids of the words, and how many steps.
  ImageSettings checked(const Ids& words, const Bools& unknown, const std::optional<ImageSettings>& settings) const {
    ImageSettings s = settings.value_or(bundle.image_defaults);
    const auto row = paint_prompt(words, bundle.special);
    fits(row.size(), static_cast<std::int64_t>(unknown.size()) + 2, "the prompt with its picture");
    const auto open =
        static_cast<std::int64_t>(std::count_if(unknown.begin(), unknown.end(), [](auto flag) { return flag != 0; }));
    if (settings && s.steps > open) fail(s.steps, " steps for ", open, " codes: a step draws at least one; use fewer steps");
    s.steps = std::min(s.steps, open);  // only the default is ever cut
    return s;
  }

  Ids prompt_ids(const std::string& prompt) const {
    const std::string body = stripped(require_utf8(prompt, "prompt"));
    if (body.empty()) fail("the prompt is empty; say what is to be drawn");
    return need_tokenizer().encode(body);
  }

  // Draws the unknown codes of a grid; what each step left is handed on.
  bool draw(const Ids& words, const Codes& codes, const Bools& unknown, const std::optional<ImageSettings>& settings,
            std::uint64_t seed, const Sink& sink) const {
    const ImageSettings s = checked(words, unknown, settings);
    const auto& special = bundle.special;
    const Ids nothing = paint_prompt({}, special);
    Canvas canvas = image_canvas(paint_prompt(words, special), codes.ids, unknown, bundle, s.guidance > 0 ? &nothing : nullptr);
    PhiloxSampler sampler(seed, s.sampling_temperature, canvas.start);
    return decode_image(denoiser, canvas, s, sampler, [&](Step&& step) {
      step.predicted_codes.rows = codes.rows;
      step.predicted_codes.columns = codes.columns;
      return sink(std::move(step));
    });
  }

  Drawing drawn(const Ids& words, const Codes& codes, const Bools& unknown, const std::optional<ImageSettings>& settings,
                std::uint64_t seed, const OnStep& on_step) const {
    Drawing drawing;
    drawing.stopped = !draw(words, codes, unknown, settings, seed, follow(drawing, on_step));
    drawing.picture = picture_from(decode(drawing.codes));
    return drawing;
  }

  static Sink follow(Drawing& drawing, const OnStep& on_step) {
    return [&drawing, &on_step](Step&& step) {
      drawing.steps = step.index + 1;
      drawing.seconds = step.seconds;
      const bool going = !on_step || on_step(step);
      drawing.codes = std::move(step.predicted_codes);
      return going;
    };
  }
};

namespace {

const Model::Impl& live(const std::unique_ptr<Model::Impl>& impl) {
  if (!impl) fail("this model was moved from; use the one that it was moved to");
  return *impl;
}

template <typename Settings>
const std::optional<Settings>& checked(const std::optional<Settings>& settings) {
  if (settings) check(*settings);
  return settings;
}

}  // namespace

Model::Model(const std::string& folder, const Options& options) {
  check_runtime(options.device);
  impl_ = std::make_unique<Impl>(open_bundle(folder, options.verify_all), options);
}

Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

const TextSettings& Model::text_defaults() const { return live(impl_).bundle.text_defaults; }
const ImageSettings& Model::image_defaults() const { return live(impl_).bundle.image_defaults; }
int Model::resolution() const { return static_cast<int>(live(impl_).bundle.resolution); }

Answer Model::chat(const std::vector<Message>& messages, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  const auto& model = live(impl_);
  const TextSettings s = checked(settings).value_or(model.bundle.text_defaults);
  return model.answer(model.chat_ids(messages), s, seed, on_step);
}

Answer Model::chat(const std::string& message, const std::optional<TextSettings>& settings, std::uint64_t seed,
                   const OnStep& on_step) const {
  return chat(std::vector<Message>{{"user", message}}, settings, seed, on_step);
}

Answer Model::ask(const Picture& picture, const std::string& question, const std::optional<TextSettings>& settings,
                  std::uint64_t seed, const OnStep& on_step, Fit fit) const {
  const auto& model = live(impl_);
  const TextSettings s = checked(settings).value_or(model.bundle.text_defaults);
  model.codec.grid();  // for its error
  const Codes codes = model.encode(fitted(raster_of(picture), model.bundle.resolution, fit));
  Ids row{model.bundle.special.mmu, model.bundle.special.soi};
  for (const auto code : codes.ids) row.push_back(model.bundle.code_offset + code);
  row.push_back(model.bundle.special.eoi);
  const Ids chat = model.chat_ids({{"user", question}});
  row.insert(row.end(), chat.begin(), chat.end());
  return model.answer(row, s, seed, on_step);
}

Answer Model::complete(const Ids& prompt, const std::optional<TextSettings>& settings, std::uint64_t seed,
                       const OnStep& on_step) const {
  const auto& model = live(impl_);
  const TextSettings s = checked(settings).value_or(model.bundle.text_defaults);
  model.check_ids(prompt);
  return model.answer(prompt, s, seed, on_step);
}

Drawing Model::paint(const std::string& prompt, const std::optional<ImageSettings>& settings, std::uint64_t seed,
                     const OnStep& on_step) const {
  const auto& model = live(impl_);
  checked(settings);
  const int side = model.codec.grid();
  const auto cells = static_cast<std::size_t>(side) * static_cast<std::size_t>(side);
  return model.drawn(model.prompt_ids(prompt), {side, side, Ids(cells, 0)}, Bools(cells, 1), settings, seed, on_step);
}

Drawing Model::draw(const Ids& words, const Codes& codes, const std::vector<std::uint8_t>& unknown,
                    const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step) const {
  const auto& model = live(impl_);
  checked(settings);
  model.codec.grid();  // for its error
  model.check_ids(words);
  model.check_codes(codes);
  Bools flags;
  for (const auto flag : unknown) flags.push_back(flag != 0);
  if (flags.size() != codes.ids.size())
    fail("there are ", codes.ids.size(), " codes and ", flags.size(), " flags; give one for each cell");
  if (std::find(flags.begin(), flags.end(), 1) == flags.end()) fail("no code is unknown; say what is to be drawn anew");
  return model.drawn(words, codes, flags, settings, seed, on_step);
}

Drawing Model::inpaint(const Picture& picture, const Mask& mask, const std::string& prompt,
                       const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step,
                       bool keep_pixels) const {
  const auto& model = live(impl_);
  checked(settings);
  const Raster original = raster_of(picture);
  if (mask.shade.size() != static_cast<std::size_t>(mask.width) * static_cast<std::size_t>(mask.height)) {
    fail("the mask is said to be ", mask.width, " x ", mask.height, " pixels and holds ", mask.shade.size(),
         " bytes; give one for each");
  }
  if (mask.width != picture.width || mask.height != picture.height) {
    fail("the mask is ", mask.width, " x ", mask.height, " pixels and the picture ", picture.width, " x ", picture.height,
         "; make them the same size");
  }
  Raster covered{mask.width, mask.height, 1, mask.shade};
  for (auto& shade : covered.bytes) shade = shade >= 128 ? 255 : 0;
  if (std::find(covered.bytes.begin(), covered.bytes.end(), 255) == covered.bytes.end()) {
    fail("the mask covers nothing; paint white what is to be drawn anew");
  }
  model.codec.grid();  // for its error
  const std::int64_t side = model.bundle.resolution, cell = model.bundle.downsample;
  const Raster square = fitted(original, side, Fit::crop);
  const Bools cells = cells_under(fitted(covered, side, Fit::crop), cell);
  if (std::find(cells.begin(), cells.end(), 1) == cells.end()) {
    fail("the mask covers nothing of the picture's central square; paint white what is to be drawn anew");
  }
  const Codes codes = model.encode(square);
  Drawing drawing = model.drawn(model.prompt_ids(prompt), codes, cells, settings, seed, on_step);
  for (std::int64_t i = 0; keep_pixels && i < side * side; ++i) {
    if (cells[static_cast<std::size_t>(i / side / cell * codes.columns + i % side / cell)]) continue;
    std::copy_n(square.bytes.begin() + 3 * i, 3, drawing.picture.rgb.begin() + 3 * i);
  }
  return drawing;
}

Drawing Model::extend(const Picture& picture, const std::string& prompt, const std::optional<ImageSettings>& settings,
                      Side side, double amount, std::uint64_t seed, const OnStep& on_step, bool keep_pixels) const {
  const auto& model = live(impl_);
  checked(settings);
  const int reach = model.codec.grid(), turns = static_cast<int>(side);
  const int fresh = amount > 0 && amount <= 4 ? static_cast<int>(std::nearbyint(amount * reach)) : 0;
  if (fresh < 1) {
    char least[32];
    std::snprintf(least, sizeof least, "%.3g", 1.0 / reach);
    fail("cannot extend by ", shown(amount), "; use a share of the side from ", least, " to 4");
  }
  const Raster square = fitted(raster_of(picture), model.bundle.resolution, Fit::crop);
  Codes grid = turned(model.encode(square), turns);
  const Ids words = model.prompt_ids(prompt);
  const int most = std::max(1, reach / 2);
  const Ids parts = transfers(fresh, (fresh + most - 1) / most);  // as few and as equal as can be
  Bools smallest(grid.ids.size());
  std::fill_n(smallest.begin(), parts.back() * reach, 1);
  model.checked(words, smallest, settings);  // for its errors, before any work
  if (seed > std::numeric_limits<std::uint64_t>::max() - (parts.size() - 1)) {
    fail("the seed is out of range; each of the ", parts.size(), " parts takes the next one, up to 2**64 - 1");
  }
  Drawing drawing;
  const Clock clock;
  for (std::size_t number = 0; number < parts.size() && !drawing.stopped; ++number) {
    const auto part = static_cast<int>(parts[number]);
    Codes window{reach, reach, Ids(static_cast<std::size_t>(part * reach), 0)}, flags = window;
    window.ids.insert(window.ids.end(), grid.ids.begin(), grid.ids.begin() + (reach - part) * reach);
    std::fill(flags.ids.begin(), flags.ids.end(), 1);
    flags.ids.resize(window.ids.size(), 0);
    const Ids open = turned(flags, -turns).ids;
    const Codes old = grid;
    const auto before = drawing.steps;
    drawing.stopped =
        !model.draw(words, turned(window, -turns), Bools(open.begin(), open.end()), settings, seed + number, [&](Step&& step) {
          const Codes done = turned(step.predicted_codes, turns);
          grid = {old.rows + part, reach, Ids(done.ids.begin(), done.ids.begin() + part * reach)};
          grid.ids.insert(grid.ids.end(), old.ids.begin(), old.ids.end());
          step.predicted_codes = turned(grid, -turns);
          step.index += before;
          step.total_steps = *step.total_steps * static_cast<std::int64_t>(parts.size());
          step.model_calls += before;
          step.seconds = clock.seconds();
          return Impl::follow(drawing, on_step)(std::move(step));
        });
  }
  drawing.picture = picture_from(model.decode(drawing.codes));
  const int left = side == Side::left ? drawing.picture.width - static_cast<int>(square.width) : 0;
  const int top = side == Side::top ? drawing.picture.height - static_cast<int>(square.height) : 0;
  for (int y = 0; keep_pixels && y < square.height; ++y) {
    std::copy_n(square.bytes.begin() + 3 * y * square.width, 3 * square.width,
                drawing.picture.rgb.begin() + 3 * (static_cast<std::ptrdiff_t>(y + top) * drawing.picture.width + left));
  }
  return drawing;
}

Ids Model::encode(const std::string& text) const { return live(impl_).need_tokenizer().encode(require_utf8(text, "text")); }
std::string Model::decode(const Ids& ids) const { return live(impl_).need_tokenizer().decode(ids); }

Codes Model::codes_of(const Picture& picture) const {
  const auto& model = live(impl_);
  model.codec.grid();  // for its error
  return model.encode(fitted(raster_of(picture), model.bundle.resolution, Fit::crop));
}

Picture Model::picture_of(const Codes& codes) const { return picture_from(live(impl_).decode(codes)); }

}  // namespace mmada_lite
