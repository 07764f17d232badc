// The settings that this page decodes with, in two layers: what a user turns, and in `acceleration` what saves work.
// Whatever else is set would change the result, so it is refused by its name. decoding.js says how each is used.

const DEFAULTS = {
  text: {
    answer_length: 128,
    steps: 64,
    block_length: 32,
    temperature: 0,
    guidance: 0,
    order: "low_confidence",
    mode: "default",
    acceleration: { cache: "none", threshold: null },
  },
  image: {
    steps: 15,
    guidance: 3.5,
    schedule: "cosine",
    temperature: 1,
    sampling_temperature: 1,
    mode: "default",
    acceleration: {},
  },
};
const CHOICES = { mode: ["default"], order: ["low_confidence", "random"], cache: ["none", "prefix", "dual"] };
const RENAMED = {
  law: "mode",
  reach: "lookahead",
  drift: "refresh_drift",
  suffix: "suffix_window",
  draft: "speculative_steps",
  settle: "kv_commit_every",
  shortlist: "candidate_ratio",
};

/** Every setting of a "text" or an "image" from those given. Throws for one that the page does not decode with. */
export function complete(kind, given) {
  const { acceleration: layer, ...defaults } = DEFAULTS[kind];
  const { acceleration = {}, ...values } = given;
  if (acceleration?.constructor !== Object) throw new Error(`acceleration is "${acceleration}"; use an object`);
  const outside = Object.keys(values).find((name) => Object.hasOwn(layer, name));
  if (outside) throw new Error(`"${outside}" stands in "acceleration" and not beside it`);
  return { ...completeLayer(values, defaults), acceleration: completeLayer(acceleration, layer) };
}

function completeLayer(values, defaults) {
  for (const [name, value] of Object.entries(values)) {
    if (Object.hasOwn(RENAMED, name)) throw new Error(`"${name}" is called "${RENAMED[name]}" now`);
    if (!Object.hasOwn(defaults, name)) {
      throw new Error(`this page does not decode with "${name}"; leave it out, or use the Python runtime`);
    }
    if (Object.hasOwn(CHOICES, name) && !CHOICES[name].includes(value)) {
      const choices = CHOICES[name].join(", ");
      throw new Error(`this page decodes with ${name} ${choices}, not "${value}"; use that, or the Python runtime`);
    }
  }
  return { ...defaults, ...values };
}
