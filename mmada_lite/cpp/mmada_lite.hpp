// MMaDA for C++ programs: load a bundle, then chat, ask about a picture, paint, inpaint, extend.
//
// This header and the sources in src/ over onnxruntime's C++ interface, C++17, nothing else. The same seed gives the same ids
// as the Python package. It knows bundles, tokens and decoding; of picture files it knows PPM alone, since a host has its own:
// a Picture is plain bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace mmada_lite {

using Ids = std::vector<std::int64_t>;

// A fault in what the caller gave: what() says what is wrong, where, and how to mend it, in one line.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// What saves work on a text.
struct TextAcceleration {
  std::string cache = "none";       // "none" (exact), "prefix", "dual"
  std::optional<double> threshold;  // a probability: everything at least that sure is written, and steps is not used
};

// How a text is decoded, block by block. Settings are checked when they are used.
struct TextSettings {
  std::int64_t answer_length = 128;      // tokens to write
  std::int64_t steps = 64;               // model steps for all of them
  std::int64_t block_length = 32;        // tokens that are finished before the next begin
  double temperature = 0.0;              // 0: the most probable token; above: drawn from softmax(logits / temperature)
  double guidance = 0.0;                 // g mixes (1 + g) * conditional - g * unconditional
  std::string order = "low_confidence";  // which positions are written first: or "random"
  std::string mode = "default";          // the only one here; "reference" is the Python runtime's
  TextAcceleration acceleration;
};

// How a picture is decoded. Python's ImageAcceleration has no counterpart: this host computes every step in full.
struct ImageSettings {
  std::int64_t steps = 15;            // model steps
  double guidance = 3.5;              // as above; 0 runs the conditional row alone
  std::string schedule = "cosine";    // share still masked: cosine, linear, sigmoid, pow<exponent>
  double temperature = 1.0;           // scale of the confidence noise at the start
  double sampling_temperature = 1.0;  // how codes are drawn: 1 from the model's own distribution, 0 the most probable
  std::string mode = "default";
};

struct Message {
  std::string role;  // system, user or assistant
  std::string content;
};

// Red, green and blue of each pixel, row by row: 3 * width * height bytes, of at most 64,000,000 pixels.
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
};

// What is to be drawn anew: one byte a pixel, row by row, at least 128 where it is.
struct Mask {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> shade;
};

// A grid of picture codes, 0 .. codebook_size - 1, row by row.
struct Codes {
  int rows = 0;
  int columns = 0;
  Ids ids;
};

// What one step did.
struct Step {
  std::int64_t index = 0;                   // from 0
  std::optional<std::int64_t> total_steps;  // expected; none with a threshold
  Ids positions;                            // what changed, in the model's row,
  Ids rows;                                 // in which of them: 0, but where several lengths of a hole are tried,
  Ids tokens;                               // to what,
  std::vector<float> log_probabilities;     // and how sure the model was (natural logarithm)
  std::int64_t remaining = 0;               // masks left
  std::int64_t model_calls = 0;             // so far; a guided pair is one
  double seconds = 0;                       // since decoding began
  Codes predicted_codes;  // of a picture: every code, if what is still masked were taken as it is predicted now
};

// Called after every step; false stops there. It may throw: the exception passes through and the model stays usable.
using OnStep = std::function<bool(const Step&)>;

// What was written into one hole.
struct Span {
  std::size_t start = 0, stop = 0;  // its bytes in the whole text: from start to before stop
  std::string text;
  Ids ids;                     // up to its end
  double log_probability = 0;  // the sum of what its tokens had when they were written, in nats
  double mean = 0;             // a token's share of it; 0 where nothing was written
};

// What may stand in a hole, and how likely it is there.
struct Choice {
  std::string text;
  Ids ids;
  double log_likelihood = 0;  // of its ids and, where it is shorter than the hole, its end, in nats
  double probability = 0;     // among all choices
};

struct Answer {
  Ids ids;                      // as they stand; what was never reached is still the mask. With what stands behind a given part
  std::string text;             // up to the end of the turn; empty when the bundle has no tokenizer that this program reads
  std::vector<Span> spans;      // of an answer of which a part was given: its holes
  std::vector<Choice> choices;  // of an answer that was one of a few: all of them, in the order given
  bool complete = false;        // false when the answer ran into its length before the model ended it
  bool stopped = false;         // by the callback
  std::int64_t steps = 0;       // taken
  double seconds = 0;           // that they took
};

// The likeliest of several choices of ids.
struct Chosen {
  std::size_t index = 0;        // which
  Ids ids;                      // the answer with it in its hole; behind its end, where nothing was given, the mask
  std::vector<Choice> choices;  // all, in the order given, without their texts
};

struct Drawing {
  Codes codes;
  Picture picture;
  bool stopped = false;
  std::int64_t steps = 0;
  double seconds = 0;
};

