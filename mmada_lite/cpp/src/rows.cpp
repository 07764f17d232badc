// Rows: reading and checking the templates of bundle.json, and filling them. It knows no tokenizer and no canvas.
#include "rows.hpp"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "common.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

constexpr const char* kMmada = R"({
 "message": ["start_header", {"text": "{role}"}, "end_header", {"text": "\n{content}"}, "eot"],
 "chat": ["bos", "{messages}", "start_header", {"text": "assistant"}, "end_header", {"text": "\n"}, "{masks}"],
 "ask": ["mmu", "soi", "{codes}", "eoi", "{chat}"],
 "think": ["r2i", "bos", "{prompt}", "{masks}"],
 "paint": ["t2i", "bos", "{prompt}", "eos", "soi", "{codes}", "eoi"],
 "paint_thought": ["r2i", "bos", "{prompt}", "{thought}", "eos", "soi", "{codes}", "eoi"],
 "unconditional": ["t2i", "bos", "eos", "soi", "{codes}", "eoi"]
})";

using Names = std::vector<std::string>;

// Row and what is filled in, each once. `masks` and `chat` end their row. Those of a message stand inside its texts.
const std::vector<std::pair<std::string, Names>> kSlots{
    {"message", {"role", "content"}}, {"chat", {"messages", "masks"}}, {"ask", {"codes", "chat"}},
    {"think", {"prompt", "masks"}},   {"paint", {"prompt", "codes"}},  {"paint_thought", {"prompt", "thought", "codes"}},
    {"unconditional", {"codes"}},
};
const Names kDrawn{"paint", "paint_thought", "unconditional"}, kLast{"masks", "chat"};

bool holds(const Names& names, const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); }

// A {name} in a text: its bytes from `begin` to before `end`, with the braces.
struct Place {
  std::size_t begin, end;
  std::string name_in(std::string_view text) const { return std::string(text.substr(begin + 1, end - begin - 2)); }
};

std::optional<Place> next_slot(std::string_view text, std::size_t from) {
  for (auto open = text.find('{', from); open != std::string_view::npos; open = text.find('{', open + 1)) {
    std::size_t at = open + 1;
    while (at < text.size()) {
      const auto [code, length] = character_at(text, at);
      if (!length || (code != U'_' && !is_letter(code) && !is_number(code))) break;
      at += length;
    }
    if (at > open + 1 && at < text.size() && text[at] == '}') return Place{open, at + 1};
  }
  return std::nullopt;
}

Names slots_in(std::string_view text) {
  Names names;
  std::size_t from = 0;
  while (const auto place = next_slot(text, from)) {
    names.push_back(place->name_in(text));
    from = place->end;
  }
  return names;
}

Element element_of(const std::string& row, const Json& content, const Special& special) {
  if (content.is(Json::Kind::object) && content.members.size() == 1) {
    const auto& [key, value] = content.members.front();
    if (key == "text" && value.is(Json::Kind::string)) return {Element::Kind::text, value.string};
  }
  if (!content.is(Json::Kind::string)) {
    fail("the row ", quoted(row), " has an element ", shown(content), "; use a special id's name, a slot or a text");
  }
  const std::string& name = content.string;
  if (const auto slot = next_slot(name, 0); slot && slot->begin == 0 && slot->end == name.size()) {
    return {Element::Kind::slot, slot->name_in(name)};
  }
  if (const auto found = special.find(name); found != special.end()) return {Element::Kind::id, "", found->second};
  Names names;
  for (const auto& [known, id] : special) names.push_back(known);
  fail("the row ", quoted(row), " has an unknown special id ", quoted(name), "; the special ids are ", listed(names));
}

// That a row holds its slots, each once and where it can stand.
void check_slots(const std::string& row, const std::vector<Element>& elements, const Names& slots) {
  Names bare, in_texts;
  for (const auto& element : elements) {
    if (element.kind == Element::Kind::slot) bare.push_back(element.text);
    if (element.kind != Element::Kind::text) continue;
    for (const auto& name : slots_in(element.text)) in_texts.push_back(name);
  }
  const bool inside = row == "message";
  const Names &right = inside ? in_texts : bare, &wrong = inside ? bare : in_texts;
  if (!wrong.empty() || !std::is_permutation(right.begin(), right.end(), slots.begin(), slots.end())) {
    Names needed, held = bare;
    for (const auto& slot : slots) needed.push_back("{" + slot + "}");
    held.insert(held.end(), in_texts.begin(), in_texts.end());
    fail("the row ", quoted(row), " must hold ", listed(needed), ", each once, ", inside ? "inside" : "outside",
         " its texts; it holds ", held.empty() ? "none" : listed(held));
  }
  if (holds(kLast, slots.back()) && !(elements.back() == Element{Element::Kind::slot, slots.back()})) {
    fail("the row ", quoted(row), " must end with {", slots.back(), "}");
  }
}

