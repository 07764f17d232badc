// A tokenizer.json of byte-level BPE: texts to ids and back.
#include "tokenizer.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "common.hpp"
#include "files.hpp"
#include "json.hpp"
#include "pre_tokenizer.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {

void Tokenizer::broken(const char* name, const Json& value) const {
  fail(path_.string(), " is not a tokenizer.json: ", name, " is ", shown(value).substr(0, 80), ", which it cannot be");
}

bool Tokenizer::flag(const Json& object, const char* name, bool otherwise) const {
  const Json* value = object.find(name);
  if (value && !value->is(Json::Kind::boolean)) broken(name, *value);
  return value ? value->boolean : otherwise;
}

void Tokenizer::unknown(const std::string& what) const {
  fail(path_.string(), " uses ", what, ", which this program does not know; tokenize elsewhere and give ids");
}

namespace {

bool absent(const Json& object, const char* name) {
  const Json* value = object.find(name);
  return !value || value->is(Json::Kind::null);
}

std::string type_of(const Json& object) {
  const Json* value = object.find("type");
  return value && value->is(Json::Kind::string) ? value->string : "";
}

}  // namespace

Tokenizer::Tokenizer(const fs::path& path, bool lower_case) : path_(path), lower_case_(lower_case) {
  // Bytes that print stand for themselves, the others for the letters from 256 on.
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const char32_t letter = prints ? static_cast<char32_t>(byte) : next++;
    append_utf8(letter_of_byte_[static_cast<std::size_t>(byte)], letter);
    byte_of_letter_[letter] = static_cast<std::uint8_t>(byte);
  }
  const std::string text = read_file(path);
  Json content;
  try {
    if (first_wrong_byte(text) < text.size()) fail("it is not UTF-8 text");
    content = parse_json(text);
    if (!content.find("model")) fail("it has no model");
  } catch (const Error& error) {
    fail(path.string(), " is not a tokenizer.json: ", error.what());
  }
  if (!absent(content, "normalizer")) unknown("a normalizer");
  read_model(*content.find("model"));
  if (!absent(content, "pre_tokenizer")) read_pre_tokenizer(*content.find("pre_tokenizer"));
  if (pre_tokenizers_.empty() ||
      (pre_tokenizers_.back() != PreTokenizer::words && pre_tokenizers_.back() != PreTokenizer::bytes)) {
    unknown("a vocabulary that is not of bytes");
  }
  const Json* decoder = content.find("decoder");
  if (!decoder || type_of(*decoder) != "ByteLevel") unknown("another decoder than ByteLevel");
  for (const char* part : {"add_prefix_space", "trim_offsets", "use_regex"}) flag(*decoder, part, true);
  const Json* added = content.find("added_tokens");
  if (added && !added->is(Json::Kind::array)) broken("added_tokens", *added);
  read_added(added ? *added : Json{});
}

void Tokenizer::read_pre_tokenizer(const Json& content) {
  const std::string type = type_of(content);
  if (type == "Sequence") {
    if (const Json* parts = content.find("pretokenizers")) {
      for (const auto& part : parts->items) read_pre_tokenizer(part);
    }
  } else if (type == "Digits") {
    pre_tokenizers_.push_back(flag(content, "individual_digits", false) ? PreTokenizer::digits_each
                                                                        : PreTokenizer::digits_together);
  } else if (type == "ByteLevel") {
    if (flag(content, "add_prefix_space", true)) unknown("add_prefix_space");
    pre_tokenizers_.push_back(flag(content, "use_regex", true) ? PreTokenizer::words : PreTokenizer::bytes);
  } else {
    unknown("the pre-tokenizer " + type);
  }
}

