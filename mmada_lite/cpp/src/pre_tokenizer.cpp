// How a text is cut into pieces before merges join their bytes.
#include "pre_tokenizer.hpp"

#include "unicode.hpp"

namespace mmada_lite::internal {

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
