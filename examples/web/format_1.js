// What format 1 of bundle.json does not say, and what it calls the settings that this page decodes with. It checks names;
// values are checked in settings.js.

/** What a bundle of format 1 is: of the family of MMaDA, with its rows. */
export const IMPLIED = {
  family: "mmada",
  needs: [],
  knows: {},
  rows: {
    message: ["start_header", { text: "{role}" }, "end_header", { text: "\n{content}" }, "eot"],
    chat: ["bos", "{messages}", "start_header", { text: "assistant" }, "end_header", { text: "\n" }, "{masks}"],
    ask: ["mmu", "soi", "{codes}", "eoi", "{chat}"],
    paint: ["t2i", "bos", "{prompt}", "eos", "soi", "{codes}", "eoi"],
    unconditional: ["t2i", "bos", "eos", "soi", "{codes}", "eoi"],
  },
};

const same = (...names) => Object.fromEntries(names.map((name) => [name, name]));
const BOTH = { ...same("steps", "guidance", "temperature"), law: "mode" };
const SAVING = { cache: "acceleration.cache", threshold: "acceleration.threshold" };
const NAMES = {
  text: { ...BOTH, ...same("answer_length", "block_length", "order"), ...SAVING },
  image: { ...BOTH, ...same("schedule", "sampling_temperature") },
};

/** Settings of format 1 as format 2 says them. Throws for one that the page does not decode with, by that name. */
export function translated(kind, settings) {
  const result = { acceleration: {} };
  for (const [name, value] of Object.entries(settings)) {
    if (!Object.hasOwn(NAMES[kind], name)) {
      throw new Error(`this page does not decode with "${name}"; leave it out, or use the Python runtime`);
    }
    const [first, second] = NAMES[kind][name].split(".");
    if (second) result[first][second] = value;
    else result[first] = name === "law" && value === "sensible" ? "default" : value;
  }
  return result;
}