void Tokenizer::read_model(const Json& model) {
  const std::string type = type_of(model);
  if (!type.empty() && type != "BPE") unknown("the model " + type);
  if (!absent(model, "unk_token")) unknown("unk_token");
  for (const char* part : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (absent(model, part)) continue;
    if (!model.find(part)->is(Json::Kind::string)) broken(part, *model.find(part));
    if (!model.find(part)->string.empty()) unknown(part);
  }
  if (!absent(model, "dropout")) {  // left undone
    const Json& dropout = *model.find("dropout");
    const double share = dropout.is(Json::Kind::integer) ? static_cast<double>(dropout.integer) : dropout.number;
    if ((!dropout.is(Json::Kind::integer) && !dropout.is(Json::Kind::number)) || !(share >= 0 && share <= 1)) {
      broken("dropout", dropout);
    }
  }
  for (const char* part : {"byte_fallback", "ignore_merges"}) {
    if (flag(model, part, false)) unknown(part);
  }
  const Json *vocabulary = model.find("vocab"), *merges = model.find("merges");
  if (!vocabulary || !merges) unknown("a model without vocab or merges");
  if (!vocabulary->is(Json::Kind::object)) broken("vocab", *vocabulary);
  if (!merges->is(Json::Kind::array)) broken("merges", *merges);
  for (const auto& [spelling, id] : vocabulary->members) {
    if (!id.is(Json::Kind::integer)) fail(path_.string(), " is not a tokenizer.json: ", quoted(spelling), " has no id");
    vocabulary_[spelling] = id.integer;
    spelling_[id.integer] = spelling;
  }
  std::int64_t rank = 0;
  for (const auto& rule : merges->items) {
    std::string left, right;
    if (rule.is(Json::Kind::array) && rule.items.size() == 2) {
      left = rule.items[0].string, right = rule.items[1].string;
    } else {
      const auto space = rule.string.find(' ');
      left = rule.string.substr(0, space), right = space == std::string::npos ? "" : rule.string.substr(space + 1);
    }
    const auto a = vocabulary_.find(left), b = vocabulary_.find(right), joined = vocabulary_.find(left + right);
    if (a == vocabulary_.end() || b == vocabulary_.end() || joined == vocabulary_.end()) {
      fail(path_.string(), " is not a tokenizer.json: the merge of ", quoted(left), " and ", quoted(right),
           " is not in its vocabulary");
    }
    merges_[pair_of(a->second, b->second)] = {rank++, joined->second};
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto entry = vocabulary_.find(letter_of_byte_[byte]);
    id_of_byte_[byte] = entry == vocabulary_.end() ? -1 : entry->second;
  }
}

void Tokenizer::read_added(const Json& added) {
  std::set<std::string> beyond;
  for (const auto& token : added.items) {
    const Json *content = token.find("content"), *id = token.find("id");
    if (!content || !id || !content->is(Json::Kind::string) || !id->is(Json::Kind::integer)) {
      fail(path_.string(), " is not a tokenizer.json: an added token has no content or no id");
    }
    for (const char* part : {"single_word", "lstrip", "rstrip", "normalized", "special"}) {
      if (!token.find(part)) fail(path_.string(), " is not a tokenizer.json: an added token has no ", part);
      flag(token, part, false);
    }
    const auto word = vocabulary_.find(content->string);
    const auto next = static_cast<std::int64_t>(vocabulary_.size() + beyond.size());
    const auto other = spelling_.find(id->integer);
    const bool again = beyond.count(content->string) != 0;
    if (id->integer != (word != vocabulary_.end() ? word->second : again ? id->integer : next) ||
        (other != spelling_.end() && other->second != content->string)) {
      fail(path_.string(), " is not a tokenizer.json that can be used: added_tokens has ", quoted(content->string),
           " with the id ", id->integer, ", and the vocabulary says otherwise; write the file again with ids without a gap");
    }
    if (!vocabulary_.count(content->string)) beyond.insert(content->string);
    spelling_[id->integer] = content->string;
    if (flag(token, "special", false)) {
      special_.insert(id->integer);
      continue;
    }
    for (const char* part : {"single_word", "lstrip", "rstrip"}) {
      if (flag(token, part, false)) unknown(std::string("an added token with ") + part);
    }
    added_.push_back({content->string, id->integer, flag(token, "normalized", true)});
  }
  for (const char* header : {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}) {  // added where a file lacks them
    if (vocabulary_.count(header) || !beyond.insert(header).second) continue;
    const auto next = static_cast<std::int64_t>(vocabulary_.size() + beyond.size()) - 1;
    spelling_.emplace(next, header);
    special_.insert(next);
  }
  length_ = static_cast<std::int64_t>(vocabulary_.size() + beyond.size());
  for (const auto& [id, spelling] : spelling_) {
    if (id < 0 || id >= length_ || static_cast<std::int64_t>(spelling_.size()) != length_) {
      fail(path_.string(), " is not a tokenizer.json that can be used: the ids of its ", length_,
           " tokens do not count from 0 to ", length_ - 1, "; write the file again with ids without a gap");
    }
    vocabulary_[spelling] = id;
  }
}

