// Text to ids and back through the bundle's tokenizer.json, and the rows of tokens that a task begins with. It knows the
// chat template and the special ids; models and decoding are none of its business.

import { Tokenizer } from "@huggingface/tokenizers";

export class Vocabulary {
  /** numbers: bundle.json's "vocabulary"; tokenizer: tokenizer.json as bytes. */
  constructor(numbers, tokenizer) {
    this.special = numbers.special;
    this.codeOffset = numbers.image_code_offset;
    const json = JSON.parse(new TextDecoder().decode(tokenizer));
    const settings = { clean_up_tokenization_spaces: false };
    this.reader = new Tokenizer({ ...json, added_tokens: json.added_tokens.filter((token) => !token.special) }, settings);
    this.writer = new Tokenizer(json, settings);
    this.known = new Set(this.writer.get_vocab(true).values());
  }

  /** Ids of a text. A special spelling that a user typed, such as <|eot_id|>, is text here and never the token. */
  encode(text) {
    return this.reader.encode(text, { add_special_tokens: false }).ids;
  }

  /** Text of ids; special tokens and ids beyond the tokenizer are left out. */
  decode(ids) {
    const known = ids.filter((id) => this.known.has(id));
    return known.length ? this.writer.decode(known, { skip_special_tokens: true }) : "";
  }

  /** What stands before the codes of a picture that is to be drawn; without a text, for the unconditional row. */
  paintPrompt(text = "") {
    const { t2i, bos, eos, soi } = this.special;
    return [t2i, bos, ...(text ? this.encode(text) : []), eos, soi];
  }

  /** One message of a user, up to where the answer begins; behind a picture when codes are given. */
  questionPrompt(question, codes = null) {
    const { mmu, soi, eoi, bos, start_header: start, end_header: end, eot } = this.special;
    const picture = codes ? [mmu, soi, ...Array.from(codes, (code) => this.codeOffset + code), eoi] : [];
    const message = [bos, start, ...this.encode("user"), end, ...this.encode(`\n${question}`), eot];
    return [...picture, ...message, start, ...this.encode("assistant"), end, ...this.encode("\n")];
  }
}
