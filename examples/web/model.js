// What a page touches: open a bundle, draw a caption, ask about a picture. It puts prompts, graphs and loops together, and
// refuses what the bundle does not allow before any work is done.

import { openBundle } from "./bundle.js";
import { choose } from "./choosing.js";
import { Canvas, drawPicture, textCanvas, writeText } from "./decoding.js";
import { allMasked, beginning, likeliness, readRow, rowOfIds, wholeAnswers } from "./filling.js";
import { Graphs } from "./graphs.js";
import { readPartial } from "./partial.js";
import { fitted } from "./pictures.js";
import { mostConfident } from "./schedules.js";
import { complete } from "./settings.js";
import { Vocabulary } from "./vocabulary.js";

const TOGETHER = 16; // rows that are written in the same steps

export class Model {
  constructor({ manifest, files }, graphs) {
    [this.manifest, this.graphs] = [manifest, graphs];
    const lowerCase = manifest.knows.case === "lower";
    this.vocabulary = new Vocabulary(manifest.vocabulary, manifest.rows, files.get("tokenizer.json"), lowerCase);
    const { text, image } = manifest.defaults;
    this.defaults = { text, image };
    [this.resolution, this.grid] = [null, null]; // of a model without pictures
    if (!manifest.image) return;
    const { resolution, downsample } = manifest.image;
    [this.resolution, this.grid] = [resolution, resolution / downsample];
    this.defaults.image = { ...image, steps: Math.min(image.steps, this.grid ** 2) };
  }

  static async open(base, onProgress) {
    const bundle = await openBundle(base, onProgress);
    return new Model(bundle, await Graphs.open(bundle));
  }

  /**
   * Draw a caption: steps as `drawPicture` yields them, with the picture as it stands in `picture`. Settings that
   * are not given are at their default. Seed: a BigInt.
   */
  async *paint(caption, given = this.defaults.image, seed = 0n) {
    const { special, codeOffset } = this.vocabulary;
    this.#needPictures();
    if (!caption.trim()) throw new Error("the caption is empty; say what is to be drawn");
    const settings = complete("image", given);
    const branches = [this.vocabulary.paintRow(caption.trim())];
    if (settings.guidance > 0) branches.push(this.vocabulary.unconditionalRow());
    const canvas = new Canvas(new Array(this.grid ** 2).fill(special.mask), branches, special.mask);
    this.#fits(Math.max(...branches.map((branch) => canvas.row(branch).length)), "the caption with its picture");
    for await (const step of drawPicture(this.graphs, canvas, settings, seed, codeOffset)) {
      yield { ...step, picture: await this.graphs.decodePicture(step.predictedCodes, [this.grid, this.grid]) };
    }
  }

  /** Codes, row by row, of a picture (ImageData) of any size: its central square, or with "squash" all of it. */
  async codesOf(picture, fit = "crop") {
    this.#needPictures();
    return this.graphs.encodePicture(fitted(picture, this.resolution, fit));
  }

  /**
   * Answer a question, about a picture (ImageData of any size) if given: steps with `text` so far, `ids` and `spans`. `answer` is a
   * part of the answer that is given: how it begins or, with holes, all of it but these. With `choices` the likeliest of them is
   * written into the one hole, without a hole as what is not given of the answer: one step, with `choices` and how likely each is.
   */
  async *ask(question, picture = null, given = this.defaults.text, seed = 0n, answer = null, choices = null) {
    if (!question.trim()) throw new Error("the question is empty; ask something");
    const settings = complete("text", given);
    const codes = picture && (await this.codesOf(picture));
    const prompt = this.vocabulary.questionPrompt(question.trim(), codes);
    const rows = this.#answerRows(answer, settings, choices);
    yield* choices ? this.#choose(prompt, rows, choices, settings) : this.#write(prompt, rows, settings, seed);
  }

  /**
   * Write the holes of a text: "[mask:3]" of three tokens, "[mask:*]" of 1 to 8, where the likeliest text is taken. Steps as `ask`
   * yields them; where several lengths are tried, their text is of the shortest until the last.
   */
  async *fill(text, given = this.defaults.text, seed = 0n, choices = null) {
    const settings = complete("text", given);
    const partial = readPartial(text, this.vocabulary.specials);
    if (!partial.holes.length) {
      throw new Error("the text has no hole; write [mask:3] for three tokens, or [mask:*], where something is missing");
    }
    const prompt = this.vocabulary.textPrompt();
    const rows = this.#filledRows(partial, settings, choices);
    yield* choices ? this.#choose(prompt, rows, choices, settings) : this.#write(prompt, rows, settings, seed);
  }

