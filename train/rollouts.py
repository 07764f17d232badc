"""Many answers and many drawings at once, with the project's own pair of decoding loops: what evaluation measures and what
stage three learns from. Rows of one length are decoded together. Knows no rewards and no metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.generate import TextTokens
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_prompt, thinking_prompt, thought_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Ints = NDArray[np.int64]
ROWS = 32  # decoded together


class Speaker(Protocol):
    """What decoding needs of a model, be it a checkpoint in torch or a bundle."""

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def vocabulary(self) -> Vocabulary: ...


class Drawn(NamedTuple):
    """Drawings: codes [N, length], and the step that wrote each (-1: given)."""

    codes: Ints
    order: Ints


@dataclass(frozen=True, slots=True)
class Written:
    """Answers: ids [N, A] with masks where decoding ended early, the step that wrote each (-1: none), and model calls of the
    batch that a row was in."""

    ids: Ints
    order: Ints
    model_calls: Ints  # [N]

    def text(self, speaker: Speaker, row: int) -> str:
        """The answer of a row, up to its end."""
        special = speaker.vocabulary.special
        ends = np.flatnonzero(np.isin(self.ids[row], [special.eot, special.eos]))
        return speaker.tokenizer.decode(self.ids[row][: ends[0] if ends.size else None]).strip()


def write(
    speaker: Speaker, prompts: Sequence[Sequence[int]], settings: TextSettings, seed: int = 0, together: int = ROWS
) -> Written:
    """An answer to every prompt, so many `together`."""
    special, shape = speaker.vocabulary.special, (len(prompts), settings.answer_length)
    ids, order, model_calls = np.full(shape, special.mask), np.full(shape, -1), np.zeros(len(prompts), dtype=np.int64)
    tokens = TextTokens.of(special, speaker.tokenizer)
    if settings.mode == "reference":
        tokens = replace(tokens, stop=frozenset())
    for rows in batches([len(p) for p in prompts], together):
        decoding = generate.complete(speaker.denoiser, [prompts[i] for i in rows], settings, tokens, seed=seed + rows[0])
        for step in decoding.steps:
            order[np.array(rows)[step.rows], step.positions - decoding.canvas.start] = step.index
            model_calls[rows] = step.model_calls
        ids[rows] = decoding.ids
    return Written(ids, order, model_calls)


def answers(speaker: Speaker, prompts: Sequence[Sequence[int]], settings: TextSettings, seed: int = 0) -> list[str]:
    """The text of an answer to every prompt."""
    written = write(speaker, prompts, settings, seed)
    return [written.text(speaker, row) for row in range(len(prompts))]


def draw(
    speaker: Speaker,
    prompts: Sequence[Sequence[int]],
    settings: ImageSettings,
    length: int,
    seed: int = 0,
    given: Ints | None = None,
    unknown: NDArray[np.bool_] | None = None,
    together: int = ROWS,
) -> Drawn:
    """A drawing for every prompt (all before the codes). `given` [N, length] are kept where `unknown` [N, length] is false."""
    codes = np.zeros((len(prompts), length), dtype=np.int64)
    order = np.full_like(codes, -1)
    known = np.zeros_like(codes) if given is None else given
    open_codes = np.ones(codes.shape, dtype=bool) if unknown is None else unknown
    for rows in batches([len(p) for p in prompts], together):
        chosen = [prompts[i] for i in rows]
        decoding = generate.draw(
            speaker.denoiser, chosen, known[rows], open_codes[rows], settings, speaker.vocabulary, seed=seed + rows[0]
        )
        for step in decoding.steps:
            assert step.predicted_codes is not None
            codes[rows] = step.predicted_codes
            order[np.array(rows)[step.rows], step.positions - decoding.canvas.start] = step.index
    return Drawn(codes, order)


def caption_prompts(speaker: Speaker, captions: Sequence[str]) -> list[list[int]]:
    """Prompts that draw a caption at once."""
    return [paint_prompt(speaker.tokenizer.encode(text), speaker.vocabulary) for text in captions]


def caption_to_thought_prompts(speaker: Speaker, captions: Sequence[str]) -> list[list[int]]:
    """Prompts that the thought about a caption follows."""
    return [thinking_prompt(speaker.tokenizer.encode(text), speaker.vocabulary) for text in captions]


def thought_to_image_prompts(speaker: Speaker, captions: Sequence[str], thoughts: Sequence[str]) -> list[list[int]]:
    """Prompts that draw a caption after a thought."""
    encode = speaker.tokenizer.encode
    pairs = zip(captions, thoughts, strict=True)
    return [thought_prompt(encode(text), encode(thought), speaker.vocabulary) for text, thought in pairs]


def question_prompts(speaker: Speaker, questions: Sequence[str], codes: Ints | None = None) -> list[list[int]]:
    """Prompts of questions, each after its picture's codes [N, length] where there are some."""
    chats = [chat_ids(speaker.tokenizer, speaker.vocabulary, [{"role": "user", "content": text}]) for text in questions]
    if codes is None:
        return chats
    return [picture_prompt(row, speaker.vocabulary) + chat for row, chat in zip(codes, chats, strict=True)]


def batches(lengths: Sequence[int], most: int = ROWS) -> list[list[int]]:
    """Indices in groups of equal length, at most so many each."""
    groups: list[list[int]] = []
    for length in sorted(set(lengths)):
        rows = [i for i, other in enumerate(lengths) if other == length]
        groups += [rows[i : i + most] for i in range(0, len(rows), most)]
    return groups
