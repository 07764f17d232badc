// bundle.json: what a model is, read and checked key by key.
#include "bundle.hpp"

#include <algorithm>

#include "common.hpp"
#include "contracts.hpp"
#include "settings.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

constexpr const char* kHalfCaches = "float16_caches";  // what a bundle may ask of a host, and this one has
constexpr std::int64_t kNewestFormat = 2;         // of bundle.json that is read here
constexpr std::int64_t kMaxResolution = 1 << 14;  // pixels of a square picture's side

const Json& object_at(const Json& content, const std::string& where) {
  if (!content.is(Json::Kind::object)) fail(where, " is ", shown(content), " where an object is needed; ", kFetchAgain);
  return content;
}

void check_keys(const Json& content, const std::vector<std::string>& known, const std::vector<std::string>& required,
                const std::string& where) {
  for (const auto& key : content.keys()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    fail(where, ": unknown key ", quoted(key), "; the keys are ", listed(known));
  }
  for (const auto& key : required) {
    if (!content.find(key)) fail(where, ": the key ", quoted(key), " is missing; ", kFetchAgain);
  }
}

enum class Type { count, text, positive, texts, maybe_text, maybe_count, maybe_flag, versions };

struct Field {
  const char* name;
  Type kind;
  bool required = true;
};

bool fits(const Json& value, Type kind) {
  const bool null = value.is(Json::Kind::null), text = value.is(Json::Kind::string);
  const bool count = value.is(Json::Kind::integer) && value.integer >= 0;
  const auto texts = [](const auto& items, const auto& item_of) {
    return std::all_of(items.begin(), items.end(), [&](const auto& item) { return item_of(item).is(Json::Kind::string); });
  };
  switch (kind) {
    case Type::count:
      return count;
    case Type::text:
      return text;
    case Type::positive:
      return value.is(Json::Kind::integer) ? value.integer > 0 : value.is(Json::Kind::number) && value.number > 0;
    case Type::texts:
      return value.is(Json::Kind::array) && texts(value.items, [](const Json& item) -> const Json& { return item; });
    case Type::maybe_text:
      return null || text;
    case Type::maybe_count:
      return null || count;
    case Type::maybe_flag:
      return null || value.is(Json::Kind::boolean);
    case Type::versions:
      return value.is(Json::Kind::object) &&
             texts(value.members, [](const auto& member) -> const Json& { return member.second; });
  }
  return false;
}

// Every key and type of an object checked.
const Json& checked_object(const Json& content, const std::vector<Field>& fields, const std::string& where) {
  object_at(content, where);
  std::vector<std::string> known, required;
  for (const auto& field : fields) {
    known.push_back(field.name);
    if (field.required) required.push_back(field.name);
  }
  check_keys(content, known, required, where);
  for (const auto& field : fields) {
    const Json* value = content.find(field.name);
    if (value && !fits(*value, field.kind)) {
      fail(where, ".", field.name, " is ", shown(*value), ", which it cannot be; ", kFetchAgain);
    }
    if (value) check_value(field.name, *value, where + "." + field.name);
  }
  return content;
}

std::int64_t integer_in(const Json& content, const char* name) { return content.find(name)->integer; }

// The whole numbers of a vocabulary object, in the order of `names`; `beside` is another key that may stand there.
Ids vocabulary_integers(const Json& content, const std::vector<std::string>& names, const std::string& beside = "") {
  Ids numbers;
  for (const auto& name : names) {
    const Json* number = content.find(name);
    if (!number || !number->is(Json::Kind::integer) || number->integer < 0) {
      fail("vocabulary: ", quoted(name), " is ", number ? shown(*number) : "missing", "; a whole number is needed");
    }
    numbers.push_back(number->integer);
  }
  for (const auto& key : content.keys()) {
    if (key != beside && std::find(names.begin(), names.end(), key) == names.end()) {
      fail("vocabulary: unknown key ", quoted(key), "; the keys are ", listed(names));
    }
  }
  return numbers;
}

