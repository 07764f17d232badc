// What a page touches: open a bundle, draw a caption, ask about a picture. It puts prompts, graphs and loops together, and
// refuses what the bundle's laws do not allow before any work is done.

import { openBundle } from "./bundle.js";
import { Canvas, drawPicture, writeText } from "./decoding.js";
import { Graphs } from "./graphs.js";
import { Vocabulary } from "./vocabulary.js";

export class Model {
  constructor({ manifest, files }, graphs) {
    [this.manifest, this.graphs] = [manifest, graphs];
    this.vocabulary = new Vocabulary(manifest.vocabulary, files.get("tokenizer.json"));
    const { resolution, downsample } = manifest.image;
    [this.resolution, this.grid, this.defaults] = [resolution, resolution / downsample, manifest.defaults];
  }

  static async open(base, onProgress) {
    const bundle = await openBundle(base, onProgress);
    return new Model(bundle, await Graphs.open(bundle));
  }

  /** Draw a caption: steps as `drawPicture` yields them, with the picture as it stands in `picture`. Seed: a BigInt. */
  async *paint(caption, settings = this.defaults.image, seed = 0n) {
    const { special, codeOffset } = this.vocabulary;
    if (!caption.trim()) throw new Error("the caption is empty; say what is to be drawn");
    sensible(settings, IMAGE);
    const branch = (before) => ({ before, after: [special.eoi] });
    const prompts = [this.vocabulary.paintPrompt(caption.trim()), ...(settings.guidance > 0 ? [this.vocabulary.paintPrompt()] : [])];
    const canvas = new Canvas(new Array(this.grid ** 2).fill(special.mask), prompts.map(branch), special.mask);
    this.#fits(canvas, "the caption with its picture");
    for await (const step of drawPicture(this.graphs, canvas, settings, seed, codeOffset)) {
      yield { ...step, picture: await this.graphs.decodePicture(step.predictedCodes, [this.grid, this.grid]) };
    }
  }

  /** Answer a question, about a picture of the model's resolution (ImageData) if given: steps with `text` so far. */
  async *ask(question, picture = null, settings = this.defaults.text, seed = 0n) {
    const { special } = this.vocabulary;
    if (!question.trim()) throw new Error("the question is empty; ask something");
    sensible(settings, TEXT);
    const codes = picture && (await this.graphs.encodePicture(picture));
    const before = this.vocabulary.questionPrompt(question.trim(), codes);
    const hidden = new Array(before.length).fill(special.mask);
    const branches = [before, ...(settings.guidance > 0 ? [hidden] : [])].map((prompt) => ({ before: prompt, after: [] }));
    const canvas = new Canvas(new Array(settings.answer_length).fill(special.mask), branches, special.mask);
    this.#fits(canvas, "the question with its answer");
    const stops = [special.eos, special.eot];
    for await (const step of writeText(this.graphs, canvas, settings, seed, stops)) {
      yield { ...step, ids: [...canvas.body], text: this.#text(canvas.body, stops) };
    }
  }

  /** An answer up to its end, with a mark where masks are left. */
  #text(ids, stops) {
    const end = ids.findIndex((id) => stops.includes(id));
    const runs = [[]];
    for (const id of end < 0 ? ids : ids.slice(0, end)) {
      if (id === this.vocabulary.special.mask) runs.push([]);
      else runs.at(-1).push(id);
    }
    return runs.map((run) => this.vocabulary.decode(run)).join("░").trim();
  }

  #fits(canvas, what) {
    const [length, longest] = [canvas.row(canvas.branches[0]).length, this.manifest.architecture.max_sequence_length];
    if (length > longest) throw new Error(`${what} takes ${length} tokens and the model reads ${longest}; shorten it`);
  }
}

const SHARED = ["steps", "guidance", "temperature", "law"];
const TEXT = [...SHARED, "answer_length", "block_length", "order", "cache", "threshold"];
const CACHES = ["none", "prefix", "dual"];
const IMAGE = [...SHARED, "schedule", "sampling_temperature"];

function sensible(settings, known) {
  const { law, cache } = settings;
  const other = Object.keys(settings).find((name) => !known.includes(name));
  if (other) throw new Error(`this page does not decode with "${other}"; leave it out, or use the Python runtime`);
  if (cache && !CACHES.includes(cache)) {
    throw new Error(`this page does not decode with the cache "${cache}"; use one of ${CACHES.join(", ")}, or the Python runtime`);
  }
  if (law !== "sensible") throw new Error(`this page decodes by the law "sensible", not "${law}"; see docs/bundle.md`);
}
