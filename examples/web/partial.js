// The notation of holes in a text: "[mask:3]" is one of three tokens, "[mask:*]" one of unknown length, "\[" a bracket. It is read
// into pieces and holes; ids and models are none of its business.

const MOST = 8; // tokens of [mask:*], where it does not say how many at most
const COMBINATIONS = 64; // of lengths, that are tried for one text
const LARGEST = 1 << 20;
const BRACKET = /\\?\[/g;
const HOLE = /\[mask(?::(\*)?([0-9]*))?\]/y;
const NAMED = /\[[\p{L}\p{N}_]+:(?:[0-9]+|\*[0-9]*)\]/uy;

/**
 * { pieces, holes } of a text, one piece more than holes. Of a hole { least, most, space }: how many tokens it may have, and
 * whether the space right before it is its own, which still stands at the end of the piece. Throws for a hole of no length,
 * another name, two holes side by side, one across a special token's spelling, and too many lengths to try.
 */
export function readPartial(text, specials = []) {
  const [pieces, holes] = [[], []];
  let [piece, rest] = ["", 0];
  for (const { 0: bracket, index } of text.matchAll(BRACKET)) {
    if (index < rest) continue;
    piece += text.slice(rest, index);
    rest = index + bracket.length;
    const written = bracket === "[" ? holeAt(text, index) : null;
    if (!written) {
      piece += "[";
      continue;
    }
    if (holes.length && ["", " "].includes(piece)) {
      throw new Error(`two holes stand side by side at ${written[0]}; write one hole of their length together`);
    }
    holes.push({ ...lengthsOf(written), space: piece.endsWith(" ") });
    pieces.push(piece);
    [piece, rest] = ["", index + written[0].length];
  }
  pieces.push(piece + text.slice(rest));
  checkSpecials(pieces, specials);
  const tried = holes.reduce((count, { least, most }) => count * (most - least + 1), 1);
  if (tried > COMBINATIONS) {
    const most = `${tried} combinations of lengths, and at most ${COMBINATIONS} are tried`;
    throw new Error(`the holes have ${most}; say fewer, as [mask:*4], or the length, as [mask:4]`);
  }
  return { pieces, holes };
}

/** A hole that begins at a bracket, null where the bracket is text. */
function holeAt(text, index) {
  [HOLE.lastIndex, NAMED.lastIndex] = [index, index];
  const [hole, named] = [HOLE.exec(text), NAMED.exec(text)];
  if (hole) return hole;
  if (!named && !text.startsWith("[mask", index)) return null;
  const found = named ? named[0] : text.slice(index, text.indexOf("]", index) + 1 || index + 12);
  throw new Error(`no hole is written ${shown(found)}; write [mask:3] or [mask:*], and \\[ for a bracket that is text`);
}

function shown(found) {
  const line = JSON.stringify(found);
  return line.length > 80 ? `${line.slice(0, 77)}...` : line;
}

function lengthsOf([written, star, digits]) {
  if (!star && !digits) {
    throw new Error(`${written} says no length; write [mask:3] for three tokens, or [mask:*] where you do not know`);
  }
  const count = digits ? Number(digits.slice(0, 8)) : MOST;
  if (count >= 1 && count <= LARGEST) return { least: star ? 1 : count, most: count };
  throw new Error(`${written} is a hole of ${digits} tokens; give 1 or more, and no more than the model reads`);
}

function checkSpecials(pieces, specials) {
  const whole = pieces.join("");
  let edge = 0;
  for (const piece of pieces.slice(0, -1)) {
    edge += piece.length;
    for (const special of specials) {
      const found = whole.indexOf(special, Math.max(0, edge - special.length + 1));
      if (found < 0 || found >= edge) continue;
      throw new Error(`a hole stands inside ${special}, which is one token; put it before or behind`);
    }
  }
}
