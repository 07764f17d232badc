// The rows of tokens that a task begins with, as bundle.json has them: lists of a special id's name, "{slot}" and
// { text }. Checked and filled here; where ids come from and what is written behind them is decided elsewhere.

const SLOT = /\{(\w+)\}/g;
const LAST = ["masks", "chat"]; // slots that end their row

// What stands in the rows that this page lays out, each once.
const SLOTS = {
  message: ["role", "content"],
  chat: ["messages", "masks"],
  ask: ["codes", "chat"],
  paint: ["prompt", "codes"],
  unconditional: ["codes"],
};

const slotOf = (element) => (typeof element === "string" ? element.match(/^\{(\w+)\}$/)?.[1] : undefined);

/** Throws for a row that cannot be filled. A row that is not there is missed when it is wanted. */
export function checkRows(rows, special) {
  for (const [name, slots] of Object.entries(SLOTS)) {
    if (Object.hasOwn(rows, name)) checkRow(name, rows[name], slots, special);
  }
}

function checkRow(name, row, slots, special) {
  const readable = (element) => typeof element.text === "string" || slotOf(element) || Object.hasOwn(special, element);
  const wrong = row.find((element) => !readable(element));
  if (wrong !== undefined) throw new Error(`the row "${name}" has an unknown element ${JSON.stringify(wrong)}`);
  const found = row.flatMap((element) => Array.from((element.text ?? element).matchAll(SLOT), ([, slot]) => slot));
  if (`${found.sort()}` !== `${[...slots].sort()}`) {
    throw new Error(`the row "${name}" must hold ${slots.join(" and ")}, each once; it holds ${found.join(", ")}`);
  }
  const early = row.slice(0, -1).find((element) => LAST.includes(slotOf(element)));
  if (early) throw new Error(`the row "${name}" must end with ${early}`);
}

/**
 * The ids of a row before and behind its slot `open`, whose content is not known yet. `filled` has the ids of the other
 * slots, `words` what stands for slots inside of texts. A prompt that begins with bos repeats no bos right before it.
 */
export function fillRow(rows, name, { special, encode }, { open, filled = {}, words = {} }) {
  if (!Object.hasOwn(rows, name)) {
    throw new Error(`this model has no row "${name}", so it cannot do this; it has ${Object.keys(rows).join(", ")}`);
  }
  const parts = { before: [], after: [] };
  let ids = parts.before;
  for (const element of rows[name]) {
    const slot = slotOf(element);
    const given = filled[slot];
    if (slot && slot === open) ids = parts.after;
    else if (slot) ids.push(...(slot === "prompt" && given[0] === special.bos && ids.at(-1) === special.bos ? given.slice(1) : given));
    else if (element.text !== undefined) ids.push(...encode(element.text.replace(SLOT, (_, word) => words[word])));
    else ids.push(special[element]);
  }
  return parts;
}
