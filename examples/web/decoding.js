// The two loops of docs/bundle.md as async generators of steps: pictures all at once, text block by block. They know a
// canvas, graphs and random numbers; tokenizers, pixels and pages are none of their business.

import { without } from "./graphs.js";
import { gumbel, Stream, uniform } from "./philox.js";
import * as schedules from "./schedules.js";

const LEAST = Math.fround(Math.log(Math.fround(1e-20)));

/**
 * What is being written: `body` (codes or an answer, as tokens) stands between `before` and `after`. With guidance there
 * is a second branch that has another `before`.
 */
export class Canvas {
  constructor(body, branches, mask) {
    [this.body, this.branches, this.mask] = [body, branches, mask];
    this.given = body.map((token) => token !== mask);
  }

  /** Where what stands behind the last given token begins. */
  get tail() {
    return this.given.lastIndexOf(true) + 1;
  }

  /** Positions of the body that are still masks, below `stop`. */
  masked(stop = this.body.length) {
    return Array.from(this.body.keys()).filter((position) => position < stop && this.body[position] === this.mask);
  }

  row({ before, after }) {
    return [...before, ...this.body, ...after];
  }
}

/** A prompt and the answer behind it, of which the masks are written. With guidance the other row has masks for the prompt. */
export function textCanvas(prompt, answer, mask, guided) {
  const prompts = [prompt, ...(guided ? [new Array(prompt.length).fill(mask)] : [])];
  return new Canvas([...answer], prompts.map((before) => ({ before, after: [] })), mask);
}

/** Hidden states of the body's `positions`, a tensor a branch, over whole rows or over what `context` leaves to compute. */
export async function runForward(graphs, canvas, positions, context = null, keep = false) {
  const [hidden, kept] = [[], []];
  for (const [number, branch] of canvas.branches.entries()) {
    const shift = branch.before.length;
    const window = context && { start: shift + context.start, stop: shift + context.stop, past: context.pasts[number] };
    const queries = positions.map((position) => shift + position);
    const forward = await graphs.forward(canvas.row(branch), { ...window, keep, queries });
    hidden.push(forward.hidden);
    kept.push(forward.kept);
  }
  return { hidden, kept };
}

/**
 * Draw the masked codes in settings.steps steps. Yields { index, totalSteps, remaining, predictedCodes, masked, seconds } a
 * step: `predictedCodes` is the picture if everything in `masked` were taken as it is predicted now.
 */
export async function* drawPicture(graphs, canvas, settings, seed, codeOffset) {
  const started = performance.now();
  const unknown = canvas.masked().length;
  if (settings.steps > unknown) throw new Error(`${settings.steps} steps for ${unknown} codes: use at most ${unknown} steps`);
  const plan = schedules.maskedAfter(settings.schedule, unknown, settings.steps);
  const noise = schedules.noiseTemperatures(settings.temperature, settings.steps);
  for (let k = 0; k < settings.steps; k++) {
    const open = canvas.masked();
    const tokens = [...canvas.body];
    const confidence = new Float32Array(tokens.length).fill(Infinity);
    if (open.length) await predictCodes(graphs, canvas, settings, seed, k, open, tokens, confidence, codeOffset);
    const draws = noise[k] > 0 ? uniform(seed, Stream.imageConfidence, k, 0, tokens.keys()) : null;
    const scale = Math.fround(noise[k]);
    if (draws) confidence.forEach((own, position) => (confidence[position] = own + Math.fround(scale * gumbel(draws[position]))));
    const again = schedules.leastConfident(confidence, schedules.leftMasked(open.length, plan[k], settings.steps - 1 - k));
    canvas.body = tokens.map((token, position) => (again[position] ? canvas.mask : token));
    const masked = canvas.masked();
    const predictedCodes = tokens.map((token) => token - codeOffset);
    const remaining = masked.length;
    yield { index: k, totalSteps: settings.steps, remaining, predictedCodes, masked, seconds: seconds(started) };
  }
}

async function predictCodes(graphs, canvas, settings, seed, k, open, tokens, confidence, codeOffset) {
  const { guidance, sampling_temperature: temperature } = settings;
  const { hidden } = await runForward(graphs, canvas, open);
  const draws = temperature > 0 ? uniform(seed, Stream.imageCode, k, 0, open) : null;
  const { token, logProbability } = await graphs.predict("image", hidden, guidance, temperature, draws, k);
  open.forEach((position, q) => {
    tokens[position] = token[q] + codeOffset;
    confidence[position] = Math.max(logProbability[q], LEAST);
  });
}

