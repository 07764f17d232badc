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

void at_least_one(const char* name, std::int64_t value) {
  if (value < 1) fail(name, " is ", value, "; use a whole number of at least 1");
}

void at_least_zero(const char* name, double value) {
  if (!std::isfinite(value) || value < 0) fail(name, " is ", shown(value), "; use a number of at least 0");
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
  at_least_zero("temperature", s.temperature);
  at_least_zero("guidance", s.guidance);
  one_of("order", s.order, kOrders);
  check_mode(s.mode);
  check_cache(s.acceleration.cache);
  if (threshold && !(*threshold > 0 && *threshold <= 1)) {
    fail("threshold ", shown(*threshold), " is not a probability; use a number above 0 and at most 1");
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
  at_least_zero("sampling_temperature", s.sampling_temperature);
  check_mode(s.mode);
  schedule_of(s.schedule);
}

namespace {

// A key of format 1, where settings are flat, and the member that it sets here.
struct FlatKey {
  std::string key;
  std::string path;
  bool decoded = true;  // false: the Python runtime alone decodes with it
};

using Format1 = std::vector<FlatKey>;

const Format1 kTextFormat1{{"answer_length", "answer_length"},
                           {"steps", "steps"},
                           {"block_length", "block_length"},
                           {"temperature", "temperature"},
                           {"guidance", "guidance"},
                           {"order", "order"},
                           {"cache", "acceleration.cache"},
                           {"threshold", "acceleration.threshold"},
                           {"law", "mode"},
                           {"select", "acceleration.select", false},
                           {"entropy_bound", "acceleration.entropy_bound", false},
                           {"early_stop", "acceleration.early_stop", false},
                           {"reach", "acceleration.lookahead", false},
                           {"refresh", "acceleration.refresh", false},
                           {"drift", "acceleration.refresh_drift", false},
                           {"suffix", "acceleration.suffix_window", false},
                           {"draft", "acceleration.speculative_steps", false},
                           {"settle", "acceleration.kv_commit_every", false},
                           {"thought_first", "acceleration.thought_first", false}};

const Format1 kImageFormat1{{"steps", "steps"},
                            {"guidance", "guidance"},
                            {"schedule", "schedule"},
                            {"temperature", "temperature"},
                            {"sampling_temperature", "sampling_temperature"},
                            {"law", "mode"},
                            {"refresh", "acceleration.refresh", false},
                            {"shortlist", "acceleration.candidate_ratio", false},
                            {"guidance_from", "acceleration.guidance_from", false},
                            {"guidance_to", "acceleration.guidance_to", false},
                            {"unconditional_every", "acceleration.unconditional_every", false}};

// Settings out of JSON, where a value may also be of the wrong kind. A message says the key as the JSON has it.
class SettingsReader {
 public:
  SettingsReader(const Json& content, const Format1& table) : content_(content), table_(table) {}

  // Every key is one of the table that this host decodes with.
  void check_keys(const std::string& where) const {
    std::vector<std::string> known;
    for (const auto& entry : table_) {
      if (entry.decoded) known.push_back(entry.key);
    }
    for (const auto& key : content_.keys()) {
      const auto entry = std::find_if(table_.begin(), table_.end(), [&](const FlatKey& flat) { return flat.key == key; });
      if (entry == table_.end()) {
        const std::string older = key_named_now(key);
        const std::string hint = older.empty() ? "" : join("in format 1 it is called ", quoted(older), "; ");
        fail(where, ": unknown setting ", quoted(key), "; ", hint, "the settings are ", listed(known));
      }
      if (!entry->decoded) {
        fail(where, ": the C++ host does not decode with ", quoted(key), "; leave it out, or use the Python runtime");
      }
    }
  }

  void take(const char* path, std::int64_t& value) const {
    const auto& [key, given] = find(path);
    if (!given) return;
    if (!given->is(Json::Kind::integer)) fail(key, " is ", shown(*given), "; use a whole number of at least 1");
    value = given->integer;
  }

  void take(const char* path, double& value) const {
    const auto& [key, given] = find(path);
    if (!given) return;
    const bool integer = given->is(Json::Kind::integer);
    if (!integer && !given->is(Json::Kind::number)) fail(key, " is ", shown(*given), "; use a number of at least 0");
    value = integer ? static_cast<double>(given->integer) : given->number;
  }

  void take(const char* path, std::optional<double>& value) const {
    const Json* given = find(path).second;
    if (!given || given->is(Json::Kind::null)) return;
    value = 0;
    take(path, *value);
  }

  void take(const char* path, std::string& value) const {
    const auto& [key, given] = find(path);
    if (!given) return;
    if (!given->is(Json::Kind::string)) fail(key, " is ", shown(*given), "; use a word in double quotes");
    value = given->string;
  }

  // Format 1 calls the default mode sensible.
  void take_mode(std::string& mode) const {
    std::string law = "sensible";
    take("mode", law);
    if (law == "reference") {
      fail("the C++ host does not decode with the law reference; use sensible, or the Python runtime");
    }
    one_of("law", law, {"sensible"});
    mode = "default";
  }

 private:
  // The key of the table for a member, and what the JSON has under it, if anything.
  std::pair<std::string, const Json*> find(const std::string& path) const {
    const auto entry = std::find_if(table_.begin(), table_.end(), [&](const FlatKey& flat) { return flat.path == path; });
    return {entry->key, content_.find(entry->key)};
  }

  // The key of format 1 for a setting's name of today, such as lookahead; empty where there is none.
  std::string key_named_now(const std::string& name) const {
    for (const auto& entry : table_) {
      if (entry.path.substr(entry.path.rfind('.') + 1) == name) return entry.key;
    }
    return "";
  }

  const Json& content_;
  const Format1& table_;
};

}  // namespace

TextSettings read_text_settings(const Json& content, const std::string& where) {
  TextSettings s;
  const SettingsReader reader(content, kTextFormat1);
  reader.check_keys(where);
  reader.take("answer_length", s.answer_length);
  reader.take("steps", s.steps);
  reader.take("block_length", s.block_length);
  reader.take("temperature", s.temperature);
  reader.take("guidance", s.guidance);
  reader.take("order", s.order);
  reader.take("acceleration.cache", s.acceleration.cache);
  reader.take_mode(s.mode);
  reader.take("acceleration.threshold", s.acceleration.threshold);
  check(s);
  return s;
}

ImageSettings read_image_settings(const Json& content, const std::string& where) {
  ImageSettings s;
  const SettingsReader reader(content, kImageFormat1);
  reader.check_keys(where);
  reader.take("steps", s.steps);
  reader.take("guidance", s.guidance);
  reader.take("temperature", s.temperature);
  reader.take("sampling_temperature", s.sampling_temperature);
  reader.take_mode(s.mode);
  reader.take("schedule", s.schedule);
  check(s);
  return s;
}

std::vector<Block> blocks_of(const TextSettings& s, std::int64_t start) {
  std::vector<Block> blocks;
  const Ids shares = transfers(s.steps, blocks_in(s));
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const std::int64_t low = static_cast<std::int64_t>(i) * s.block_length,
                       high = std::min(low + s.block_length, s.answer_length);
    blocks.push_back({start + low, start + high, std::max<std::int64_t>(1, std::min(shares[i], high - low))});
  }
  return blocks;
}

}  // namespace mmada_lite::internal