// What stands behind the codes of a row that is drawn.
std::vector<Element> behind_codes(const std::vector<Element>& elements) {
  const auto codes = std::find(elements.begin(), elements.end(), Element{Element::Kind::slot, "codes"});
  return {codes + 1, elements.end()};
}

}  // namespace

Rows::Rows(const Json& content, const Special& special) : bos_(special.at("bos")) {
  Names known;
  for (const auto& [row, slots] : kSlots) known.push_back(row);
  for (const auto& row : content.keys()) {
    if (!holds(known, row)) fail("unknown row ", quoted(row), "; the rows are ", listed(known));
  }
  for (const char* row : {"message", "chat"}) {
    if (!content.find(row)) fail("the row ", quoted(row), " is missing; every model has it");
  }
  if (content.find("paint") && !content.find("unconditional")) {
    fail("the row \"unconditional\" is missing; a model that paints is guided against it");
  }
  for (const auto& [row, slots] : kSlots) {
    const Json* elements = content.find(row);
    if (!elements) continue;
    if (!elements->is(Json::Kind::array))
      fail("the row ", quoted(row), " is ", shown(*elements), "; a list of elements is needed");
    for (const auto& element : elements->items) templates_[row].push_back(element_of(row, element, special));
    check_slots(row, templates_[row], slots);
  }
  Names drawn;
  for (const auto& row : kDrawn) {
    if (templates_.count(row)) drawn.push_back(row);
  }
  for (const auto& row : drawn) {
    if (behind_codes(templates_[row]) == behind_codes(templates_[drawn.front()])) continue;
    fail("the rows ", listed(drawn), " end differently behind their codes; they must end alike");
  }
}

Around Rows::around(const std::string& row, const std::string& open_slot, const Filled& filled, const Encode& encode) const {
  const auto found = templates_.find(row);
  if (found == templates_.end()) {
    Names rows;
    for (const auto& [name, elements] : templates_) rows.push_back(name);
    fail("this model has no row ", quoted(row), ", so it cannot do this; it has ", listed(rows));
  }
  Around ids;
  bool opened = false;
  for (const auto& element : found->second) {
    Ids& side = opened ? ids.behind : ids.before;
    if (element.kind == Element::Kind::id) {
      side.push_back(element.id);
    } else if (element.kind == Element::Kind::slot && element.text == open_slot) {
      opened = true;
    } else {
      const bool slot = element.kind == Element::Kind::slot, prompt = slot && element.text == "prompt";
      const Ids given = slot ? filled.at(element.text) : encode(element.text);
      const bool twice = prompt && !side.empty() && !given.empty() && side.back() == bos_ && given.front() == bos_;
      side.insert(side.end(), given.begin() + (twice ? 1 : 0), given.end());
    }
  }
  return ids;
}

Ids Rows::turn_end(const Encode& encode) const {
  static const std::string kContent = "{content}";
  static const Words kAssistant = {{"role", "assistant"}};
  Ids ids;
  bool inside = false;
  for (const auto& element : templates_.at("message")) {
    const auto content = element.kind == Element::Kind::text ? element.text.find(kContent) : std::string::npos;
    if (content != std::string::npos) {
      ids = encode(worded(element.text.substr(content + kContent.size()), kAssistant));
      inside = true;
    } else if (element.kind == Element::Kind::id) {
      ids.push_back(element.id);
    } else if (inside) {
      const Ids more = encode(worded(element.text, kAssistant));
      ids.insert(ids.end(), more.begin(), more.end());
    }
  }
  return ids;
}

std::string worded(const std::string& text, const Words& words) {
  std::string out;
  std::size_t from = 0;
  while (const auto place = next_slot(text, from)) {
    out += text.substr(from, place->begin - from) + words.at(place->name_in(text));
    from = place->end;
  }
  return out + text.substr(from);
}

Json rows_of_mmada() { return parse_json(kMmada); }

}  // namespace mmada_lite::internal
