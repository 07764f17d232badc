// Byte-level BPE: texts to ids and back.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common.hpp"
#include "files.hpp"
#include "json.hpp"
#include "rows.hpp"

namespace mmada_lite::internal {

// Byte-level BPE as tokenizer.json describes it: added tokens, Digits and ByteLevel before the merges, ByteLevel after.
// Whatever else a file asks for is named in an Error, and ids are the way out.
class Tokenizer {
 public:
  explicit Tokenizer(const fs::path& path, bool lower_case = false);  // lower_case: A to Z of a text are read as a to z

  // Throws Error where a special token has another id here, or picture codes begin elsewhere than behind the last token.
  void check(const Special& special, std::int64_t code_offset) const;
  Ids encode(const std::string& text) const;
  std::string decode(const Ids& ids) const;
  std::vector<std::string> specials() const;  // how special tokens are spelled

 private:
  struct Added {
    std::string content;
    std::int64_t id;
    bool normalized;
  };
  struct Merge {
    std::int64_t rank;
    std::int64_t id;
  };
  struct Piece {
    std::string_view text;
    std::int64_t id;  // of an added token; -1: text
  };

  [[noreturn]] void broken(const char* name, const Json& value) const;
  bool flag(const Json& object, const char* name, bool otherwise) const;
  [[noreturn]] void unknown(const std::string& what) const;
  void read_pre_tokenizer(const Json& content);
  void read_model(const Json& model);
  void read_added(const Json& added);
  std::vector<Piece> without_added(std::vector<Piece> pieces, bool normalized) const;
  void merge(std::string_view word, Ids& ids) const;
  static std::uint64_t pair_of(std::int64_t left, std::int64_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
  }

  fs::path path_;
  bool lower_case_;
  std::array<std::string, 256> letter_of_byte_;
  std::unordered_map<char32_t, std::uint8_t> byte_of_letter_;
  std::array<std::int64_t, 256> id_of_byte_{};  // -1: the vocabulary lacks it
  std::unordered_map<std::string, std::int64_t> vocabulary_;
  std::unordered_map<std::int64_t, std::string> spelling_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::vector<Added> added_;                  // those that are found in a text
  std::unordered_set<std::int64_t> special_;  // left out of decoded text
  std::int64_t length_ = 0;
  enum class PreTokenizer { digits_each, digits_together, words, bytes };
  std::vector<PreTokenizer> pre_tokenizers_;
};

}  // namespace mmada_lite::internal
