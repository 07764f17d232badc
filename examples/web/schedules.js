// Schedules and selection of docs/bundle.md as pure functions of numbers: how much stays masked, how noisy a choice is, which
// candidates are kept. float32 where the document says so. No model, no tokens, no randomness.

const f = Math.fround;
const LEAST = f(1e-6);

/** Tokens to write at each step so that all masks are gone at the end: equal shares, the rest first. */
export function transfers(masks, steps) {
  return Array.from({ length: steps }, (_, step) => Math.floor(masks / steps) + (step < masks % steps ? 1 : 0));
}

/**
 * The blocks of the places that are to be written, ascending, however many: start .. stop - 1 of the answer, in `steps` steps.
 * The settings' steps are for `answer_length` of them, and fewer take their share.
 */
export function blocks({ answer_length: length, block_length: size, steps }, places) {
  const count = Math.ceil(places.length / size);
  return transfers(Math.ceil((steps * places.length) / length), count).map((share, block) => {
    const own = places.slice(block * size, (block + 1) * size);
    return { start: own[0], stop: own.at(-1) + 1, steps: Math.max(1, Math.min(share, own.length)) };
  });
}

const logistic = (x) => f(1 / f(1 + f(Math.exp(-x))));

const SCHEDULES = {
  cosine: (r) => f(Math.cos(f(f(r * f(Math.PI)) * 0.5))),
  linear: (r) => Math.max(f(1 - r), LEAST),
  sigmoid: (r) => {
    const [low, high] = [logistic(-3), logistic(3)];
    return Math.max(f(f(high - logistic(f(f(r * 6) - 3))) / f(high - low)), LEAST);
  },
};

/** A function: share done (0..1) -> share still masked. Names: cosine, linear, sigmoid, pow<exponent>. */
export function schedule(name) {
  if (Object.hasOwn(SCHEDULES, name)) return SCHEDULES[name];
  const exponent = name.startsWith("pow") && name.length > 3 ? Number(name.slice(3)) : NaN;
  if (exponent > 0 && Number.isFinite(exponent)) return (r) => Math.max(f(1 - f(Math.pow(r, f(exponent)))), LEAST);
  throw new Error(`no schedule is called "${name}"; use cosine, linear, sigmoid or pow2 (any exponent)`);
}

/** floor(tokens * schedule(k / steps)) for k = 1..steps, before any clamp. */
export function maskedAfter(name, tokens, steps) {
  const shareMasked = schedule(name);
  return Array.from({ length: steps }, (_, k) => Math.floor(f(tokens * shareMasked(f((k + 1) / steps)))));
}

/** Codes that go back to mask at a step: fewer than now, one at least for each later step, none after the last. */
export function leftMasked(masked, planned, stepsLeft) {
  const wanted = stepsLeft > 0 ? Math.max(planned, stepsLeft) : 0;
  return Math.max(Math.min(masked - 1, wanted), 0);
}

/** Scale of the confidence noise at each step, in double precision: each step k of T multiplies it by 1 - k / T. */
export function noiseTemperatures(start, steps) {
  let product = 1;
  return Array.from({ length: steps }, (_, k) => start * (product *= 1 - (k + 1) / steps));
}

/** Places of the `count` largest numbers, the leftmost first among equals, in ascending order. */
export function mostConfident(confidence, count) {
  const order = Array.from(confidence.keys()).sort((a, b) => confidence[b] - confidence[a] || a - b);
  return order.slice(0, count).sort((a, b) => a - b);
}

/** Places at least as probable as the threshold, and always the most probable. */
export function aboveThreshold(confidence, threshold) {
  const least = f(Math.log(threshold));
  const [best] = mostConfident(confidence, 1);
  return Array.from(confidence.keys()).filter((place) => place === best || confidence[place] >= least);
}

/** What goes back to mask: strictly below the count-th smallest confidence (from 0), so fewer on ties. */
export function leastConfident(confidence, count) {
  const cutoff = Float32Array.from(confidence).sort()[Math.min(count, confidence.length - 1)];
  return Array.from(confidence, (value) => value < cutoff);
}
