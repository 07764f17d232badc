"""What may already be said of a text that is still being written, and the rest of it later: nothing that is said is unsaid.

It knows the tags of a thought and the texts at which an answer stops. It knows no tokens and no requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmada_lite.vocabulary import CLOSE, OPEN

_HALF = "\ufffd"  # the bytes of a character that is not all there yet


@dataclass(frozen=True, slots=True)
class Said:
    """thought: what stands between the tags, all that follows the first where the second is not there; answer: the rest, up to
    the first of the texts that stop it; stopped: whether one of these was found."""

    thought: str
    answer: str
    stopped: bool


def said(text: str, stops: Sequence[str], *, ended: bool) -> Said:
    """The parts of a text that begins like this. Where it has not ended, what might still become a tag, a stop or the space at
    an end is held back, so that the parts of a longer text begin with those of a shorter one."""
    whole = text.lstrip()
    if not ended:
        whole = whole.rstrip(_HALF)
        if OPEN.startswith(whole):
            return Said("", "", False)
    thought, answer = "", whole
    if whole.startswith(OPEN):
        thought, closed, answer = whole[len(OPEN) :].partition(CLOSE)
        thought = (thought if ended or closed else _held_back(thought, (CLOSE,))).strip()
        answer = answer.lstrip()
    ends = [place for stop in stops if (place := answer.find(stop)) >= 0]
    if ends:
        return Said(thought, answer[: min(ends)], True)
    return Said(thought, (answer if ended else _held_back(answer, stops)).rstrip(), False)


def _held_back(text: str, words: Sequence[str]) -> str:
    """The text without what may be the beginning of a word at its end."""
    longest = max((k for word in words for k in range(1, len(word)) if text.endswith(word[:k])), default=0)
    return text[: len(text) - longest]


class Deltas:
    """The parts of a growing text, piece by piece: joined, the pieces are the parts of the whole text."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = stops
        self.said = Said("", "", False)

    def read(self, text: str, *, ended: bool = False) -> tuple[str, str]:
        """What is new in the thought and in the answer."""
        before, self.said = self.said, said(text, self._stops, ended=ended)
        return self.said.thought[len(before.thought) :], self.said.answer[len(before.answer) :]
