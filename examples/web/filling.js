// Answers of which a part is given: from pieces and holes to rows of ids, and from written rows back to a text and its spans. A row
// is { ids, holes, pieces, plain }: masks where a model writes; of each hole { start, stop, space }; the texts around the holes, one
// more than there are. What is behind the last piece is in no text; plain: nothing is given. Models are none of its business.

export const allMasked = (length, mask) => ({
  ids: new Array(length).fill(mask),
  holes: [{ start: 0, stop: length, space: false }],
  pieces: ["", ""],
  plain: true,
});

/** An answer that is given as ids. */
export function rowOfIds(ids, mask, decode) {
  const [holes, pieces] = [[], []];
  for (let start = 0, stop = 0; start < ids.length; start = stop) {
    const masked = ids[start] === mask;
    while (stop < ids.length && (ids[stop] === mask) === masked) stop++;
    if (!masked) pieces.push(decode(ids.slice(start, stop)));
    else if (holes.push({ start, stop, space: false }) > pieces.length) pieces.push("");
  }
  if (pieces.length === holes.length) pieces.push("");
  return { ids: [...ids], holes, pieces, plain: ids.every((id) => id === mask) };
}

const encoded = (piece, space, encode) => encode(space ? piece.slice(0, -1) : piece);

/** A text without holes as the beginning of an answer of so many tokens in all, or of more where it is that long. */
export function beginning({ pieces: [piece] }, encode, length, mask) {
  const space = piece.endsWith(" ");
  const given = encoded(piece, space, encode);
  const ids = [...given, ...new Array(Math.max(0, length - given.length)).fill(mask)];
  return { ids, holes: [{ start: given.length, stop: ids.length, space }], pieces: [piece, ""], plain: false };
}

/**
 * A text with holes as a whole answer: a row for every combination of lengths, shortest first, and behind each the `end` of a turn
 * and then `filler` up to whole blocks of the longest, which is what follows an answer in training.
 */
export function wholeAnswers({ pieces, holes }, encode, end, filler, blockLength, mask) {
  const given = pieces.map((piece, number) => encoded(piece, holes[number]?.space, encode));
  const longest = [...given.map(({ length }) => length), ...holes.map(({ most }) => most)].reduce((a, b) => a + b) + end.length;
  const length = Math.ceil(longest / blockLength) * blockLength;
  return combinations(holes).map((lengths) => {
    const [ids, places] = [[...given[0]], []];
    lengths.forEach((count, number) => {
      places.push({ start: ids.length, stop: ids.length + count, space: holes[number].space });
      ids.push(...new Array(count).fill(mask), ...given[number + 1]);
    });
    ids.push(...end);
    ids.push(...new Array(length - ids.length).fill(filler));
    return { ids, holes: places, pieces, plain: false };
  });
}

/** Every choice of a length for each hole, by their sum and then from the left. */
function combinations(holes) {
  let found = [[]];
  for (const { least, most } of holes) {
    const lengths = Array.from({ length: most - least + 1 }, (_, more) => least + more);
    found = found.flatMap((before) => lengths.map((length) => [...before, length]));
  }
  const sum = (lengths) => lengths.reduce((a, b) => a + b, 0);
  return found.sort((a, b) => sum(a) - sum(b)); // sorting is stable
}

/** How many ids stand in a hole up to its end. */
function lengthOf({ start, stop }, ids, stops) {
  const end = ids.slice(start, stop).findIndex((id) => stops.includes(id));
  return end < 0 ? stop - start : end;
}

/** The mean log probability of what stands in a row's holes; of a row with an empty hole the least. */
export function likeliness({ holes }, ids, logProbabilities, stops) {
  const lengths = holes.map((hole) => lengthOf(hole, ids, stops));
  if (lengths.includes(0)) return -Infinity;
  const all = holes.flatMap(({ start }, number) => logProbabilities.slice(start, start + lengths[number]));
  return all.reduce((sum, one) => sum + one, 0) / all.length;
}

/**
 * { text, spans, complete } of a row with so many ids written, with `mark` for each mask that is left. A span is what stands in a
 * hole: { start, stop, text, ids, logProbability, mean }. complete: whether the answer came to its end.
 */
export function readRow({ holes, pieces, plain }, ids, logProbabilities, decode, stops, mask, mark) {
  let text = pieces[0];
  const spans = holes.map((hole, number) => {
    const length = lengthOf(hole, ids, stops);
    const own = ids.slice(hole.start, hole.start + length);
    const all = between(own, mask).map(decode).join(mark);
    const words = hole.space && all.startsWith(" ") ? all.slice(1) : all;
    const logProbability = logProbabilities.slice(hole.start, hole.start + length).reduce((sum, one) => sum + one, 0);
    const [start, stop] = [text.length, text.length + words.length];
    text += words + pieces[number + 1];
    return { start, stop, text: words, ids: own, logProbability, mean: logProbability / Math.max(1, length) };
  });
  const { start, stop } = holes.at(-1);
  const complete = stop < ids.length || ids.slice(start).some((id) => stops.includes(id));
  return { text: plain ? text.trim() : text, spans: plain ? [] : spans, complete };
}

/** The runs of ids between masks. */
function between(ids, mask) {
  const runs = [[]];
  for (const id of ids) {
    if (id === mask) runs.push([]);
    else runs.at(-1).push(id);
  }
  return runs;
}