/**
 * Write the masks of answers of one length block by block, the most confident positions first, all rows in the same steps, until
 * after a block every one has one of the tokens `stops` behind all that is given. Yields { index, written, remaining, seconds } a
 * step: of every row a map of log probabilities by position, ascending. An answer as it stands is its canvas's body.
 */
export async function* writeText(graphs, canvases, settings, seed, stops) {
  const started = performance.now();
  const { cache } = settings.acceleration;
  const places = Array.from(canvases[0].body.keys()).filter((place) => canvases.some(({ given }) => !given[place]));
  let index = 0;
  for (const block of schedules.blocks(settings, places)) {
    const quotas = canvases.map((canvas) => schedules.transfers(canvas.masked(block.stop).length, block.steps));
    const contexts = canvases.map(() => null);
    for (let stepsDone = 0; ; stepsDone++, index++) {
      const open = canvases.map((canvas) => canvas.masked(block.stop));
      if (!open.some((positions) => positions.length)) break;
      const computesAll = cache !== "none" && stepsDone === 0;
      const written = [];
      for (const [row, canvas] of canvases.entries()) {
        written.push(new Map());
        if (!open[row].length) continue;
        const { hidden, kept } = await runForward(graphs, canvas, open[row], contexts[row], computesAll);
        const candidates = await candidatesOf(graphs, canvas, settings, seed, index, open[row], hidden, row);
        const count = quotas[row][stepsDone] ?? open[row].length;
        const chosen = choose(candidates, open[row], settings, seed, index, count, row);
        for (const q of chosen) canvas.body[open[row][q]] = candidates.token[q];
        if (computesAll) contexts[row] = cachedContext(canvas, kept, block, cache);
        const own = new Map(chosen.map((q) => [open[row][q], candidates.logProbability[q]]));
        closeHoles(canvas, stops, own);
        written[row] = new Map(Array.from(own).sort(([a], [b]) => a - b));
      }
      const remaining = canvases.reduce((sum, canvas) => sum + canvas.masked().length, 0);
      yield { index, written, remaining, seconds: seconds(started) };
    }
    if (canvases.every(({ body, tail }) => body.slice(tail, block.stop).some((token) => stops.includes(token)))) return;
  }
}

/**
 * A stop token that was written between two given tokens ends its hole: the masks behind it in the hole become that token, for
 * certain. `written`: log probabilities by position, ascending.
 */
function closeHoles(canvas, stops, written) {
  for (const place of [...written.keys()].filter((place) => place < canvas.tail && stops.includes(canvas.body[place]))) {
    for (let behind = place + 1; !canvas.given[behind]; behind++) {
      if (canvas.body[behind] !== canvas.mask) continue;
      canvas.body[behind] = canvas.body[place];
      written.set(behind, 0);
    }
  }
}

/** What a step may write at the positions that a forward queried: { token, logProbability }, never the mask. */
export async function candidatesOf(graphs, canvas, settings, seed, step, positions, hidden, row = 0) {
  const { guidance, temperature } = settings;
  const draws = temperature > 0 ? uniform(seed, Stream.textToken, step, row, positions) : null;
  const candidates = await graphs.predict("text", hidden, guidance, temperature, draws, step);
  if (!candidates.token.includes(canvas.mask)) return candidates;
  const logits = await graphs.logits("text", hidden, guidance);
  candidates.token.forEach((token, q) => {
    if (token === canvas.mask) [candidates.token[q], candidates.logProbability[q]] = bestBut(canvas.mask, logits[q]);
  });
  return candidates;
}

/** The most probable token that is not `mask`, and its log probability among the others. */
function bestBut(mask, logits) {
  const others = Float64Array.from(logits);
  others[mask] = -Infinity;
  const best = others.reduce((best, value, token) => (value > others[best] ? token : best), mask ? 0 : 1);
  return [best, -Math.log(others.reduce((sum, value) => sum + Math.exp(value - others[best]), 0))];
}

function choose(candidates, positions, settings, seed, step, count, row) {
  const random = settings.order === "random";
  const confidence = random ? uniform(seed, Stream.textOrder, step, row, positions) : candidates.logProbability;
  const { threshold } = settings.acceleration;
  if (threshold !== null) return schedules.aboveThreshold(confidence, threshold);
  return schedules.mostConfident(confidence, count);
}

function cachedContext(canvas, kept, block, policy) {
  const pasts = canvas.branches.map(({ before, after }, number) => {
    const end = policy === "dual" ? before.length + block.stop : before.length + canvas.body.length + after.length;
    return without(kept[number], before.length + block.start, end);
  });
  const [{ after }] = canvas.branches;
  return { pasts, start: block.start, stop: policy === "dual" ? block.stop : canvas.body.length + after.length };
}

const seconds = (started) => (performance.now() - started) / 1000;
