// Settings: their checks, how JSON says them, and the blocks of an answer.
#include "settings.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common.hpp"
#include "schedules.hpp"

namespace mmada_lite::internal {
namespace {

const std::vector<std::string> kOrders{"low_confidence", "random"}, kCaches{"none", "prefix", "dual"}, kModes{"default"};

constexpr std::int64_t kMostSteps = 1'000'000;
constexpr double kSmallest = 1e-4, kLargest = 1000, kLeastProbability = 1e-6;  // as mmada_lite.decoding.settings has them

void at_least_one(const char* name, std::int64_t value) {
  if (value < 1 || value > kMostSteps) {
    fail(name, " is ", value, "; use a whole number of at least 1 and at most ", kMostSteps);
  }
}

// smallest: the least number above 0 that it takes.
void at_least_zero(const char* name, double value, double smallest = 0) {
  if (value == 0 || (value >= smallest && value > 0 && value <= kLargest)) return;
  fail(name, " is ", shown(value), "; use ", smallest > 0 ? "0, or a number of at least " : "a number of at least ",
       shown(smallest), " and at most ", shown(kLargest));
}

void one_of(const char* name, const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
    fail(name, " is ", quoted(value), "; use one of ", listed(choices));
  }
}

void check_mode(const std::string& mode) {
  if (mode == "reference") fail("the C++ host does not decode with the mode reference; use default, or the Python runtime");
  one_of("mode", mode, kModes);
}

void check_cache(const std::string& cache) {
  if (cache == "prompt") fail("the C++ host does not decode with the cache prompt; use dual, or the Python runtime");
  one_of("cache", cache, kCaches);
}

std::int64_t blocks_in(const TextSettings& s) { return (s.answer_length - 1) / s.block_length + 1; }

}  // namespace

void check(const TextSettings& s) {
  const std::optional<double>& threshold = s.acceleration.threshold;
  at_least_one("answer_length", s.answer_length);
  at_least_one("steps", s.steps);
  at_least_one("block_length", s.block_length);
  at_least_zero("temperature", s.temperature, kSmallest);
  at_least_zero("guidance", s.guidance);
  one_of("order", s.order, kOrders);
  check_mode(s.mode);
  check_cache(s.acceleration.cache);
  if (threshold && !(*threshold >= kLeastProbability && *threshold <= 1)) {
    fail("threshold ", shown(*threshold), " is not a probability; use a number of at least ", shown(kLeastProbability),
         " and at most 1");
  }
  if (s.steps > s.answer_length) {
    fail(s.steps, " steps for ", s.answer_length, " tokens: a step writes at least one token; use at most ", s.answer_length,
         " steps");
  }
  const auto count = blocks_in(s);
  if (!threshold && s.steps < count) {
    fail(s.steps, " steps cannot fill ", count, " blocks; use at least ", count, " steps or a longer block");
  }
}

void check(const ImageSettings& s) {
  at_least_one("steps", s.steps);
  at_least_zero("guidance", s.guidance);
  at_least_zero("temperature", s.temperature);
  at_least_zero("sampling_temperature", s.sampling_temperature, kSmallest);
  check_mode(s.mode);
  schedule_of(s.schedule);
}

