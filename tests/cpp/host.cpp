// The program through which tests/cpp/test_cpp.py speaks to the C++ side: a JSON job a line on standard input, a JSON result a
// line on standard output. It reaches behind the public header too, so that random numbers, schedules and decoding loops over a
// given canvas can be compared with Python's. It decides nothing: what is right is said by the tests.
#include <algorithm>
#include <cmath>
#include <ctime>
#include <iostream>
#include <utility>

#include "bundle.hpp"
#include "canvas.hpp"
#include "decoding.hpp"
#include "host_json.hpp"
#include "mmada_lite.hpp"
#include "partial.hpp"
#include "pictures.hpp"
#include "sampling.hpp"
#include "schedules.hpp"
#include "session.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace mmada_lite {
namespace {

// ---- recorded choices, as bench/parity/replay.py takes them ----

struct Recorded {  // [call, row, position, ...]
  std::vector<std::int64_t> shape;
  std::vector<double> data;

  explicit Recorded(const Json* json) {
    if (!json || json->is(Json::Kind::null)) return;
    shape = ids_of(*json->find("shape"));
    for (const auto& item : json->find("data")->items) data.push_back(number_of(item));
  }
  bool given() const { return !shape.empty(); }
  const double* at(std::int64_t call, std::int64_t row, std::int64_t position) const {
    const std::int64_t tail = shape.size() > 3 ? shape[3] : 1;
    return data.data() + ((call * shape[1] + row) * shape[2] + position) * tail;
  }
};

struct RecordedSampler final : Sampler {
  explicit RecordedSampler(const Json& job)
      : row(integer_in(job, "row")),
        dropped(integer_in(job, "dropped")),
        start(integer_in(job, "start")),
        temperature(number_of(*job.find("temperature"))),
        gumbels(job.find("gumbel")),
        codes(job.find("codes")),
        text_order(job.find("text_order")),
        image_order(job.find("image_order")) {}

  Prediction draw(const Denoiser& denoiser, Head head, const Hidden& hidden, const Floats& mix, std::int64_t step,
                  const Ids& positions) override {
    if (!gumbels.given() && !codes.given()) return denoiser.predict(head, hidden, mix, 0.0, nullptr);
    const Floats logits = denoiser.logits(head, hidden, mix);
    const std::size_t size = logits.size() / positions.size();
    Prediction candidates;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const float* scores = logits.data() + i * size;
      std::size_t best = 0;
      if (codes.given()) {
        best = static_cast<std::size_t>(*codes.at(step, row, positions[i] - start));
      } else {
        const double* u = gumbels.at(step, row, positions[i] + dropped);
        const auto noisy = [&](std::size_t v) { return scores[v] - temperature * std::log(-std::log(u[v])); };
        for (std::size_t v = 1; v < size; ++v) best = noisy(v) > noisy(best) ? v : best;
      }
      const double peak = *std::max_element(scores, scores + size);
      double total = 0;
      for (std::size_t v = 0; v < size; ++v) total += std::exp(scores[v] - peak);
      candidates.tokens.push_back(static_cast<std::int64_t>(best));
      candidates.log_probability.push_back(static_cast<float>(scores[best] - peak - std::log(total)));
    }
    return candidates;
  }

  Floats order(Head head, std::int64_t step, const Ids& positions) override {
    const bool image = head == Head::image;
    Floats uniforms;
    for (const auto p : positions) {
      uniforms.push_back(static_cast<float>(*(image ? image_order : text_order).at(step, row, p + (image ? -start : dropped))));
    }
    return uniforms;
  }

  std::int64_t row, dropped, start;
  double temperature;
  Recorded gumbels, codes, text_order, image_order;
};

Canvas canvas_in(const Json& json) {
  Canvas canvas;
  canvas.tokens = ids_of(*json.find("tokens"));
  canvas.editable = bytes_of<std::uint8_t>(*json.find("editable"));
  canvas.start = integer_in(json, "start");
  canvas.stop = integer_in(json, "stop");
  canvas.mask = integer_in(json, "mask");
  canvas.code_offset = integer_in(json, "code_offset");
  canvas.unconditional = ids_of(*json.find("unconditional"));
  canvas.shared = ids_of(*json.find("shared"));
  canvas.shift = integer_in(json, "shift");
  return canvas;
}

// ---- jobs ----

