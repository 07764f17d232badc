// What a page touches: open a bundle, draw a caption, ask about a picture. It puts prompts, graphs and loops together, and
// refuses what the bundle does not allow before any work is done.

import { openBundle } from "./bundle.js";
import { choose } from "./choosing.js";
import { Canvas, drawPicture, textCanvas, writeText } from "./decoding.js";
import { Graphs } from "./graphs.js";
import { fitted } from "./pictures.js";
import { complete } from "./settings.js";
import { Vocabulary } from "./vocabulary.js";

export class Model {
  constructor({ manifest, files }, graphs) {
    [this.manifest, this.graphs] = [manifest, graphs];
    this.vocabulary = new Vocabulary(manifest.vocabulary, manifest.rows, files.get("tokenizer.json"));
    const { resolution, downsample } = manifest.image;
    [this.resolution, this.grid] = [resolution, resolution / downsample];
    const { text, image } = manifest.defaults;
    this.defaults = { text, image: { ...image, steps: Math.min(image.steps, this.grid ** 2) } };
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
    if (!caption.trim()) throw new Error("the caption is empty; say what is to be drawn");
    const settings = complete("image", given);
    const branches = [this.vocabulary.paintRow(caption.trim())];
    if (settings.guidance > 0) branches.push(this.vocabulary.unconditionalRow());
    const canvas = new Canvas(new Array(this.grid ** 2).fill(special.mask), branches, special.mask);
    this.#fits(canvas, "the caption with its picture");
    for await (const step of drawPicture(this.graphs, canvas, settings, seed, codeOffset)) {
      yield { ...step, picture: await this.graphs.decodePicture(step.predictedCodes, [this.grid, this.grid]) };
    }
  }

  /** Codes, row by row, of a picture (ImageData) of any size: its central square, or with "squash" all of it. */
  async codesOf(picture, fit = "crop") {
    return this.graphs.encodePicture(fitted(picture, this.resolution, fit));
  }

  /** Answer a question, about a picture (ImageData of any size) if given: steps with `text` so far. */
  async *ask(question, picture = null, given = this.defaults.text, seed = 0n) {
    if (!question.trim()) throw new Error("the question is empty; ask something");
    const settings = complete("text", given);
    const codes = picture && (await this.codesOf(picture));
    yield* this.#write(this.vocabulary.questionPrompt(question.trim(), codes), null, settings, seed);
  }

  /**
   * What follows a row of ids, which holds no masks: steps with `ids` and `text` so far. `answer`: ids of any length of which
   * the masks alone are written, in as many steps as an answer of so many tokens takes; null is `answer_length` masks.
   */
  async *complete(prompt, answer = null, given = this.defaults.text, seed = 0n) {
    const settings = complete("text", given);
    for (const ids of [prompt, answer ?? []]) this.#checkIds(ids);
    if (prompt.includes(this.vocabulary.special.mask)) throw new Error("a mask stands before the answer; put it into the answer");
    yield* this.#write(prompt, answer, settings, seed);
  }

  /**
   * The likeliest of a few choices of ids at the one hole of an answer, a run of masks, behind a row of ids: { index, ids, text,
   * choices }, of each its ids, logLikelihood and probability. With `grows` the hole is as long as what is put into it.
   */
  async choose(prompt, answer, choices, given = this.defaults.text, grows = false) {
    const { guidance } = complete("text", given);
    for (const ids of [prompt, answer, ...choices]) this.#checkIds(ids);
    return this.#choose(prompt, answer, choices, guidance, grows);
  }

  async #choose(before, answer, choices, guidance, grows) {
    const { special } = this.vocabulary;
    const longest = answer.length + (grows ? 1 + Math.max(...choices.map((choice) => choice.length)) : 0);
    this.#fits(textCanvas(before, new Array(longest).fill(special.mask), special.mask, false), "the conversation with its answer");
    const stops = [special.eos, special.eot];
    const options = { guidance, mask: special.mask, stops, grows };
    const { index, scored, probabilities } = await choose(this.graphs, before, answer, choices, options);
    const all = scored.map(({ logLikelihood }, k) => ({ ids: choices[k], logLikelihood, probability: probabilities[k] }));
    return { index, ids: scored[index].ids, choices: all };
  }

  #checkIds(ids) {
    const { size } = this.vocabulary;
    const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < size));
    if (wrong !== undefined) throw new Error(`the id ${wrong} is none of the model's 0 to ${size - 1}`);
  }

  async *#write(before, answer, settings, seed) {
    const { special } = this.vocabulary;
    const body = answer ?? new Array(settings.answer_length).fill(special.mask);
    if (!body.includes(special.mask)) {
      const mend = "put masks where something is to be written";
      throw new Error(`an answer of ${body.length} tokens without a mask leaves nothing to write; ${mend}`);
    }
    const canvas = textCanvas(before, body, special.mask, settings.guidance > 0);
    this.#fits(canvas, "the conversation with its answer");
    const stops = [special.eos, special.eot];
    for await (const step of writeText(this.graphs, canvas, settings, seed, stops)) {
      yield { ...step, ids: [...canvas.body], text: this.#text(canvas, stops) };
    }
  }

  /** An answer up to its end, with a mark where masks are left. */
  #text({ body: ids, tail }, stops) {
    const end = ids.findIndex((id, place) => place >= tail && stops.includes(id));
    const runs = [[]];
    for (const id of end < 0 ? ids : ids.slice(0, end)) {
      if (id === this.vocabulary.special.mask) runs.push([]);
      else runs.at(-1).push(id);
    }
    return runs.map((run) => this.vocabulary.decode(run)).join("░").trim();
  }

  #fits(canvas, what) {
    const longest = this.manifest.architecture.max_sequence_length;
    const length = Math.max(...canvas.branches.map((branch) => canvas.row(branch).length));
    if (length > longest) throw new Error(`${what} takes ${length} tokens and the model reads ${longest}; shorten it`);
  }
}