  /**
   * What follows a row of ids, which holds no masks: steps as `ask` yields them. `answer`: ids of any length of which the masks
   * alone are written, in as many steps as an answer of so many tokens takes; null is `answer_length` masks.
   */
  async *complete(prompt, answer = null, given = this.defaults.text, seed = 0n) {
    const { special } = this.vocabulary;
    const settings = complete("text", given);
    for (const ids of [prompt, answer ?? []]) this.#checkIds(ids);
    if (prompt.includes(special.mask)) throw new Error("a mask stands before the answer; put it into the answer");
    if (answer && !answer.includes(special.mask)) {
      const mend = "put masks where something is to be written";
      throw new Error(`an answer of ${answer.length} tokens without a mask leaves nothing to write; ${mend}`);
    }
    const decode = (ids) => this.vocabulary.decode(ids);
    const row = answer ? rowOfIds(answer, special.mask, decode) : allMasked(settings.answer_length, special.mask);
    yield* this.#write(prompt, [row], settings, seed);
  }

  /**
   * The likeliest of a few choices of ids at the one hole of an answer, a run of masks, behind a row of ids: { index, ids,
   * choices }, of each its ids, logLikelihood and probability. `answers`: one for all choices, or one for each.
   */
  async choose(prompt, answers, choices, given = this.defaults.text) {
    const settings = complete("text", given);
    for (const ids of [prompt, ...answers, ...choices]) this.#checkIds(ids);
    const { index, scored, choices: all } = await this.#chosen(prompt, answers, choices, settings);
    return { index, ids: scored[index].ids, choices: all };
  }

