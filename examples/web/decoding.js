// The two loops of docs/bundle.md as async generators of steps: pictures all at once, text block by block. They know a
// canvas, graphs and random numbers; tokenizers, pixels and pages are none of their business.

import { without } from "./graphs.js";
import * as laws from "./laws.js";
import { gumbel, Stream, uniform } from "./philox.js";

const LEAST = Math.fround(Math.log(Math.fround(1e-20)));

/**
 * What is being written: `body` (codes or an answer, as tokens) stands between `before` and `after`. With guidance there
 * is a second branch that has another `before`.
 */
export class Canvas {
  constructor(body, branches, mask) {
    [this.body, this.branches, this.mask] = [body, branches, mask];
  }

  /** Places of the body that are still masks, below `stop`. */
  masked(stop = this.body.length) {
    return Array.from(this.body.keys()).filter((place) => place < stop && this.body[place] === this.mask);
  }

  row({ before, after }) {
    return [...before, ...this.body, ...after];
  }
}

/** Hidden states of the body's `places`, a tensor a branch, over whole rows or over what `memory` leaves to compute. */
async function read(graphs, canvas, places, memory = null, keep = false) {
  const [hidden, kept] = [[], []];
  for (const [number, branch] of canvas.branches.entries()) {
    const shift = branch.before.length;
    const window = memory && { first: shift + memory.first, last: shift + memory.last, past: memory.pasts[number] };
    const found = await graphs.forward(canvas.row(branch), { ...window, keep, rows: places.map((place) => shift + place) });
    hidden.push(found.hidden);
    kept.push(found.kept);
  }
  return { hidden, kept };
}

/**
 * Draw the masked codes in settings.steps steps. Yields { index, of, remaining, codes, masked, seconds } a step: `codes`
 * is the picture if everything in `masked` were taken at its present guess.
 */
export async function* drawPicture(graphs, canvas, settings, seed, codeOffset) {
  const started = performance.now();
  const unknown = canvas.masked().length;
  if (settings.steps > unknown) throw new Error(`${settings.steps} steps for ${unknown} codes: use at most ${unknown} steps`);
  const plan = laws.maskedAfter(settings.schedule, unknown, settings.steps);
  const noise = laws.noiseTemperatures(settings.temperature, settings.steps);
  for (let k = 0; k < settings.steps; k++) {
    const open = canvas.masked();
    const guess = [...canvas.body];
    const confidence = new Float32Array(guess.length).fill(Infinity);
    if (open.length) await guessCodes(graphs, canvas, settings, seed, k, open, guess, confidence, codeOffset);
    const shaken = noise[k] > 0 ? uniform(seed, Stream.imageConfidence, k, 0, guess.keys()) : null;
    const scale = Math.fround(noise[k]);
    if (shaken) confidence.forEach((sure, place) => (confidence[place] = sure + Math.fround(scale * gumbel(shaken[place]))));
    const again = laws.leastConfident(confidence, laws.leftMasked(open.length, plan[k], settings.steps - 1 - k));
    canvas.body = guess.map((token, place) => (again[place] ? canvas.mask : token));
    const masked = canvas.masked();
    const codes = guess.map((token) => token - codeOffset);
    yield { index: k, of: settings.steps, remaining: masked.length, codes, masked, seconds: seconds(started) };
  }
}

async function guessCodes(graphs, canvas, settings, seed, k, open, guess, confidence, codeOffset) {
  const { guidance, sampling_temperature: temperature } = settings;
  const { hidden } = await read(graphs, canvas, open);
  const draws = temperature > 0 ? uniform(seed, Stream.imageCode, k, 0, open) : null;
  const { token, logProbability } = await graphs.predict("image", hidden, guidance, temperature, draws);
  open.forEach((place, q) => {
    guess[place] = token[q] + codeOffset;
    confidence[place] = Math.max(logProbability[q], LEAST);
  });
}

/**
 * Write an answer block by block, the surest places first, until a block holds one of the tokens `stops`. Yields
 * { index, places, remaining, seconds } a step; the answer as it stands is canvas.body.
 */
export async function* writeText(graphs, canvas, settings, seed, stops) {
  const started = performance.now();
  let number = 0;
  for (const block of laws.blocks(settings)) {
    const quota = laws.transfers(canvas.masked(block.stop).length, block.steps);
    let memory = null;
    for (let turn = 0; ; turn++, number++) {
      const places = canvas.masked(block.stop);
      if (!places.length) break;
      const keep = settings.cache !== "none" && turn === 0;
      const { hidden, kept } = await read(graphs, canvas, places, memory, keep);
      const guess = await guessTokens(graphs, canvas, settings, seed, number, places, hidden);
      const chosen = choose(guess, places, settings, seed, number, quota[turn] ?? places.length);
      for (const q of chosen) canvas.body[places[q]] = guess.token[q];
      if (keep) memory = remember(canvas, kept, block, settings.cache);
      const written = chosen.map((q) => places[q]);
      yield { index: number, places: written, remaining: canvas.masked().length, seconds: seconds(started) };
    }
    if (canvas.body.slice(0, block.stop).some((token) => stops.includes(token))) return;
  }
}

async function guessTokens(graphs, canvas, settings, seed, number, places, hidden) {
  const { guidance, temperature } = settings;
  const draws = temperature > 0 ? uniform(seed, Stream.textToken, number, 0, places) : null;
  const guess = await graphs.predict("text", hidden, guidance, temperature, draws);
  if (!guess.token.includes(canvas.mask)) return guess;
  const logits = await graphs.logits("text", hidden, guidance);
  guess.token.forEach((token, q) => {
    if (token === canvas.mask) [guess.token[q], guess.logProbability[q]] = bestBut(canvas.mask, logits[q]);
  });
  return guess;
}

/** The most probable token that is not `mask`, and its log probability among the others. */
function bestBut(mask, logits) {
  const others = Float64Array.from(logits);
  others[mask] = -Infinity;
  const best = others.reduce((found, value, token) => (value > others[found] ? token : found), mask ? 0 : 1);
  return [best, -Math.log(others.reduce((sum, value) => sum + Math.exp(value - others[best]), 0))];
}

function choose(guess, places, settings, seed, number, count) {
  const random = settings.order === "random";
  const confidence = random ? uniform(seed, Stream.textOrder, number, 0, places) : guess.logProbability;
  if (settings.threshold !== null) return laws.aboveThreshold(confidence, settings.threshold);
  return laws.mostConfident(confidence, count);
}

function remember(canvas, kept, block, policy) {
  const pasts = canvas.branches.map(({ before, after }, number) => {
    const end = policy === "dual" ? before.length + block.stop : before.length + canvas.body.length + after.length;
    return without(kept[number], before.length + block.start, end);
  });
  const [{ after }] = canvas.branches;
  return { pasts, first: block.start, last: policy === "dual" ? block.stop : canvas.body.length + after.length };
}

const seconds = (started) => (performance.now() - started) / 1000;
