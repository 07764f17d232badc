"""What decoding costs beside the model: `mmada-lite bench latency --tasks overhead`. A planted denoiser answers at once, so
that the processor time of a step is Python's own share (selection, bookkeeping, copies); it counts the tokens that a model
would have computed.

Knows sizes and settings, and no weights: it runs on any machine in seconds, also on a busy one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mmada_lite.bench.record import Row
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.generate import TextTokens
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

Chosen = TypeVar("Chosen", ImageSettings, TextSettings)
SPECIAL = SpecialTokens(*range(12))
_FIRST = 12  # the first id that is no special token
PICTURES: dict[str, dict[str, Any]] = {
    "exact": {},
    "refresh 3": {"refresh": 3},
    "unconditional every 4": {"unconditional_every": 4},
    "guidance to 0.6": {"guidance_to": 0.6},
    "refresh 4, candidate ratio 2": {"refresh": 4, "candidate_ratio": 2.0},
    "refresh 3, candidate ratio 1.5": {"refresh": 3, "candidate_ratio": 1.5},
    "refresh 2, candidate ratio 2, unconditional every 2": {"refresh": 2, "candidate_ratio": 2.0, "unconditional_every": 2},
    "refresh 3, candidate ratio 2, unconditional every 2": {"refresh": 3, "candidate_ratio": 2.0, "unconditional_every": 2},
    "refresh 4, candidate ratio 2, unconditional every 2": {"refresh": 4, "candidate_ratio": 2.0, "unconditional_every": 2},
    "refresh 4, candidate ratio 2, unconditional every 4": {"refresh": 4, "candidate_ratio": 2.0, "unconditional_every": 4},
}
TEXTS: dict[str, dict[str, Any]] = {"exact": {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}


@dataclass(frozen=True, slots=True)
class DecodeSizes:
    """What is decoded, as with a model of size S: codes and steps of a picture, tokens of an answer (a step each), tokens
    before either; layers and the width of a state, whose heads have 64."""

    codes: int = 1024
    picture_steps: int = 12
    answer: int = 128
    prompt: int = 30
    layers: int = 16
    width: int = 1024


@dataclass(slots=True)
class Instant:
    """A denoiser that knows its answers beforehand: states and keys of the right shapes, certainties that are all different."""

    sizes: DecodeSizes
    columns: int
    tokens: int = 0  # that a model would have computed
    pairs: int = 0  # of a query and a key, in each layer

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        rows, length = window.tokens.shape
        self.tokens += rows * length
        self.pairs += rows * length * (length + (window.past.length if window.past else 0))
        hidden = np.empty((rows, window.queries.shape[1], self.sizes.width), dtype=np.float32)
        kept = np.empty((rows, max(1, self.sizes.width // 64), length, 64), dtype=np.float32)
        return hidden, KeyValues((kept,) * self.sizes.layers, (kept,) * self.sizes.layers) if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        column = (np.arange(hidden.shape[1])[None] * 7919) % self.columns
        log_probability = np.log((column + 1) / (self.columns + 1)).astype(np.float32)
        return Prediction(_FIRST + column % (self.columns - _FIRST), log_probability, -log_probability)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        raise AssertionError("a planted answer is never the mask")


def rows(rounds: int, sizes: DecodeSizes = DecodeSizes()) -> Iterator[Row]:
    """A row for each way of drawing and of writing, beside the first of its kind."""
    prompt = list(range(20, 20 + sizes.prompt))
    artist, writer = Instant(sizes, 8192), Instant(sizes, 4096)
    vocabulary = Vocabulary(SPECIAL, 1000, artist.columns, 1000 + artist.columns)

    def draw(settings: ImageSettings) -> list[Step]:
        unknown = np.ones(sizes.codes, dtype=bool)
        return list(generate.draw(artist, prompt, np.zeros(sizes.codes), unknown, settings, vocabulary).steps)

    def write(settings: TextSettings) -> list[Step]:
        return list(generate.complete(writer, prompt, settings, TextTokens.of(SPECIAL, None)).steps)

    text = TextSettings(answer_length=sizes.answer, steps=sizes.answer, block_length=min(32, sizes.answer))
    yield from _compared("picture", artist, draw, ImageSettings(steps=sizes.picture_steps), PICTURES, rounds)
    yield from _compared("text", writer, write, text, TEXTS, rounds)


def _compared(
    task: str,
    denoiser: Instant,
    decode: Callable[[Chosen], list[Step]],
    base: Chosen,
    policies: Mapping[str, Mapping[str, Any]],
    rounds: int,
) -> Iterator[Row]:
    exact: Row = {}
    for name, changes in policies.items():
        row = _measured(denoiser, partial(decode, base.replace(**changes)), rounds)
        exact = exact or row
        shares = {"of_exact": row["tokens"] / exact["tokens"], "pairs_of_exact": row["pairs"] / exact["pairs"]}
        yield {"task": f"overhead, {task}", "policy": name, **row, **shares}


def _measured(denoiser: Instant, decode: Callable[[], list[Step]], rounds: int) -> Row:
    """Tokens and pairs of one decoding, and the processor milliseconds of a step."""
    spent = []
    for _ in range(rounds + 1):
        denoiser.tokens = denoiser.pairs = 0
        began = time.thread_time()
        steps = decode()
        spent.append(1e3 * (time.thread_time() - began) / len(steps))
    low, middle, high = np.percentile(spent[1:], (25, 50, 75)).round(3).tolist()
    counts = {"steps": len(steps), "tokens": denoiser.tokens, "pairs": denoiser.pairs}
    return counts | {"python_ms": {"median": middle, "low": low, "high": high}}


def line(row: Row) -> str:
    """A row as a person reads it."""
    counted = f"{row['steps']} steps, {row['tokens']:,} tokens, {row['of_exact']:.2f} of exact"
    pairs, python = f"pairs of attention {row['pairs_of_exact']:.2f}", f"{row['python_ms']['median']:.2f} ms of Python a step"
    return f"{row['task']:18} {row['policy']:46} {counted}; {pairs}; {python}"