void read_vocabulary(const Json& content, Bundle& bundle) {
  object_at(content, "vocabulary");
  const Json* special = content.find("special");
  if (!special || !special->is(Json::Kind::object)) {
    fail("vocabulary: the key \"special\" is missing; ", kFetchAgain);
  }
  static const std::vector<std::string> kNames{"bos",  "eos", "soi",  "eoi",          "t2i",        "mmu",
                                               "ipad", "r2i", "mask", "start_header", "end_header", "eot"};
  const Ids ids = vocabulary_integers(*special, kNames);
  const Ids sizes = vocabulary_integers(content, {"image_code_offset", "codebook_size", "size"}, "special");
  bundle.code_offset = sizes[0];
  bundle.codebook_size = sizes[1];
  bundle.vocabulary_size = sizes[2];
  if (sizes[0] < 1 || sizes[1] < 1) fail("vocabulary: image_code_offset and codebook_size are at least 1");
  if (sizes[1] > sizes[2] || sizes[0] > sizes[2] - sizes[1]) {
    fail("vocabulary: image codes begin at ", sizes[0], ", there are ", sizes[1], ", and the embedding has ", sizes[2],
         " rows; check image_code_offset (the tokenizer's length) and codebook_size");
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= sizes[2]) {
      fail("vocabulary: special token ", quoted(kNames[i]), " is ", ids[i], ", outside the embedding's ", sizes[2], " rows");
    }
    if (ids[i] >= sizes[0] && ids[i] - sizes[0] < sizes[1]) {
      fail("vocabulary: special token ", quoted(kNames[i]), " is ", ids[i], ", which is a picture code");
    }
    bundle.special[kNames[i]] = ids[i];
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (kNames[i] != "mask" && ids[i] == bundle.special["mask"]) {
      fail("vocabulary: special token ", quoted(kNames[i]), " is ", ids[i], ", which is the mask");
    }
  }
}

// What `read` finds in an object; its errors begin with where that is.
template <typename Read>
auto read_at(const Json& content, const std::string& where, Read read) {
  object_at(content, where);
  try {
    return read(content);
  } catch (const Error& error) {
    fail(where, ": ", error.what());
  }
}

Json read_manifest(const fs::path& path) {
  const std::string folder = path.string();
  std::error_code fault;
  if (!fs::is_directory(path, fault)) {
    fail(folder, ": no such bundle folder; check the name, or write one with `mmada-lite export CHECKPOINT -o ", folder, "`");
  }
  const fs::path manifest = path / kManifest;
  if (!fs::is_regular_file(manifest, fault)) {
    if (fs::is_regular_file(path / "config.json", fault)) {
      fail(folder, " is a checkpoint and not a bundle; run `mmada-lite export ", folder, " -o FOLDER` and use that folder");
    }
    fail(folder, " is not a bundle: it holds no ", kManifest, "; ", kFetchAgain);
  }
  const std::string text = read_file(manifest);
  Json content;
  try {
    if (first_wrong_byte(text) < text.size()) fail("byte ", first_wrong_byte(text), " is not UTF-8");
    content = parse_json(text);
  } catch (const Error& error) {
    fail(manifest.string(), " is damaged (", error.what(), "); ", kFetchAgain);
  }
  const Json *format = content.find("format"), *version = content.find("format_version");
  if (!format || format->string != "mmada-lite-bundle" || !version || !version->is(Json::Kind::integer) ||
      version->integer < 1) {
    fail(manifest.string(), " does not describe a mmada-lite bundle; ", kFetchAgain);
  }
  if (version->integer > kNewestFormat) {
    fail(folder, " was made by a newer mmada-lite (bundle format ", version->integer, ", this program reads up to ",
         kNewestFormat, "); upgrade with `pip install -U mmada-lite`");
  }
  return content;
}

