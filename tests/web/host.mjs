// The modules of examples/web in node, for tests that need no browser: a JSON job a line on standard input, a JSON result a line
// on standard output. A bundle is a folder. What is right is said by the tests.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

globalThis.document = { baseURI: "file:///" };
globalThis.fetch = async (url) => new Response(readFileSync(url));
const web = new URL("../../examples/web/", import.meta.url);
const { Model } = await import(new URL("model.js", web));

let model = null;

/** The ids at the end of a decode, and for each step which places of the row it wrote. */
async function written(steps, before = 0) {
  const [positions, log_probabilities] = [[], []];
  let step = { ids: [], text: "" };
  for await (step of steps) {
    positions.push(step.positions.map((place) => before + place));
    log_probabilities.push(...step.logProbabilities);
  }
  return { ids: step.ids, text: step.text, positions, log_probabilities };
}

async function choose({ prompt, answer, choices, settings, grows }) {
  const { index, ids, choices: all } = await model.choose(prompt, answer, choices, settings, grows);
  return { index, ids, choices: all.map(({ logLikelihood, ...rest }) => ({ ...rest, log_likelihood: logLikelihood })) };
}

const JOBS = {
  load: async ({ folder }) => ({ resolution: (model = await Model.open(folder)).resolution }),
  complete: ({ prompt, answer, settings, seed }) =>
    written(model.complete(prompt, answer, settings, BigInt(seed ?? 0)), prompt.length),
  choose,
};

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  let result;
  try {
    result = await JOBS[job.op](job);
  } catch (fault) {
    result = { error: fault.message };
  }
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
