"""The notation of holes in a text: `[mask:3]` is one of three tokens, `[mask:*]` one of unknown length, `\\[` a bracket.

It reads the notation into pieces and holes, and says what is wrong with it. It knows no ids, no tokenizer and no model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmada_lite.errors import Error, shown

MOST = 8  # tokens of [mask:*], where it does not say how many at most
COMBINATIONS = 64  # of lengths, that are tried for one text
_ESCAPE = "\\["
_HOLE = re.compile(r"\[mask(?::(?P<star>\*)?(?P<length>[0-9]*))?\]")
_NAMED = re.compile(r"\[[A-Za-z]+:(?:[0-9]+|\*[0-9]*)\]")
_BRACKET = re.compile(r"\\?\[")
_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Hole:
    """Where a model writes: so many tokens, or (length None) up to `most`. space: the space right before it is its own, for
    words carry theirs."""

    length: int | None
    most: int
    space: bool

    @property
    def lengths(self) -> range:
        """What may be tried."""
        return range(1, self.most + 1) if self.length is None else range(self.length, self.length + 1)


@dataclass(frozen=True, slots=True)
class Partial:
    """A text with holes: piece, hole, piece and so on, one piece more than there are holes. The space that is a hole's own
    still stands at the end of the piece before it."""

    pieces: tuple[str, ...]
    holes: tuple[Hole, ...]

    @property
    def combinations(self) -> int:
        """Of lengths of its holes."""
        count = 1
        for hole in self.holes:
            count *= len(hole.lengths)
        return count


def read_partial(text: str, specials: Sequence[str] = ()) -> Partial:
    """The pieces and holes of a text. specials: spellings of special tokens, across which no hole may stand. Raises Error for
    a hole of no length, another name, two holes side by side, and too many lengths to try."""
    pieces, holes, piece, at = list[str](), list[Hole](), "", 0
    while at < len(text):
        bracket = _BRACKET.search(text, at)
        if bracket is None:
            break
        piece, at = piece + text[at : bracket.start()], bracket.end()
        if bracket.group() == _ESCAPE or not (written := _written(text, bracket.start())):
            piece += "["
            continue
        if holes and piece in ("", " "):
            raise Error(f"two holes stand side by side at {written.group()}; write one hole of their length together")
        holes.append(_hole(written, piece.endswith(" ")))
        pieces.append(piece)
        piece, at = "", written.end()
    partial = Partial((*pieces, piece + text[at:]), tuple(holes))
    _no_hole_in_a_special(partial, specials)
    if partial.combinations > COMBINATIONS:
        tried = f"{partial.combinations} combinations of lengths, and at most {COMBINATIONS} are tried"
        raise Error(f"the holes have {tried}; say fewer, as [mask:*4], or the length, as [mask:4]")
    return partial


def _written(text: str, start: int) -> "re.Match[str] | None":
    """A hole that begins at a bracket, None where the bracket is text."""
    if hole := _HOLE.match(text, start):
        return hole
    if (named := _NAMED.match(text, start)) or text.startswith("[mask", start):
        found = named.group() if named else text[start : text.find("]", start) + 1 or start + 12]
        raise Error(f"no hole is written {shown(found)}; write [mask:3] or [mask:*], and \\[ for a bracket that is text")
    return None


def _hole(written: "re.Match[str]", space: bool) -> Hole:
    star, digits = written["star"], written["length"]
    if not star and not digits:
        raise Error(f"{written.group()} says no length; write [mask:3] for three tokens, or [mask:*] where you do not know")
    count = int(digits[:8]) if digits else MOST
    if not 1 <= count <= _LARGEST:
        raise Error(f"{written.group()} is a hole of {digits} tokens; give 1 or more, and no more than the model reads")
    return Hole(None, count, space) if star else Hole(count, count, space)


def _no_hole_in_a_special(partial: Partial, specials: Sequence[str]) -> None:
    whole, edge = "".join(partial.pieces), 0
    for piece in partial.pieces[:-1]:
        edge += len(piece)
        for special in specials:
            found = whole.find(special, max(0, edge - len(special) + 1))
            if 0 <= found < edge:
                raise Error(f"a hole stands inside {special}, which is one token; put it before or behind")
