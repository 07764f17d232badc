// Bounds of numbers, words that a terminal would obey, and what bundle.json must say so that its parts agree.
#include "contracts.hpp"

#include <algorithm>
#include <map>

#include "common.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

constexpr int kDeepest = 32;  // levels of bundle.json

const std::map<std::string, std::pair<double, double>> kBounds{{"d_model", {1, 1 << 16}},
                                                               {"n_layers", {1, 1 << 10}},
                                                               {"n_heads", {1, 1 << 10}},
                                                               {"n_kv_heads", {1, 1 << 10}},
                                                               {"head_dim", {2, 1 << 12}},
                                                               {"mlp_hidden_size", {1, 1 << 20}},
                                                               {"vocab_size", {1, 1 << 24}},
                                                               {"rope_theta", {1, 1e12}},
                                                               {"rms_norm_eps", {1e-12, 1}},
                                                               {"max_sequence_length", {1, 1 << 24}},
                                                               {"resolution", {1, 1 << 14}},
                                                               {"downsample", {1, 1 << 10}},
                                                               {"bits", {1, 64}},
                                                               {"block", {1, 1 << 20}},
                                                               {"bytes", {0, 9007199254740992.0}},
                                                               {"size", {0, 9007199254740992.0}}};
const std::map<std::string, std::vector<std::string>> kWords{{"target", {"cpu", "cuda", "tensorrt"}},
                                                             {"format", {"fp32", "fp16", "bf16", "int8", "int4"}},
                                                             {"scale", {"fp16", "fp32"}}};
const std::map<std::string, std::int64_t> kBits{{"fp32", 32}, {"fp16", 16}, {"bf16", 16}, {"int8", 8}, {"int4", 4}};
const std::vector<std::string> kGraphs{"embedder", "backbone", "text_head", "image_head"};
const std::vector<std::string> kPictures{"image_encoder", "image_decoder"};

template <typename Named>
std::vector<std::string> names_of(const Named& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.push_back(entry.first);
  return names;
}

bool among(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Whether a terminal would obey it: controls, but those to keep, and overrides of direction.
bool is_control(char32_t code, bool lines) {
  if (lines && (code == '\n' || code == '\t')) return false;
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0x202A && code <= 0x202E) ||
         (code >= 0x2066 && code <= 0x2069);
}

void check_text(const std::string& text, bool lines, const std::string& where) {
  for (std::size_t at = 0; at < text.size();) {
    const auto letter = character_at(text, at);
    if (is_control(letter.code, lines)) fail(where, ": ", quoted(text), " holds a control character; fetch the file again");
    at += letter.length;
  }
}

void check_level(const Json& content, bool lines, int depth, const std::string& where) {
  if (depth >= kDeepest) fail(where, ": it nests deeper than ", kDeepest, " levels; fetch the file again");
  check_text(content.string, lines, where);
  for (const auto& item : content.items) check_level(item, lines, depth + 1, where);
  for (const auto& [key, item] : content.members) {
    check_text(key, lines, where);
    check_level(item, lines || (depth == 0 && (key == "rows" || key == "knows")), depth + 1, where);
  }
}

void check_names(const char* key, const std::vector<std::string>& given, const std::vector<std::string>& needed,
                 const std::string& where) {
  for (const auto& name : needed) {
    if (!among(given, name)) fail(where, ": ", key, " has no ", quoted(name), "; ", kFetchAgain);
  }
  for (const auto& name : given) {
    if (!among(needed, name)) fail(where, ": ", key, " has ", quoted(name), ", which such a model has not; ", kFetchAgain);
  }
}