// Decodes a given canvas with recorded choices; every state in between, the span of every window, and the logits of the first
// calls.
std::string replay(const std::string& folder, const Json& job) {
  Bundle bundle = open_bundle(folder, false);
  Options options;
  options.threads = static_cast<int>(integer_in(job, "threads"));
  Denoiser denoiser(bundle, options);
  Canvas canvas = canvas_in(*job.find("canvas"));
  RecordedSampler sampler(*job.find("sampler"));
  std::vector<Ids> spans, states, unconditional, predicted_codes;
  std::vector<Floats> logits;
  denoiser.watch = [&](const Window& window) {
    spans.push_back({window.start, window.stop});
    if (static_cast<std::int64_t>(spans.size()) > integer_in(job, "logits")) return;
    Window everything = window;
    everything.queried.resize(window.tokens.size());
    for (std::size_t i = 0; i < everything.queried.size(); ++i)
      everything.queried[i] = static_cast<std::int64_t>(i) % (window.stop - window.start);
    const auto watching = std::exchange(denoiser.watch, nullptr);
    const Floats identity{1.0f};
    logits.push_back(denoiser.logits(Head::text, denoiser.forward(everything, nullptr), identity));
    denoiser.watch = watching;
  };
  const auto sink = [&](Step&& step) {
    states.push_back(canvas.tokens);
    unconditional.push_back(canvas.unconditional);
    predicted_codes.push_back(step.predicted_codes.ids);
    return true;
  };
  if (text_in(job, "what") == "text") {
    decode_text(denoiser, {{&canvas, &sampler}}, *text_settings_in(job), ids_of(*job.find("ends")), sink);
  } else {
    decode_image(denoiser, canvas, *image_settings_in(job), sampler, sink);
  }
  return Out()
      .add("states", states)
      .add("unconditional", unconditional)
      .add("predicted_codes", predicted_codes)
      .add("spans", spans)
      .add("logits", logits)
      .done();
}

std::string numbers(const Json& job) {
  Floats uniforms, noise;
  const Ids rows = ids_of(*job.find("rows")), positions = ids_of(*job.find("positions"));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    uniforms.push_back(uniform(seed_in(job), static_cast<Stream>(integer_in(job, "stream")),
                               static_cast<std::uint32_t>(integer_in(job, "step")), static_cast<std::uint32_t>(rows[i]),
                               static_cast<std::uint32_t>(positions[i])));
    noise.push_back(gumbel(uniforms.back()));
  }
  return Out().add("uniform", uniforms).add("gumbel", noise).done();
}

std::string schedules(const Json& job) {
  const auto name = text_in(job, "name");
  std::vector<Ids> counts;
  std::vector<std::vector<double>> temperatures;
  for (const auto steps : ids_of(*job.find("steps"))) {
    for (const auto tokens : ids_of(*job.find("tokens"))) counts.push_back(masked_after(name, tokens, steps));
    temperatures.push_back(noise_temperatures(1.0, steps));
  }
  return Out().add("masked_after", counts).add("temperatures", temperatures).done();
}

std::string partial(const Json& job) {
  std::vector<std::string> specials;
  for (const auto& special : job.find("specials")->items) specials.push_back(special.string);
  const Partial read = read_partial(text_in(job, "text"), specials);
  std::vector<Ids> holes;
  for (const auto& [least, most, space] : read.holes) holes.push_back({least, most, space});
  return Out().add("pieces", read.pieces).add("holes", holes).done();
}

std::string character_classes() {  // where a class begins, for every code point
  std::vector<Ids> runs;
  for (char32_t code = 0; code < 0x110000; ++code) {
    const std::int64_t kind = is_space(code) ? 1 : is_letter(code) ? 2 : is_number(code) ? 3 : 0;
    if (runs.empty() || runs.back()[1] != kind) runs.push_back({static_cast<std::int64_t>(code), kind});
  }
  return Out().add("runs", runs).done();
}

std::string choices_json(const std::vector<Choice>& choices) {
  std::string all;
  for (const auto& [text, ids, log_likelihood, probability] : choices) {
    Out choice;
    choice.add("text", text).add("ids", ids).add("log_likelihood", log_likelihood).add("probability", probability);
    all += (all.empty() ? "" : ",") + choice.done();
  }
  return ",\"choices\":[" + all + "]}";
}

std::string answer_json(const Answer& answer, const std::vector<Ids>& positions, const Floats& log_probabilities) {
  std::string spans;
  for (const auto& span : answer.spans) {
    Out out;
    out.add("start", static_cast<std::int64_t>(span.start)).add("stop", static_cast<std::int64_t>(span.stop));
    out.add("text", span.text).add("ids", span.ids).add("log_probability", span.log_probability).add("mean", span.mean);
    spans += (spans.empty() ? "" : ",") + out.done();
  }
  Out out;
  out.add("ids", answer.ids).add("text", answer.text).add("complete", answer.complete).add("stopped", answer.stopped);
  out.add("steps", answer.steps).add("positions", positions).add("log_probabilities", log_probabilities);
  return "{" + out.text + ",\"spans\":[" + spans + "]" + choices_json(answer.choices);
}

