// How a text is cut into pieces before merges join their bytes: the Digits and ByteLevel of a tokenizer.json.
#pragma once

#include <string_view>
#include <vector>

namespace mmada_lite::internal {

// Numbers apart from everything else, each digit by itself where `each`.
std::vector<std::string_view> digits_apart(const std::vector<std::string_view>& parts, bool each);

// Words as GPT-2 cuts them: English contractions, then runs of letters, of numbers or of other signs, each with one space
// before it; of a run of whitespace before a word the last stays with the word.
std::vector<std::string_view> words_of(const std::vector<std::string_view>& parts);

}  // namespace mmada_lite::internal