void Tokenizer::check(const Special& special, std::int64_t code_offset) const {
  static const std::vector<std::pair<const char*, const char*>> kSpellings{
      {"bos", "<|startoftext|>"}, {"eos", "<|endoftext|>"}, {"soi", "<|soi|>"}, {"eoi", "<|eoi|>"},
      {"t2i", "<|t2i|>"}, {"mmu", "<|mmu|>"}, {"ipad", "[iPAD]"}, {"r2i", "<|r2i|>"}, {"mask", "<|mdm_mask|>"},
      {"start_header", "<|start_header_id|>"}, {"end_header", "<|end_header_id|>"}, {"eot", "<|eot_id|>"}};
  for (const auto& [name, spelling] : kSpellings) {
    const auto own = vocabulary_.find(spelling);
    if (own == vocabulary_.end() || own->second == special.at(name)) continue;
    fail("vocabulary: special token ", quoted(name), " is ", special.at(name), ", and ", spelling, " of tokenizer.json is ",
         own->second);
  }
  if (length_ != code_offset) {
    fail("vocabulary: image_code_offset is ", code_offset, ", and tokenizer.json has ", length_, " tokens");
  }
}

// Cuts the added tokens out: the leftmost first, the longest of those that begin together.
std::vector<Tokenizer::Piece> Tokenizer::without_added(std::vector<Piece> pieces, bool normalized) const {
  std::vector<Piece> cut;
  for (const auto& piece : pieces) {
    std::size_t from = 0;
    for (std::size_t at = 0; piece.id < 0 && at < piece.text.size();) {
      const Added* longest = nullptr;
      for (const auto& token : added_) {
        if (token.normalized != normalized || token.content.empty()) continue;
        if (piece.text.compare(at, token.content.size(), token.content) != 0) continue;
        if (!longest || token.content.size() > longest->content.size()) longest = &token;
      }
      if (!longest) {
        ++at;
        continue;
      }
      if (at > from) cut.push_back({piece.text.substr(from, at - from), -1});
      cut.push_back({piece.text.substr(at, longest->content.size()), longest->id});
      from = at += longest->content.size();
    }
    if (from < piece.text.size()) cut.push_back({piece.text.substr(from), piece.id});
  }
  return cut;
}

// Joins neighbours by the merges, the lowest rank first and the leftmost of those.
void Tokenizer::merge(std::string_view word, Ids& ids) const {
  struct Symbol {
    std::int64_t id, left, right;
  };
  std::vector<Symbol> symbols;
  for (const char letter : word) {
    const auto id = id_of_byte_[static_cast<unsigned char>(letter)];
    const auto at = static_cast<std::int64_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().right = -1;
  using Candidate = std::tuple<std::int64_t, std::int64_t, std::uint64_t, std::int64_t>;  // rank, place, pair, new id
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](std::int64_t at) {
    if (at < 0 || symbols[static_cast<std::size_t>(at)].right < 0) return;
    const auto& symbol = symbols[static_cast<std::size_t>(at)];
    const auto pair = pair_of(symbol.id, symbols[static_cast<std::size_t>(symbol.right)].id);
    const auto rule = merges_.find(pair);
    if (rule != merges_.end()) queue.emplace(rule->second.rank, at, pair, rule->second.id);
  };
  for (std::size_t at = 0; at < symbols.size(); ++at) offer(static_cast<std::int64_t>(at));
  while (!queue.empty()) {
    const auto [rank, at, pair, id] = queue.top();
    queue.pop();
    auto& symbol = symbols[static_cast<std::size_t>(at)];
    if (symbol.id < 0 || symbol.right < 0) continue;
    auto& gone = symbols[static_cast<std::size_t>(symbol.right)];
    if (pair_of(symbol.id, gone.id) != pair) continue;
    symbol.id = id;
    symbol.right = gone.right;
    gone.id = -1;
    if (symbol.right >= 0) symbols[static_cast<std::size_t>(symbol.right)].left = at;
    offer(symbol.left);
    offer(at);
  }
  for (std::int64_t at = 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].right) {
    ids.push_back(symbols[static_cast<std::size_t>(at)].id);
  }
}