std::string drawing_json(const Drawing& drawing, const std::vector<Ids>& positions) {
  return Out()
      .add("codes", drawing.codes.ids)
      .add("rows", drawing.codes.rows)
      .add("columns", drawing.codes.columns)
      .add("width", drawing.picture.width)
      .add("height", drawing.picture.height)
      .add("bytes", drawing.picture.rgb)
      .add("stopped", drawing.stopped)
      .add("steps", drawing.steps)
      .add("positions", positions)
      .done();
}

std::string run_on_model(const Model& model, const std::string& op, const Json& job) {
  std::vector<Ids> positions;
  Floats log_probabilities;
  const std::int64_t stop_at = integer_in(job, "stop_at", -1), throw_at = integer_in(job, "throw_at", -1);
  const OnStep on_step = [&](const Step& step) {
    positions.push_back(step.positions);
    log_probabilities.insert(log_probabilities.end(), step.log_probabilities.begin(), step.log_probabilities.end());
    if (step.index == throw_at) throw std::runtime_error("thrown by the callback");
    return step.index != stop_at;
  };
  const auto seed = seed_in(job);
  const auto answered = [&](const Answer& answer) { return answer_json(answer, positions, log_probabilities); };
  std::optional<std::string> given;
  if (const Json* answer = job.find("answer"); answer && answer->is(Json::Kind::string)) given = answer->string;
  std::vector<std::string> choices;
  if (const Json* texts = job.find("choices"); texts && op != "choose") {
    for (const auto& text : texts->items) choices.push_back(text.string);
  }
  if (op == "codes_of") {
    const Codes codes = model.codes_of(picture_in(job));
    return Out().add("shape", Ids{codes.rows, codes.columns}).add("codes", codes.ids).done();
  }
  if (op == "picture_of") {
    const Ids shape = ids_of(*job.find("shape"));
    const Codes codes{static_cast<int>(shape[0]), static_cast<int>(shape[1]), ids_of(*job.find("codes"))};
    const Picture picture = model.picture_of(codes);
    return Out().add("width", picture.width).add("height", picture.height).add("bytes", picture.rgb).done();
  }
  if (op == "encode") {
    std::vector<Ids> encoded;
    for (const auto& text : job.find("texts")->items) encoded.push_back(model.encode(text.string));
    return Out().add("ids", encoded).done();
  }
  if (op == "decode") {
    std::vector<std::string> texts;
    for (const auto& ids : job.find("ids")->items) texts.push_back(model.decode(ids_of(ids)));
    return Out().add("texts", texts).done();
  }
  if (op == "chat") {
    std::vector<Message> messages;
    for (const auto& message : job.find("messages")->items)
      messages.push_back({text_in(message, "role"), text_in(message, "content")});
    return answered(model.chat(messages, text_settings_in(job), seed, on_step, given, choices));
  }
  if (op == "ask") {
    const Fit fit = job.find("squash") ? Fit::squash : Fit::crop;
    return answered(model.ask(picture_in(job), text_in(job, "question"), text_settings_in(job), seed, on_step, fit, given,
                              choices));
  }
  if (op == "complete")
    return answered(model.complete(ids_of(*job.find("prompt")), text_settings_in(job), seed, on_step,
                                   job.find("answer") ? ids_of(*job.find("answer")) : Ids{}));
  if (op == "fill") return answered(model.fill(text_in(job, "text"), text_settings_in(job), seed, on_step, choices));
  if (op == "choose") {
    std::vector<Ids> answers, all;
    for (const auto& ids : job.find("answers")->items) answers.push_back(ids_of(ids));
    for (const auto& ids : job.find("choices")->items) all.push_back(ids_of(ids));
    const Chosen chosen = model.choose(ids_of(*job.find("prompt")), answers, all, text_settings_in(job));
    const Out out = Out().add("index", static_cast<std::int64_t>(chosen.index)).add("ids", chosen.ids);
    return "{" + out.text + choices_json(chosen.choices);
  }
  if (op == "paint") return drawing_json(model.paint(text_in(job, "prompt"), image_settings_in(job), seed, on_step), positions);
  if (op == "draw") {
    const Codes codes{static_cast<int>(integer_in(job, "rows")), static_cast<int>(integer_in(job, "columns")),
                      ids_of(*job.find("codes"))};
    const auto unknown = bytes_of<std::uint8_t>(*job.find("unknown"));
    return drawing_json(model.draw(ids_of(*job.find("words")), codes, unknown, image_settings_in(job), seed, on_step),
                        positions);
  }
  if (op == "inpaint") {
    const Picture shade = picture_in(job, "mask");
    const Mask mask{shade.width, shade.height, shade.rgb};
    return drawing_json(model.inpaint(picture_in(job), mask, text_in(job, "prompt"), image_settings_in(job), seed, on_step),
                        positions);
  }
  if (op == "extend") {
    const auto side = static_cast<Side>(integer_in(job, "side"));
    return drawing_json(model.extend(picture_in(job), text_in(job, "prompt"), image_settings_in(job), side,
                                     number_of(*job.find("amount")), seed, on_step),
                        positions);
  }
  if (op == "seconds") {  // of the processor for one step, of each of several drawings
    std::vector<double> seconds;
    for (std::int64_t i = 0; i < integer_in(job, "times", 5); ++i) {
      const std::clock_t before = std::clock();
      const Drawing drawing = model.paint("a cat", image_settings_in(job), static_cast<std::uint64_t>(i));
      const double spent = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
      seconds.push_back(spent / static_cast<double>(drawing.steps));
    }
    return Out().add("seconds", seconds).done();
  }
  throw std::logic_error("no job is called " + op);
}