void read_files(const Json& content, const std::string& where, Bundle& bundle) {
  const std::string graphs = where + ": graphs", files = where + ": files";
  for (const auto& [name, graph] : object_at(*content.find("graphs"), graphs).members) {
    const std::vector<Field> fields{{"file", Type::text}, {"inputs", Type::texts}, {"outputs", Type::texts}};
    bundle.graphs.emplace_back(name, checked_object(graph, fields, graphs + "." + name).find("file")->string);
    for (const char* side : {"inputs", "outputs"}) {
      for (const auto& value : graph.find(side)->items) bundle.interfaces[name + "." + side].insert(value.string);
    }
  }
  for (const auto& [name, file] : object_at(*content.find("files"), files).members) {
    checked_object(file, {{"size", Type::count}, {"sha256", Type::text}}, files + "." + name);
    bundle.files.push_back({name, integer_in(file, "size"), file.find("sha256")->string, {}});
    const fs::path inside(name);
    if (inside.is_absolute() || std::find(inside.begin(), inside.end(), "..") != inside.end() || name.size() > 200) {
      fail(where, ": the file ", quoted(name), " lies outside the bundle; ", kFetchAgain);
    }
  }
  for (const auto& [graph, file] : bundle.graphs) {
    if (!bundle.has_file(file)) {
      fail(where, ": the file ", quoted(file), " of graph ", quoted(graph), " is not listed under files; ", kFetchAgain);
    }
  }
}

void read_architecture(const Json& content, const std::string& where, Bundle& bundle) {
  const std::vector<Field> shape{{"d_model", Type::count},         {"n_layers", Type::count},
                                 {"n_heads", Type::count},         {"n_kv_heads", Type::count},
                                 {"head_dim", Type::count},        {"mlp_hidden_size", Type::count},
                                 {"vocab_size", Type::count},      {"rope_theta", Type::positive},
                                 {"rms_norm_eps", Type::positive}, {"max_sequence_length", Type::count}};
  const Json& architecture = checked_object(*content.find("architecture"), shape, where + ": architecture");
  bundle.width = integer_in(architecture, "d_model");
  bundle.layers = integer_in(architecture, "n_layers");
  bundle.kv_heads = integer_in(architecture, "n_kv_heads");
  bundle.head_dim = integer_in(architecture, "head_dim");
  bundle.max_sequence_length = integer_in(architecture, "max_sequence_length");
}

void read_image(const Json& content, const std::string& where, Bundle& bundle) {
  const Json& image = *content.find("image");
  if (image.is(Json::Kind::null)) return;
  checked_object(image, {{"resolution", Type::count}, {"downsample", Type::count}}, where + ": image");
  bundle.resolution = integer_in(image, "resolution");
  bundle.downsample = integer_in(image, "downsample");
  if (bundle.downsample < 1 || bundle.resolution < 1 || bundle.resolution % bundle.downsample ||
      bundle.resolution > kMaxResolution) {
    fail(where, ": image.resolution is ", bundle.resolution, " and image.downsample ", bundle.downsample,
         "; the first must be a multiple of the second and at most ", kMaxResolution, "; ", kFetchAgain);
  }
}

void check_quantization(const Json& content, const std::string& where) {
  const std::vector<Field> group{{"format", Type::text},
                                 {"bits", Type::maybe_count, false},
                                 {"block", Type::maybe_count, false},
                                 {"symmetric", Type::maybe_flag, false},
                                 {"scale", Type::maybe_text, false},
                                 {"activation", Type::maybe_text, false},
                                 {"bytes", Type::maybe_count, false}};
  const std::string groups = where + ": quantization";
  for (const auto& [name, value] : object_at(*content.find("quantization"), groups).members) {
    checked_object(value, group, groups + "." + name);
  }
}

// Where it came from, what it was made for and its tensors, which decoding does not ask for.
void check_provenance(const Json& content, const std::string& where) {
  const std::vector<Field> provenance{{"source", Type::text},
                                      {"exporter", Type::text},
                                      {"versions", Type::versions},
                                      {"created", Type::text},
                                      {"source_sha256", Type::maybe_text, false},
                                      {"method", Type::maybe_text, false}};
  checked_object(*content.find("provenance"), provenance, where + ": provenance");
  if (const Json* target = content.find("target"); target && !target->is(Json::Kind::string)) {
    fail(where, ": target is ", shown(*target), ", which it cannot be; ", kFetchAgain);
  } else if (target) {
    check_value("target", *target, where + ": target");
  }
  if (const Json* tensors = content.find("tensors")) {
    std::vector<Field> graphs;
    for (const auto& graph : object_at(*tensors, where + ": tensors").members) {
      graphs.push_back({graph.first.c_str(), Type::versions});
    }
    checked_object(*tensors, graphs, where + ": tensors");
  }
}