Ids Tokenizer::encode(const std::string& given) const {
  Ids ids;
  const std::string text = lower_case_ ? in_lower_case(given) : given;
  for (const auto& piece : without_added(without_added({{text, -1}}, false), true)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    std::vector<std::string_view> parts{piece.text};
    for (const auto pre_tokenizer : pre_tokenizers_) {
      if (pre_tokenizer == PreTokenizer::words) {
        parts = words_of(parts);
      } else if (pre_tokenizer != PreTokenizer::bytes) {
        parts = digits_apart(parts, pre_tokenizer == PreTokenizer::digits_each);
      }
    }
    for (const auto part : parts) merge(part, ids);
  }
  return ids;
}

std::vector<std::string> Tokenizer::specials() const {
  std::vector<std::string> spellings;
  for (const auto id : special_) spellings.push_back(spelling_.at(id));
  return spellings;
}

std::string Tokenizer::decode(const Ids& ids) const {
  std::string bytes;
  for (const auto id : ids) {
    const auto entry = spelling_.find(id);
    if (id < 0 || id >= length_ || entry == spelling_.end() || special_.count(id)) continue;
    const std::string& spelling = entry->second;
    std::string mapped;
    for (std::size_t at = 0; at < spelling.size();) {
      const auto letter = character_at(spelling, at);
      const auto byte = byte_of_letter_.find(letter.code);
      if (byte == byte_of_letter_.end()) {  // no spelling of bytes: it stands for itself
        mapped = spelling;
        break;
      }
      mapped += static_cast<char>(byte->second);
      at += letter.length;
    }
    bytes += mapped;
  }
  return lossy_utf8(bytes);
}

std::vector<std::string_view> digits_apart(const std::vector<std::string_view>& parts, bool each) {
  std::vector<std::string_view> apart;
  for (const auto part : parts) {
    std::size_t from = 0, at = 0;
    bool numeric = false;
    for (std::size_t length; at < part.size(); at += length) {
      const auto character = character_at(part, at);
      length = character.length;
      // Numbers that came with Unicode 17, which the Digits of the tokenizers library counts and its ByteLevel does not yet.
      const bool newer =
          (character.code >= 0x11DE0 && character.code <= 0x11DE9) || (character.code >= 0x16FF4 && character.code <= 0x16FF6);
      const bool number = newer || is_number(character.code);
      if (at > from && (number != numeric || (number && each))) {
        apart.push_back(part.substr(from, at - from));
        from = at;
      }
      numeric = number;
    }
    if (at > from) apart.push_back(part.substr(from));
  }
  return apart;
}

std::vector<std::string_view> words_of(const std::vector<std::string_view>& parts) {
  std::vector<std::string_view> words;
  for (const auto part : parts) {
    const auto kind = [&](std::size_t at) {  // 0 the end, 1 a space, 2 a letter, 3 a number, 4 another sign
      if (at >= part.size()) return 0;
      const auto code = character_at(part, at).code;
      return is_space(code) ? 1 : is_letter(code) ? 2 : is_number(code) ? 3 : 4;
    };
    for (std::size_t at = 0; at < part.size();) {
      std::size_t end = at;
      for (const std::string_view tail : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
        if (part.substr(at, tail.size()) == tail) {
          end = at + tail.size();
          break;
        }
      }
      if (end == at) {
        const std::size_t first = part[at] == ' ' && kind(at + 1) > 1 ? at + 1 : at;
        const int run = kind(first);
        std::size_t last = first;  // where the run's last character begins
        for (end = first; kind(end) == run; end += character_at(part, end).length) last = end;
        if (run == 1 && end < part.size() && last > at) end = last;
      }
      words.push_back(part.substr(at, end - at));
      at = end;
    }
  }
  return words;
}

}  // namespace mmada_lite::internal
