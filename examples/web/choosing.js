// How likely a choice is in a hole of a text: written by the order in which the loop would write, a place a forward, every id
// counted with its log probability at that moment. No caches, and of settings guidance alone.

import { candidatesOf, runForward, textCanvas } from "./decoding.js";
import { mostConfident } from "./schedules.js";

const MOST = 64; // choices
const GREEDY = { temperature: 0 };

/**
 * The likeliest of a few choices of ids at the one hole of an answer, a run of masks. `answers`: one for all choices, or one for
 * each. The first of equally likely ones. Returns { index, scored, probabilities }: which it is, every choice as `scoreChoice`
 * gives it, and the softmax of their log likelihoods.
 */
export async function choose(graphs, prompt, answers, choices, { guidance, mask, stops }) {
  checkChoices(answers, choices, mask);
  const scored = [];
  for (const [number, choice] of choices.entries()) {
    const answer = answers[answers.length === 1 ? 0 : number];
    scored.push(await scoreChoice(graphs, prompt, answer, choice, guidance, mask, stops));
  }
  const likelihoods = scored.map(({ logLikelihood }) => logLikelihood);
  const [best] = mostConfident(likelihoods, 1);
  const weights = likelihoods.map((likelihood) => Math.exp(likelihood - likelihoods[best]));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return { index: best, scored, probabilities: weights.map((weight) => weight / total) };
}

/** From and to before which place of an answer its one hole lies. */
function holeOf(answer, mask) {
  const [start, last] = [answer.indexOf(mask), answer.lastIndexOf(mask)];
  if (start >= 0 && answer.slice(start, last + 1).every((id) => id === mask)) return [start, last + 1];
  throw new Error("choices are for one hole, a run of masks, and the answer has none or more; leave one");
}

function checkChoices(answers, choices, mask) {
  if (!(choices.length >= 1 && choices.length <= MOST)) throw new Error(`there are ${choices.length} choices; give 1 to ${MOST}`);
  if (answers.length !== 1 && answers.length !== choices.length) {
    throw new Error(`there are ${choices.length} choices and ${answers.length} answers; give one for all, or one for each`);
  }
  choices.forEach((choice, index) => {
    const [number, [start, stop]] = [index + 1, holeOf(answers[answers.length === 1 ? 0 : index], mask)];
    if (!choice.length || choice.includes(mask)) throw new Error(`choice ${number} is empty or holds the mask; give ids of text`);
    const twin = choices.findIndex((other) => `${other}` === `${choice}`) + 1;
    if (twin < number) throw new Error(`choices ${twin} and ${number} are the same tokens; leave one out`);
    if (choice.length <= stop - start) return;
    throw new Error(`choice ${number} takes ${choice.length} tokens and the hole has ${stop - start}; make the hole longer`);
  });
}

/**
 * Write `choice` into the hole of an answer. Returns { ids, written, logLikelihood, modelCalls }: the answer with it, where behind
 * an end in the answer's last hole masks are left, and log probabilities by place.
 */
async function scoreChoice(graphs, prompt, answer, choice, guidance, mask, stops) {
  const [first, stop] = holeOf(answer, mask);
  const [end, last] = [first + choice.length, stop === answer.length]; // last: nothing is given behind the hole
  const canvas = textCanvas(prompt, answer, mask, guidance > 0);
  const open = canvas.masked(Math.min(end + 1, stop));
  const scores = new Map();
  let modelCalls = 0;
  for (; open.length; modelCalls++) {
    const { hidden } = await runForward(graphs, canvas, open);
    const candidates = await candidatesOf(graphs, canvas, { ...GREEDY, guidance }, 0n, modelCalls, open, hidden);
    const [best] = mostConfident(candidates.logProbability, 1);
    const logits = (await graphs.logits("text", hidden, guidance))[best];
    const [place] = open.splice(best, 1);
    const logProbability = logSoftmax(logits, mask);
    if (place < end) {
      canvas.body[place] = choice[place - first];
      scores.set(place, logProbability([choice[place - first]]));
    } else {
      const token = [...stops].sort((a, b) => logits[b] - logits[a] || a - b)[0];
      canvas.body.fill(token, place, last ? place + 1 : stop);
      for (let closed = place + 1; !last && closed < stop; closed++) scores.set(closed, 0);
      scores.set(place, logProbability(stops));
    }
  }
  const written = new Map(Array.from(scores).sort(([a], [b]) => a - b));
  const logLikelihood = Array.from(written.values()).reduce((sum, score) => sum + score, 0);
  return { ids: canvas.body, written, logLikelihood, modelCalls };
}

/** A function: the log probability of any of some ids, among all ids but the mask. */
function logSoftmax(logits, mask) {
  const others = Float64Array.from(logits);
  others[mask] = -Infinity;
  const peak = others.reduce((most, value) => Math.max(most, value), -Infinity);
  const total = Math.log(others.reduce((sum, value) => sum + Math.exp(value - peak), 0));
  return (ids) =>
    (ids.length === 1 ? others[ids[0]] - peak : Math.log(ids.reduce((sum, id) => sum + Math.exp(others[id] - peak), 0))) - total;
}
