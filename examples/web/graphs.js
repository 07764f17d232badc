// The graphs of a bundle on onnxruntime-web: a window of tokens in, predictions out, and pictures to codes and back. It
// knows tensors; which position is written next, and with which random number, is decided elsewhere.

import * as ort from "onnxruntime-web";

import { graphsOf } from "./bundle.js";

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.logLevel = "error";

const floats = (data, shape) => new ort.Tensor("float32", data, shape);
const integers = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);

const DAMAGED = " gives numbers that are not finite, so its weights are damaged; copy the bundle again";

export class Graphs {
  constructor(architecture, sessions) {
    this.shape = { layers: architecture.n_layers, heads: architecture.n_kv_heads, size: architecture.head_dim };
    this.sessions = sessions;
  }

  /** Open every graph; they share one file of weights, which the browser hands over as external data. */
  static async open({ manifest, files }) {
    const options = {
      executionProviders: ["wasm"],
      externalData: [{ path: "weights.bin", data: files.get("weights.bin") }],
    };
    const sessions = {};
    for (const graph of graphsOf(manifest)) {
      sessions[graph] = await ort.InferenceSession.create(files.get(manifest.graphs[graph].file), options);
    }
    return new Graphs(manifest.architecture, sessions);
  }

  /**
   * One forward over tokens[start .. stop - 1] of a row: hidden states of the positions `queries` (of the whole row), as
   * a tensor [1, Q, D], and with `keep` the keys and values of the window. `past` is what the window attends to beside itself.
   */
  async forward(tokens, { queries, start = 0, stop = tokens.length, past = null, keep = false }) {
    const { layers, heads, size } = this.shape;
    const width = stop - start;
    const { embeddings } = await this.sessions.embedder.run({ tokens: integers(tokens.slice(start, stop), [1, width]) });
    const positions = integers(Array.from({ length: width }, (_, i) => start + i), [1, width]);
    const feeds = { embeddings, positions, rows: integers(queries.map((query) => query - start), [1, queries.length]) };
    const kinds = ["key", "value"].flatMap((kind) => Array.from({ length: layers }, (_, layer) => `${kind}_${layer}`));
    for (const name of kinds) feeds[`past_${name}`] = past ? past[name] : floats(new Float32Array(0), [1, heads, 0, size]);
    const { hidden, ...kept } = await this.sessions.backbone.run(feeds, ["hidden", ...(keep ? kinds : [])]);
    return { hidden, kept: keep ? kept : null };
  }

  /**
   * A head over the hidden states of one branch or, with guidance, of the conditional and the unconditional one:
   * { token, logProbability } for each queried position. Without `draws` the most probable token is taken. Throws where the
   * model's numbers are not finite, in step `step` from 0.
   */
  async predict(head, branches, guidance, temperature, draws, step) {
    const feeds = headFeeds(branches, guidance, temperature, draws);
    const drawn = await this.sessions[`${head}_head`].run(feeds, ["token", "log_probability", "entropy"]);
    if (![drawn.log_probability, drawn.entropy].every(({ data }) => data.every(Number.isFinite))) {
      const cause = "so its weights are damaged or a setting is too large; copy the bundle again";
      throw new Error(`step ${step + 1}: the model's numbers are not finite, ${cause}`);
    }
    return { token: Array.from(drawn.token.data, Number), logProbability: Float32Array.from(drawn.log_probability.data) };
  }

  /** All logits of a head, a Float32Array for each queried position. */
  async logits(head, branches, guidance) {
    const { logits } = await this.sessions[`${head}_head`].run(headFeeds(branches, guidance, 0, null), ["logits"]);
    const columns = logits.dims.at(-1);
    return Array.from({ length: logits.dims[1] }, (_, q) => logits.data.subarray(q * columns, (q + 1) * columns));
  }

  /** Codes, row by row, to { data, width, height }: RGBA bytes, clamped and truncated as the document says. */
  async decodePicture(codes, [height, width]) {
    const { pixels } = await this.sessions.image_decoder.run({ codes: integers(codes, [1, height, width]) });
    if (!pixels.data.every(Number.isFinite)) throw new Error(`the image decoder${DAMAGED}`);
    const [, , rows, columns] = pixels.dims;
    const plane = rows * columns;
    const data = new Uint8ClampedArray(plane * 4).fill(255);
    for (let i = 0; i < plane; i++) for (let c = 0; c < 3; c++) data[i * 4 + c] = toByte(pixels.data[c * plane + i]);
    return { data, width: columns, height: rows };
  }

  /** RGBA bytes of a picture that has the model's own resolution to its codes, row by row. */
  async encodePicture({ data, width, height }) {
    const [plane, f] = [width * height, Math.fround];
    const pixels = new Float32Array(plane * 3);
    for (let i = 0; i < plane; i++) for (let c = 0; c < 3; c++) pixels[c * plane + i] = f(f(f(data[i * 4 + c] / 255) - 0.5) / 0.5);
    const { codes, magnitude } = await this.sessions.image_encoder.run({ pixels: floats(pixels, [1, 3, height, width]) });
    if (magnitude && !magnitude.data.every(Number.isFinite)) throw new Error(`the image encoder${DAMAGED}`);
    return Array.from(codes.data, Number);
  }
}

/** Everything of kept keys and values but the positions start .. stop - 1: what a window over those attends to. */
export function without(kept, start, stop) {
  return Object.fromEntries(Object.entries(kept).map(([name, tensor]) => [name, cut(tensor, start, stop)]));
}

function cut(tensor, start, stop) {
  const [, heads, length, size] = tensor.dims;
  const left = length - (stop - start);
  const data = new Float32Array(heads * left * size);
  for (let head = 0; head < heads; head++) {
    const rows = tensor.data.subarray(head * length * size, (head + 1) * length * size);
    data.set(rows.subarray(0, start * size), head * left * size);
    data.set(rows.subarray(stop * size), (head * left + start) * size);
  }
  return floats(data, [1, heads, left, size]);
}

function headFeeds(branches, guidance, temperature, draws) {
  const [, queried, width] = branches[0].dims;
  const hidden = new Float32Array(branches.length * queried * width);
  branches.forEach((branch, r) => hidden.set(branch.data, r * queried * width));
  const mix = branches.length === 1 ? [1] : [1 + guidance, -guidance];
  return {
    hidden: floats(hidden, [branches.length, queried, width]),
    mix: floats(Float32Array.from(mix), [1, branches.length]),
    temperature: floats(Float32Array.of(temperature), []),
    uniform: floats(draws ?? new Float32Array(queried).fill(0.5), [1, queried]),
  };
}

function toByte(pixel) {
  const half = Math.fround(Math.fround(pixel + 1) / 2);
  return Math.trunc(Math.fround(Math.min(Math.max(half, 0), 1) * 255));
}