void check_stored(const Json& content, const Bundle& bundle, const std::string& where) {
  for (const auto& [name, group] : content.find("quantization")->members) {
    const std::int64_t bits = kBits.at(group.find("format")->string);
    const auto said = [&, &group = group](const char* key) {
      const Json* value = group.find(key);
      return value && !value->is(Json::Kind::null);
    };
    const bool described = said("block") || said("symmetric") || said("scale") || said("activation");
    const bool narrow = bits == 8 && !said("block");  // such codes may say that 7 bits hold them
    const auto right = [bits = bits, narrow](std::int64_t number) { return number == bits || (narrow && number == 7); };
    if ((said("bits") && !right(group.find("bits")->integer)) || (bits > 8 && described)) {
      fail(where, ": quantization.", name, " is ", group.find("format")->string,
           ", and its other keys are not those of this format; ", kFetchAgain);
    }
  }
  const Json* tensors = content.find("tensors");
  if (!tensors) return;
  for (const auto& [graph, formats] : tensors->members) {
    if (!bundle.graph(graph)) fail(where, ": tensors names the graph ", quoted(graph), ", which is not among graphs");
    for (const auto& [name, format] : formats.members) {
      if (kBits.count(format.string.substr(0, format.string.find('-')))) continue;
      fail(where, ": tensors.", graph, " says that ", quoted(name), " is ", shown(format), ", which is no format");
    }
  }
}

}  // namespace

void check_value(const std::string& name, const Json& value, const std::string& where) {
  const bool whole = value.is(Json::Kind::integer);
  if (const auto bounds = kBounds.find(name); bounds != kBounds.end() && (whole || value.is(Json::Kind::number))) {
    const double number = whole ? static_cast<double>(value.integer) : value.number;
    const auto [least, most] = bounds->second;
    if (!(number >= least && number <= most)) {
      fail(where, " is ", shown(value), "; it can be ", shown(least), " to ", shown(most));
    }
  }
  if (const auto words = kWords.find(name); words != kWords.end() && value.is(Json::Kind::string)) {
    if (!among(words->second, value.string)) fail(where, " is ", shown(value), "; it can be ", listed(words->second));
  }
}

void check_words(const Json& content, const std::string& where) { check_level(content, false, 0, where); }

void check_bundle(const Bundle& bundle, const Json& content, const std::string& where) {
  const Json& shape = *content.find("architecture");
  const auto number = [&](const char* name) { return shape.find(name)->integer; };
  const std::int64_t heads = number("n_heads"), width = number("d_model");
  if (heads % bundle.kv_heads) {
    fail(where, ": architecture.n_heads ", heads, " is not a multiple of n_kv_heads ", bundle.kv_heads, "; ", kFetchAgain);
  }
  if (width != heads * bundle.head_dim || bundle.head_dim % 2) {
    fail(where, ": architecture.d_model ", width, " is not ", heads, " heads of an even size ", bundle.head_dim,
         " (head_dim); ", kFetchAgain);
  }
  if (bundle.vocabulary_size != number("vocab_size")) {
    fail(where, ": vocabulary.size is ", bundle.vocabulary_size, " and architecture.vocab_size ", number("vocab_size"), "; ",
         kFetchAgain);
  }
  if (bundle.resolution) {
    const std::int64_t side = bundle.resolution / bundle.downsample;
    if (side * side >= bundle.max_sequence_length) {
      fail(where, ": a picture of image.resolution ", bundle.resolution, " has ", side * side,
           " codes, and max_sequence_length is ", bundle.max_sequence_length, "; ", kFetchAgain);
    }
  }
  const auto graphs = names_of(bundle.graphs), groups = names_of(content.find("quantization")->members);
  const bool pictures = among(graphs, kPictures[0]) || among(graphs, kPictures[1]) || among(groups, "codec");
  if (pictures && !bundle.resolution) fail(where, ": it has an image tokenizer, and image is null; ", kFetchAgain);
  auto needed = kGraphs;
  if (pictures) needed.emplace_back("codec");
  check_names("quantization", groups, needed, where);
  if (pictures) needed.pop_back(), needed.insert(needed.end(), kPictures.begin(), kPictures.end());
  check_names("graphs", graphs, needed, where);
  if (!bundle.has_file("weights.bin")) {
    fail(where, ": the file \"weights.bin\" of the graphs is not listed under files; ", kFetchAgain);
  }
  check_stored(content, bundle, where);
}

}  // namespace mmada_lite::internal