namespace {

// Beside `acceleration` or within it, where this host decodes with it or the Python runtime alone does.
enum class Place { beside, within, python_alone };

// A setting by its name in bundle.json, and what format 1 calls it, where all of them stand side by side.
struct Named {
  std::string name;
  std::string in_format_1;
  Place place = Place::beside;
};

using Table = std::vector<Named>;

const Table kText{{"answer_length", "answer_length"},
                  {"steps", "steps"},
                  {"block_length", "block_length"},
                  {"temperature", "temperature"},
                  {"guidance", "guidance"},
                  {"order", "order"},
                  {"mode", "law"},
                  {"cache", "cache", Place::within},
                  {"threshold", "threshold", Place::within},
                  {"select", "select", Place::python_alone},
                  {"entropy_bound", "entropy_bound", Place::python_alone},
                  {"early_stop", "early_stop", Place::python_alone},
                  {"lookahead", "reach", Place::python_alone},
                  {"refresh", "refresh", Place::python_alone},
                  {"refresh_drift", "drift", Place::python_alone},
                  {"suffix_window", "suffix", Place::python_alone},
                  {"speculative_steps", "draft", Place::python_alone},
                  {"kv_commit_every", "settle", Place::python_alone},
                  {"thought_first", "thought_first", Place::python_alone}};

const Table kImage{{"steps", "steps"},
                   {"guidance", "guidance"},
                   {"schedule", "schedule"},
                   {"temperature", "temperature"},
                   {"sampling_temperature", "sampling_temperature"},
                   {"mode", "law"},
                   {"refresh", "refresh", Place::python_alone},
                   {"candidate_ratio", "shortlist", Place::python_alone},
                   {"guidance_from", "guidance_from", Place::python_alone},
                   {"guidance_to", "guidance_to", Place::python_alone},
                   {"unconditional_every", "unconditional_every", Place::python_alone}};

const Named* find_in(const Table& table, std::string Named::* by, const std::string& key) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const Named& entry) { return entry.*by == key; });
  return found == table.end() ? nullptr : &*found;
}

// What a name of format 1 is called now, of a text or of a picture; empty for any other.
std::string name_now(const std::string& older) {
  for (const auto* table : {&kText, &kImage}) {
    const Named* entry = find_in(*table, &Named::in_format_1, older);
    if (entry && entry->name != older) return entry->name;
  }
  return "";
}

[[noreturn]] void refuse_unknown(const std::string& key, const std::vector<std::string>& known) {
  fail("unknown setting ", quoted(key), "; ",
       known.empty() ? "the C++ host has none there" : "the settings are " + listed(known));
}

[[noreturn]] void refuse_python_alone(const std::string& key) {
  fail("the C++ host does not decode with ", quoted(key), "; leave it out, or use the Python runtime");
}

// Throws Error for a name that cannot stand beside, or within, `acceleration`.
void check_name(const Table& table, const std::string& key, bool within) {
  const Named* entry = find_in(table, &Named::name, key);
  if (entry && within && entry->place == Place::python_alone) refuse_python_alone(key);
  if (entry && within == (entry->place != Place::beside)) return;
  if (entry && !within) fail(quoted(key), " stands in \"acceleration\" and not beside it");
  if (const std::string now = name_now(key); !now.empty()) fail(quoted(key), " is called ", quoted(now), " now");
  std::vector<std::string> known;
  for (const auto& each : table) {
    if (each.place == (within ? Place::within : Place::beside)) known.push_back(each.name);
  }
  if (!within) known.emplace_back("acceleration");
  refuse_unknown(key, known);
}

// Format 1 calls the default mode sensible.
Json mode_of(const Json& law) {
  if (law.string == "reference") {
    fail("the C++ host does not decode with the law reference; use sensible, or the Python runtime");
  }
  if (law.string != "sensible") fail("law is ", shown(law), "; use one of sensible");
  Json mode = law;
  mode.string = "default";
  return mode;
}

// Settings of format 1 as format 2 says them. Of the values it checks the law alone.
Json upgraded(const Table& table, const Json& content) {
  std::vector<std::string> known;
  for (const auto& entry : table) {
    if (entry.place != Place::python_alone) known.push_back(entry.in_format_1);
  }
  Json said, saving;
  said.kind = saving.kind = Json::Kind::object;
  for (const auto& [key, value] : content.members) {
    const Named* entry = find_in(table, &Named::in_format_1, key);
    if (!entry) {
      const Named* today = find_in(table, &Named::name, key);
      if (today) fail("unknown setting ", quoted(key), "; it is ", quoted(today->in_format_1), " in format 1");
      refuse_unknown(key, known);
    }
    if (entry->place == Place::python_alone) refuse_python_alone(key);
    auto& layer = entry->place == Place::beside ? said : saving;
    layer.members.emplace_back(entry->name, key == "law" ? mode_of(value) : value);
  }
  said.members.emplace_back("acceleration", saving);
  return said;
}