// Texts and ids by a tokenizer that belongs to no model.
std::string run_on_tokenizer(const Tokenizer& tokenizer, const std::string& op, const Json& job) {
  std::vector<Ids> encoded;
  std::vector<std::string> texts;
  if (op == "encode") {
    for (const auto& text : job.find("texts")->items) encoded.push_back(tokenizer.encode(text.string));
    return Out().add("ids", encoded).done();
  }
  for (const auto& ids : job.find("ids")->items) texts.push_back(tokenizer.decode(ids_of(ids)));
  return Out().add("texts", texts).done();
}

std::string run_job(std::optional<Model>& model, const Json& job) {
  const std::string op = text_in(job, "op");
  if (op == "load") {
    Options options;
    options.threads = static_cast<int>(integer_in(job, "threads"));
    options.verify_all = job.find("verify_all") != nullptr;
    if (job.find("device")) options.device = text_in(job, "device");
    Model loaded(text_in(job, "folder"), options);
    model = std::move(loaded);
    return Out().add("resolution", model->resolution()).done();
  }
  if (op == "moved") {
    Model other = std::move(*model);
    std::string line;
    try {
      model->resolution();
    } catch (const Error& error) {
      line = error.what();
    }
    *model = std::move(other);
    return Out().add("line", line).add("resolution", model->resolution()).done();
  }
  if (op == "numbers") return numbers(job);
  if (op == "ppm") {
    if (job.find("picture")) write_ppm(text_in(job, "file"), picture_in(job));
    return Out().add("bytes", read_ppm(text_in(job, "file")).rgb).done();
  }
  if (op == "fitted") {
    const Fit fit = job.find("squash") ? Fit::squash : Fit::crop;
    return Out().add("bytes", fitted(raster_of(picture_in(job)), integer_in(job, "side"), fit).bytes).done();
  }
  if (op == "fitted_mask") {
    const Picture mask = picture_in(job);
    return Out().add("bytes", fitted_mask({mask.width, mask.height, 1, mask.rgb}, integer_in(job, "side")).bytes).done();
  }
  if (op == "schedules") return schedules(job);
  if (op == "partial") return partial(job);
  if (op == "classes") return character_classes();
  if (op == "replay") return replay(text_in(job, "folder"), job);
  if (job.find("tokenizer")) return run_on_tokenizer(Tokenizer(text_in(job, "tokenizer")), op, job);
  if (!model) throw std::logic_error("no model is loaded");
  return run_on_model(*model, op, job);
}

}  // namespace
}  // namespace mmada_lite

int main() {
  using namespace mmada_lite;
  using internal::parse_json;
  std::ios::sync_with_stdio(false);
  std::optional<Model> model;
  for (std::string line; std::getline(std::cin, line);) {
    std::string result;
    try {
      result = run_job(model, parse_json(line));
    } catch (const Error& error) {
      result = Out().add("error", std::string(error.what())).done();
    } catch (const std::exception& error) {
      result = Out().add("thrown", std::string(error.what())).done();
    }
    std::cout << result << std::endl;
  }
}
