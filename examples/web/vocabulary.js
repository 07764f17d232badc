// Text to ids and back through the bundle's tokenizer.json, and the rows of tokens that the bundle's templates
// make of them. It knows the special ids; models and decoding are none of its business.

import { Tokenizer } from "@huggingface/tokenizers";

import { fillRow } from "./rows.js";

const CONTENT = "{content}";

export class Vocabulary {
  /**
   * numbers and rows: "vocabulary" and "rows" of bundle.json; tokenizer: tokenizer.json as bytes, undefined where ids alone are
   * read; lowerCase: no capitals.
   */
  constructor(numbers, rows, tokenizer, lowerCase = false) {
    this.lowerCase = lowerCase;
    [this.special, this.codeOffset, this.size, this.rows] = [numbers.special, numbers.image_code_offset, numbers.size, rows];
    [this.specials, this.known] = [[], new Set()];
    if (!tokenizer) return;
    const file = JSON.parse(new TextDecoder().decode(tokenizer), digitsOfAllScripts);
    const json = { ...file, post_processor: null }; // what training puts around a text is left undone
    const settings = { clean_up_tokenization_spaces: false };
    checkAdded(json);
    this.reader = new Tokenizer({ ...json, added_tokens: json.added_tokens.filter((token) => !token.special) }, settings);
    this.writer = new Tokenizer(json, settings);
    this.specials = json.added_tokens.filter((token) => token.special).map((token) => token.content);
    this.known = new Set(this.writer.get_vocab(true).values());
  }

  /** Ids of a text. A special spelling that a user typed, such as <|eot_id|>, is text here and never the token. */
  encode(text) {
    if (!this.reader) throw new Error("this bundle has no tokenizer.json, so it cannot read text; export it with its tokenizer");
    const read = this.lowerCase ? text.replace(/[A-Z]+/g, (capitals) => capitals.toLowerCase()) : text;
    return this.reader.encode(read, { add_special_tokens: false }).ids;
  }

  /** Text of ids; special tokens and ids beyond the tokenizer are left out. */
  decode(ids) {
    const known = ids.filter((id) => this.known.has(id));
    return known.length ? this.writer.decode(known, { skip_special_tokens: true }) : "";
  }

  /** What stands around the codes of a picture that is drawn from a text: { before, after }. */
  paintRow(text) {
    return this.#row("paint", { open: "codes", filled: { prompt: this.encode(text) } });
  }

  /** What stands around the codes in the row that guidance compares with. */
  unconditionalRow() {
    return this.#row("unconditional", { open: "codes" });
  }

  /** One message of a user, up to where the answer begins; behind a picture when codes are given. */
  questionPrompt(question, codes = null) {
    const { before: messages } = this.#row("message", { words: { role: "user", content: question } });
    const { before: chat } = this.#row("chat", { open: "masks", filled: { messages } });
    if (!codes) return chat;
    return this.#row("ask", { filled: { codes: Array.from(codes, (code) => this.codeOffset + code), chat } }).before;
  }

  /** What a text that answers nothing follows: the row of a conversation in which nothing was said. */
  textPrompt() {
    return this.#row("chat", { open: "masks", filled: { messages: [] } }).before;
  }

  /** What stands behind the content of what the assistant says. */
  turnEnd() {
    const content = this.rows.message.findIndex((element) => element.text?.includes(CONTENT));
    const text = this.rows.message[content].text;
    const behind = this.rows.message.slice(content + 1);
    const rest = { text: text.slice(text.indexOf(CONTENT) + CONTENT.length) };
    const said = (words) => this.encode(words.replace("{role}", "assistant"));
    return [rest, ...behind].flatMap((element) => (element.text === undefined ? this.special[element] : said(element.text)));
  }

  #row(name, content) {
    return fillRow(this.rows, name, { special: this.special, encode: (text) => this.encode(text) }, content);
  }
}

/** @huggingface/tokenizers 0.2.0 finds 0 to 9 alone where a file says "Digits"; the library in Python finds every number. */
function digitsOfAllScripts(key, value) {
  if (value?.type !== "Digits") return value;
  return { type: "Split", pattern: { Regex: value.individual_digits ? "\\p{N}" : "\\p{N}+" }, behavior: "Isolated", invert: false };
}

/** Throws where a reader that counts added tokens would give one another id than the file: Python's does. */
function checkAdded({ added_tokens, model }) {
  let next = Object.keys(model.vocab).length;
  for (const { content, id } of added_tokens) {
    const counted = model.vocab[content] ?? next++;
    if (counted === id) continue;
    throw new Error(`tokenizer.json: the added token "${content}" has the id ${id}, and counted it is ${counted}; copy it again`);
  }
}