// That every key of the format is there and no other, and that the model asks for no more than this host has.
void check_host(const Json& content, std::int64_t format, const std::string& where) {
  std::vector<std::string> keys{"format",       "format_version", "name",   "architecture", "vocabulary", "image",
                                "quantization", "defaults",       "graphs", "files",        "provenance"};
  auto required = keys;
  for (const char* later : {"target", "tensors"}) keys.emplace_back(later);  // absent in older bundles of format 1
  if (format >= 2) {
    for (const char* newer : {"family", "needs", "knows", "rows"}) keys.emplace_back(newer);
    required = keys;
  }
  check_keys(content, keys, required, where);
  if (format < 2) return;
  const Json &family = *content.find("family"), &needs = *content.find("needs");
  constexpr const char* kUpgrade = "it may be of a newer mmada-lite: `pip install -U mmada-lite`";
  if (family.string != "mmada") fail(where, ": family is ", shown(family), ", and this program knows mmada; ", kUpgrade);
  if (!fits(needs, Type::texts)) fail(where, ": needs is ", shown(needs), ", which it cannot be; ", kFetchAgain);
  for (const auto& need : needs.items) {
    if (need.string == kHalfCaches) continue;
    if (need.string == "packed_for_cuda") fail(where, ": weights are packed for cuda, which is not for C++; export it without --packed");
    if (need.string == "fp8_weights") fail(where, ": weights are in fp8, which is not for C++; export it with --precision int8");
    fail(where, ": the model needs ", shown(need), ", which this program does not have; ", kUpgrade);
  }
  const Json& knows = object_at(*content.find("knows"), where + ": knows");
  if (const Json* said = knows.find("case"); said && said->string != "lower") {
    fail(where, ": knows.case is ", shown(*said), "; it can be lower; ", kFetchAgain);
  }
}

Bundle parse_bundle(const fs::path& path, const Json& content) {
  Bundle bundle;
  bundle.path = path;
  const std::string where = (path / kManifest).string();
  const std::int64_t format = content.find("format_version")->integer;
  check_words(content, where);
  check_host(content, format, where);
  const Json& defaults = object_at(*content.find("defaults"), where + ": defaults");
  check_keys(defaults, {"text", "image"}, {"text", "image"}, where + ": defaults");
  try {
    read_vocabulary(*content.find("vocabulary"), bundle);
    bundle.rows = Rows(format < 2 ? rows_of_mmada() : object_at(*content.find("rows"), "rows"), bundle.special);
  } catch (const Error& error) {
    fail(where, ": ", error.what());
  }
  read_architecture(content, where, bundle);
  read_image(content, where, bundle);
  check_quantization(content, where);
  bundle.text_defaults = read_at(*defaults.find("text"), where + ": defaults.text",
                                 [&](const Json& settings) { return read_text_settings(settings, format); });
  bundle.image_defaults = read_at(*defaults.find("image"), where + ": defaults.image",
                                  [&](const Json& settings) { return read_image_settings(settings, format); });
  if (const Json* knows = content.find("knows")) bundle.lower_case = knows->find("case") != nullptr;
  read_files(content, where, bundle);
  check_provenance(content, where);
  check_bundle(bundle, content, where);
  const Json *target = content.find("target"), *needs = content.find("needs");
  const bool on_gpu = target && target->string != "cpu";
  if (needs && !needs->items.empty() && on_gpu) {
    fail(where, ": it needs ", kHalfCaches, ", which is for cpu, and target is ", shown(*target), "; ", kFetchAgain);
  }
  bundle.half = (needs && !needs->items.empty()) ||
                (on_gpu && content.find("quantization")->find("backbone")->find("format")->string != "fp32");
  return bundle;
}

}  // namespace

const std::string* Bundle::graph(const std::string& name) const {
  for (const auto& [graph, file] : graphs) {
    if (graph == name) return &file;
  }
  return nullptr;
}

bool Bundle::has_file(const std::string& name) const {
  return std::any_of(files.begin(), files.end(), [&](const auto& file) { return file.name == name; });
}

Bundle open_bundle(const fs::path& folder, bool verify_all) {
  Bundle bundle = parse_bundle(folder, read_manifest(folder));
  check_files(folder, bundle.files, verify_all);
  return bundle;
}

}  // namespace mmada_lite::internal
