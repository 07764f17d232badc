"""The one format of thinking, in every modality: `<think> thought </think> answer`. Knows nothing of what is thought, of tokens
or of models.
"""

from __future__ import annotations

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_THOUGHT = re.compile(rf"\s*{OPEN}(.*?){CLOSE}(.*)", re.DOTALL)


class Thought(NamedTuple):
    """A response in its two parts, without the space around them."""

    thought: str
    answer: str


def with_thought(thought: str, answer: str) -> str:
    """The response as it is written: `<think> thought </think> answer`."""
    return f"{OPEN} {thought} {CLOSE} {answer}"


def split_thought(text: str) -> Thought | None:
    """The two parts, or None where the format is broken: something before the thought, a tag that lacks or comes twice, or an
    empty part."""
    match = _THOUGHT.fullmatch(text)
    if match is None:
        return None
    thought, answer = (part.strip() for part in match.groups())
    broken = not thought or not answer or any(tag in part for tag in (OPEN, CLOSE) for part in (thought, answer))
    return None if broken else Thought(thought, answer)


def answer_of(text: str) -> str:
    """What is answered: all that follows the thought, or the whole of a text that does not try to think."""
    parts = split_thought(text)
    return text.strip() if parts is None else parts.answer
