// Philox4x32-10 as docs/bundle.md addresses it: (seed, stream, step, row, position) gives one number, bit for bit the one
// that the Python runtime draws. It knows nothing of what a number is for.

export const Stream = Object.freeze({ textToken: 0, textOrder: 1, imageCode: 2, imageConfidence: 3 });

const f = Math.fround;

/** Ten rounds over a counter of four words with the two words of a key: four words, each 0 .. 2^32 - 1. */
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = product(0xd2511f53, c0);
    const [high1, low1] = product(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The high and the low word of the 64-bit product of two words: a double cannot hold it, four products of halves can. */
function product(a, b) {
  const [aHigh, aLow, bHigh, bLow] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const other = aLow * bHigh + (middle & 0xffff);
  return [(aHigh * bHigh + Math.floor(middle / 65536) + Math.floor(other / 65536)) >>> 0, Math.imul(a, b) >>> 0];
}

/** One float32 strictly between 0 and 1 for each position; the seed is a BigInt from 0 to 2^64 - 1. */
export function uniform(seed, stream, step, row, positions) {
  if (seed < 0n || seed >= 1n << 64n) throw new Error(`the seed ${seed} is out of range; use a whole number from 0 to 2^64 - 1`);
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  return Float32Array.from(positions, (position) => {
    const word = philox([Math.floor(position / 4), row, step, stream], key)[position % 4];
    return ((word >>> 9) + 0.5) / 2 ** 23;
  });
}

/** Standard Gumbel noise of a uniform number, every operation rounded to float32. */
export function gumbel(u) {
  const tiny = f(1e-20);
  const inner = f(-f(Math.log(Math.max(u, tiny))));
  return f(-f(Math.log(Math.max(inner, tiny))));
}