// Settings out of JSON, where a value may also be of the wrong kind.
class SettingsReader {
 public:
  SettingsReader(const Table& table, const Json& content, std::int64_t format)
      : content_(format < 2 ? upgraded(table, content) : content), layer_(content_.find("acceleration")) {
    if (layer_ && !layer_->is(Json::Kind::object)) fail("acceleration is ", shown(*layer_), " where an object is needed");
    for (const auto& key : content_.keys()) {
      if (key != "acceleration") check_name(table, key, false);
    }
    if (!layer_) return;
    for (const auto& key : layer_->keys()) check_name(table, key, true);
  }

  SettingsReader(const SettingsReader&) = delete;  // it looks into its own content
  SettingsReader& operator=(const SettingsReader&) = delete;

  void take(const char* name, std::int64_t& value) const {
    const Json* given = find(name);
    if (!given) return;
    if (!given->is(Json::Kind::integer)) fail(name, " is ", shown(*given), "; use a whole number of at least 1");
    value = given->integer;
  }

  void take(const char* name, double& value) const {
    const Json* given = find(name);
    if (!given) return;
    const bool integer = given->is(Json::Kind::integer);
    if (!integer && !given->is(Json::Kind::number)) fail(name, " is ", shown(*given), "; use a number of at least 0");
    value = integer ? static_cast<double>(given->integer) : given->number;
  }

  void take(const char* name, std::optional<double>& value) const {
    const Json* given = find(name);
    if (!given || given->is(Json::Kind::null)) return;
    value = 0;
    take(name, *value);
  }

  void take(const char* name, std::string& value) const {
    const Json* given = find(name);
    if (!given) return;
    if (!given->is(Json::Kind::string)) fail(name, " is ", shown(*given), "; use a word in double quotes");
    value = given->string;
  }

 private:
  // A name stands in one of the two layers.
  const Json* find(const char* name) const {
    const Json* given = content_.find(name);
    return given || !layer_ ? given : layer_->find(name);
  }

  const Json content_;
  const Json* layer_;
};

}  // namespace

TextSettings read_text_settings(const Json& content, std::int64_t format) {
  TextSettings s;
  const SettingsReader reader(kText, content, format);
  reader.take("answer_length", s.answer_length);
  reader.take("steps", s.steps);
  reader.take("block_length", s.block_length);
  reader.take("temperature", s.temperature);
  reader.take("guidance", s.guidance);
  reader.take("order", s.order);
  reader.take("mode", s.mode);
  reader.take("cache", s.acceleration.cache);
  reader.take("threshold", s.acceleration.threshold);
  check(s);
  return s;
}

ImageSettings read_image_settings(const Json& content, std::int64_t format) {
  ImageSettings s;
  const SettingsReader reader(kImage, content, format);
  reader.take("steps", s.steps);
  reader.take("guidance", s.guidance);
  reader.take("schedule", s.schedule);
  reader.take("temperature", s.temperature);
  reader.take("sampling_temperature", s.sampling_temperature);
  reader.take("mode", s.mode);
  check(s);
  return s;
}

std::vector<Block> blocks_of(const TextSettings& settings, const Ids& places) {
  TextSettings s = settings;
  s.answer_length = static_cast<std::int64_t>(places.size());
  s.steps = (settings.steps * s.answer_length - 1) / settings.answer_length + 1;
  std::vector<Block> blocks;
  const Ids shares = transfers(s.steps, blocks_in(s));
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const std::int64_t low = static_cast<std::int64_t>(i) * s.block_length,
                       high = std::min(low + s.block_length, s.answer_length);
    blocks.push_back({places[static_cast<std::size_t>(low)], places[static_cast<std::size_t>(high - 1)] + 1,
                      std::max<std::int64_t>(1, std::min(shares[i], high - low))});
  }
  return blocks;
}

}  // namespace mmada_lite::internal
