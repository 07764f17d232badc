// The rows of ids that a task begins with: templates out of bundle.json, and how they are filled.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "common.hpp"
#include "json.hpp"

namespace mmada_lite::internal {

using Special = std::map<std::string, std::int64_t>;  // ids by their names in bundle.json
using Filled = std::map<std::string, Ids>;            // ids by the slot that they stand in
using Words = std::map<std::string, std::string>;     // what stands for {role} and {content}
using Encode = std::function<Ids(const std::string&)>;

struct Element {
  enum class Kind { id, text, slot };
  Kind kind;
  std::string text;     // of a text; the name of a slot
  std::int64_t id = 0;  // of a special id

  bool operator==(const Element& other) const { return kind == other.kind && text == other.text && id == other.id; }
};

// What stands around the slot of a row that is left open.
struct Around {
  Ids before, behind;
};

// The templates of a model by the name of their row.
class Rows {
 public:
  Rows() = default;
  Rows(const Json& content, const Special& special);  // throws Error for what is no template, and for a row that is missing

  // The ids around `open_slot` (none: all of them stand before it). Throws Error where the model has no such row.
  Around around(const std::string& row, const std::string& open_slot, const Filled& filled, const Encode& encode) const;
  Ids turn_end(const Encode& encode) const;  // what stands behind the content of what the assistant says

 private:
  using Template = std::vector<Element>;

  std::map<std::string, Template> templates_;
  std::int64_t bos_ = 0;
};

// A text with its {role} and {content} filled in; what is filled in is taken as it is.
std::string worded(const std::string& text, const Words& words);

Json rows_of_mmada();  // those of bundles of format 1, which say none

}  // namespace mmada_lite::internal
