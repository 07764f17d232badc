// The modules of examples/web in node, for tests that need no browser: a JSON job a line on standard input, a JSON result a line
// on standard output. A bundle is a folder. What is right is said by the tests.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

globalThis.document = { baseURI: "file:///" };
globalThis.fetch = async (url) => new Response(readFileSync(url));
const web = new URL("../../examples/web/", import.meta.url);
const { Model } = await import(new URL("model.js", web));
const { readPartial } = await import(new URL("partial.js", web));

let model = null;

/** What a decode comes to, and for each step which places it wrote, row by row. before: ids before the answer. */
async function written(steps, before = 0) {
  const [positions, log_probabilities] = [[], []];
  let last;
  for await (last of steps) {
    positions.push(last.written.flatMap((own) => Array.from(own.keys(), (place) => before + place)));
    log_probabilities.push(...last.written.flatMap((own) => Array.from(own.values())));
  }
  const { ids, text, complete } = last;
  const spans = last.spans.map(({ logProbability, ...rest }) => ({ ...rest, log_probability: logProbability }));
  const choices = (last.choices ?? []).map(likely);
  return { ids, text, complete, spans, choices, positions, log_probabilities };
}

const likely = ({ logLikelihood, ...rest }) => ({ ...rest, log_likelihood: logLikelihood });

async function choose({ prompt, answers, choices, settings }) {
  const { index, ids, choices: all } = await model.choose(prompt, answers, choices, settings);
  return { index, ids, choices: all.map(likely) };
}

function partial({ text, specials }) {
  const { pieces, holes } = readPartial(text, specials);
  return { pieces, holes: holes.map(({ least, most, space }) => [least, most, Number(space)]) };
}

const JOBS = {
  partial,
  load: async ({ folder }) => ({ resolution: (model = await Model.open(folder)).resolution }),
  complete: ({ prompt, answer, settings, seed }) =>
    written(model.complete(prompt, answer, settings, BigInt(seed ?? 0)), prompt.length),
  choose,
  chat: ({ messages: [{ content }], settings, seed, answer, choices }) =>
    written(
      model.ask(content, null, settings ?? undefined, BigInt(seed ?? 0), answer, choices),
      model.vocabulary.questionPrompt(content).length,
    ),
  fill: ({ text, settings, seed, choices }) =>
    written(model.fill(text, settings ?? undefined, BigInt(seed ?? 0), choices), model.vocabulary.textPrompt().length),
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