enum class Fit { crop, squash };  // how a picture becomes square: its centre, or all of it whatever the proportions
enum class Side { top, right, bottom, left };

struct Options {
  int threads = 0;             // per operation; 0: one for every core that this process may use
  bool verify_all = false;     // check every sha256; else those of bundles up to 256 MiB, and the sizes of larger ones
  std::string device = "cpu";  // or "cuda", where the onnxruntime that is linked has it
};

// A loaded bundle: moved, never copied. Calls are independent of each other and may come from several threads. Without settings
// the bundle's own apply. Every call throws Error for what it cannot do.
class Model {
 public:
  explicit Model(const std::string& folder, const Options& options = {});
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const TextSettings& text_defaults() const;
  const ImageSettings& image_defaults() const;
  int resolution() const;  // pixels a side of the pictures that it draws

  // `answer`: a part of the answer that is given: how it begins or, with holes, all of it but these. A hole is "[mask:3]", of
  // three tokens, "[mask:*]", of 1 to 8, or "[mask:*4]", of 1 to 4: every length is tried, and the likeliest text taken. "\["
  // is a bracket. What is given stays as it is. `choices`: the likeliest of these is written into the one hole, without a hole
  // as what is not given of the answer. "[mask:*]" is as long as each of them. One step tells of it.
  Answer chat(const std::vector<Message>& messages, const std::optional<TextSettings>& settings = {}, std::uint64_t seed = 0,
              const OnStep& on_step = {}, const std::optional<std::string>& answer = {},
              const std::vector<std::string>& choices = {}) const;
  Answer chat(const std::string& message, const std::optional<TextSettings>& settings = {}, std::uint64_t seed = 0,
              const OnStep& on_step = {}, const std::optional<std::string>& answer = {},
              const std::vector<std::string>& choices = {}) const;
  Answer ask(const Picture& picture, const std::string& question, const std::optional<TextSettings>& settings = {},
             std::uint64_t seed = 0, const OnStep& on_step = {}, Fit fit = Fit::crop,
             const std::optional<std::string>& answer = {}, const std::vector<std::string>& choices = {}) const;
  // A text whose holes are written; it answers nothing.
  Answer fill(const std::string& text, const std::optional<TextSettings>& settings = {}, std::uint64_t seed = 0,
              const OnStep& on_step = {}, const std::vector<std::string>& choices = {}) const;
  Drawing paint(const std::string& prompt, const std::optional<ImageSettings>& settings = {}, std::uint64_t seed = 0,
                const OnStep& on_step = {}) const;
  // Draws anew what the mask covers; where it does not, the picture keeps its own pixels, or with keep_pixels false its own
  // codes.
  Drawing inpaint(const Picture& picture, const Mask& mask, const std::string& prompt,
                  const std::optional<ImageSettings>& settings = {}, std::uint64_t seed = 0, const OnStep& on_step = {},
                  bool keep_pixels = true) const;
  // Grows a picture beyond one border by a share of its side, up to 4.
  Drawing extend(const Picture& picture, const std::string& prompt, const std::optional<ImageSettings>& settings = {},
                 Side side = Side::right, double amount = 0.5, std::uint64_t seed = 0, const OnStep& on_step = {},
                 bool keep_pixels = true) const;

  // The same from ids, for hosts with a tokenizer of their own. Of a chat: the whole row before the answer; with `answer`, ids
  // of any length, its masks alone are written, in as many steps as an answer of so many tokens takes. Of a picture: the ids
  // of the words alone; codes are given where `unknown` is 0 and never change.
  Answer complete(const Ids& prompt, const std::optional<TextSettings>& settings = {}, std::uint64_t seed = 0,
                  const OnStep& on_step = {}, const Ids& answer = {}) const;
  // The likeliest of several choices of ids at the one hole of an answer, a run of masks: each is written a place a model call,
  // where the model is surest. `answers`: one for all choices, or one for each. Of settings guidance alone counts.
  Chosen choose(const Ids& prompt, const std::vector<Ids>& answers, const std::vector<Ids>& choices,
                const std::optional<TextSettings>& settings = {}) const;
  Drawing draw(const Ids& words, const Codes& codes, const std::vector<std::uint8_t>& unknown,
               const std::optional<ImageSettings>& settings = {}, std::uint64_t seed = 0, const OnStep& on_step = {}) const;

  Ids encode(const std::string& text) const;     // special spellings in it stay text
  std::string decode(const Ids& ids) const;      // special tokens and picture codes are left out
  Codes codes_of(const Picture& picture) const;  // of a picture of resolution() pixels a side
  Picture picture_of(const Codes& codes) const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

Picture read_ppm(const std::string& file);  // binary PPM (P6) of 8 bits
void write_ppm(const std::string& file, const Picture& picture);

}  // namespace mmada_lite