  async #chosen(before, answers, choices, { guidance }) {
    const { special } = this.vocabulary;
    for (const { length } of answers) this.#fits(before.length + length, "the conversation with its answer");
    const options = { guidance, mask: special.mask, stops: [special.eos, special.eot] };
    const { index, scored, probabilities } = await choose(this.graphs, before, answers, choices, options);
    const all = scored.map(({ logLikelihood }, k) => ({ ids: choices[k], logLikelihood, probability: probabilities[k] }));
    return { index, scored, choices: all };
  }

  /** The ids of each choice, behind a space where that is the hole's own. */
  #spelled(choices, space) {
    return choices.map((choice, index) => {
      if (!choice.trim()) throw new Error(`choice ${index + 1} is empty; write something, or leave it out`);
      const text = space ? ` ${choice}` : choice;
      const ids = this.vocabulary.encode(text);
      if (ids.length && this.vocabulary.decode(ids) === text) return ids;
      throw new Error(`no tokens of this model spell the choice "${choice}"; use characters that its tokenizer has`);
    });
  }

  /** The likeliest of a few choices in the hole of each row, of which there is one for all or one for each: one step. */
  async *#choose(before, rows, choices, settings) {
    const { special } = this.vocabulary;
    const ids = this.#spelled(choices, rows[0].holes[0].space);
    const own = choices.map((_, k) => rows[rows.length === 1 ? 0 : k]);
    own.forEach(({ holes: [{ start, stop }] }, k) => {
      if (ids[k].length <= stop - start) return;
      const room = `the hole has ${stop - start}; make the hole longer, or write [mask:*]`;
      throw new Error(`the choice "${choices[k]}" takes ${ids[k].length} tokens and ${room}`);
    });
    const started = performance.now();
    const answers = own.map((row) => row.ids);
    const { index, scored, choices: all } = await this.#chosen(before, answers, ids, settings);
    const { ids: best, written } = scored[index];
    const scores = best.map((_, place) => written.get(place) ?? 0);
    const decode = (run) => this.vocabulary.decode(run);
    const read = readRow(own[index], best, scores, decode, [special.eos, special.eot], special.mask, "");
    const remaining = best.filter((id) => id === special.mask).length;
    const texts = all.map((each, k) => ({ text: choices[k], ...each }));
    yield { index: 0, written: [written], remaining, seconds: (performance.now() - started) / 1000, ids: best, ...read, choices: texts };
  }

  #needPictures() {
    if (!this.grid) throw new Error("this bundle has no image tokenizer and cannot see or draw; export it with its vq folder");
  }

  #checkIds(ids) {
    const { size } = this.vocabulary;
    const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < size));
    if (wrong !== undefined) throw new Error(`the id ${wrong} is none of the model's 0 to ${size - 1}`);
  }

  /** The rows of an answer of which a part is given; null: nothing. */
  #answerRows(answer, settings, choices) {
    const { special } = this.vocabulary;
    const encode = (text) => this.vocabulary.encode(text);
    if (answer === null) return [{ ...allMasked(settings.answer_length, special.mask), plain: !choices }];
    if (!answer.trim()) throw new Error("the given answer is empty; say how it begins, or leave it out");
    const partial = readPartial(answer, this.vocabulary.specials);
    const whole = partial.holes.length > 0;
    const row = whole ? null : beginning(partial, encode, settings.answer_length, special.mask);
    const own = (piece, hole) => (partial.holes[hole]?.space ? piece.slice(0, -1) : piece);
    const texts = partial.pieces.map((piece, hole) => encode(own(piece, hole)).length);
    const counts = [...texts, ...partial.holes.map(({ most }) => most)];
    const length = whole ? counts.reduce((a, b) => a + b) : row.holes[0].start + 1;
    if (length > settings.answer_length) {
      const most = `the answer has ${settings.answer_length}; shorten it, or use a longer answer`;
      throw new Error(`the given answer takes ${length} tokens with its holes and ${most}`);
    }
    return whole ? this.#filledRows(partial, settings, choices) : [row];
  }

  /** A text whose holes are to be written; for choices a row for all or, of a hole of unknown length, one for each. */
  #filledRows(partial, settings, choices) {
    const { special } = this.vocabulary;
    const encode = (text) => this.vocabulary.encode(text);
    const turnEnd = this.vocabulary.turnEnd();
    const end = turnEnd.length ? turnEnd : [special.eos];
    const rows = (holes) => wholeAnswers({ ...partial, holes }, encode, end, special.eos, settings.block_length, special.mask);
    if (!choices) {
      this.#fits(partial.holes.reduce((sum, { most }) => sum + most, 0), "the text with its holes");
      return rows(partial.holes);
    }
    if (partial.holes.length > 1) {
      throw new Error(`choices are for one hole and the text has ${partial.holes.length}; leave one, or ask for each in turn`);
    }
    const [hole] = partial.holes;
    if (hole.least === hole.most) return rows([hole]);
    const lengths = this.#spelled(choices, hole.space).map(({ length }) => length);
    const all = rows([{ ...hole, least: 1, most: Math.max(...lengths) }]);
    return lengths.map((length) => all[length - 1]);
  }

  /** Write rows of one length behind a prompt, and read them as they stand: the first, at the end the likeliest. */
  async *#write(before, rows, settings, seed) {
    const { special } = this.vocabulary;
    this.#fits(before.length + rows[0].ids.length, "the conversation with its answer");
    const stops = [special.eos, special.eot];
    const canvases = rows.map(({ ids }) => textCanvas(before, ids, special.mask, settings.guidance > 0));
    const scores = rows.map(({ ids }) => new Array(ids.length).fill(0));
    const read = (best, mark) =>
      readRow(rows[best], canvases[best].body, scores[best], (ids) => this.vocabulary.decode(ids), stops, special.mask, mark);
    let [index, held] = [0, null]; // of several rows the last step waits until it is known which is the likeliest
    for (let first = 0; first < rows.length; first += TOGETHER) {
      const part = canvases.slice(first, first + TOGETHER);
      for await (const step of writeText(this.graphs, part, settings, seed, stops)) {
        if (held) yield held;
        step.written.forEach((own, row) => own.forEach((score, place) => (scores[first + row][place] = score)));
        const now = { ...step, index: index++, ids: [...canvases[0].body], ...read(0, "░") };
        if (rows.length > 1) held = now;
        else yield now;
      }
    }
    if (!held) return;
    const likelihoods = rows.map((row, number) => likeliness(row, canvases[number].body, scores[number], stops));
    const [best] = mostConfident(likelihoods, 1);
    yield { ...held, ids: [...canvases[best].body], ...read(best, "░") };
  }

  #fits(length, what) {
    const longest = this.manifest.architecture.max_sequence_length;
    if (length > longest) throw new Error(`${what} takes ${length} tokens and the model reads ${longest}; shorten it`);
  }
}
