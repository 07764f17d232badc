"""What decoding costs beside the model: `mmada-lite bench latency --tasks overhead`. A planted denoiser answers at once, so
that the processor time of a step is Python's own share (selection, bookkeeping, copies); it counts the tokens that a model
would have computed.

Knows sizes and settings, and no weights: it runs on any machine in seconds, also on a busy one.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmada_lite.bench.command import markdown
from mmada_lite.bench.record import Row, spread
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

SPECIAL = SpecialTokens(*range(12))
COLUMNS = 4096  # of either head
VOCABULARY = Vocabulary(SPECIAL, 1000, COLUMNS, 1000 + COLUMNS)
_FIRST = 12  # the first id that is no special token
PICTURES: tuple[dict[str, Any], ...] = (
    {},
    {"refresh": 3},
    {"unconditional_every": 4},
    {"refresh": 4, "candidate_ratio": 2.0},
    {"refresh": 3, "candidate_ratio": 1.5},
    *({"refresh": r, "candidate_ratio": 2.0, "unconditional_every": u} for r, u in ((2, 2), (4, 2), (4, 4))),
)
TEXTS: tuple[dict[str, Any], ...] = ({}, {"cache": "prefix"}, {"cache": "dual"})


@dataclass(slots=True)
class Instant:
    """A denoiser that knows its answers beforehand: states and keys of the right shapes, certainties that are all different.
    Sizes are those of S, unless told: codes and steps of a picture, tokens of an answer (a step each), tokens before either;
    layers and the width of a state, whose heads have 64."""

    codes: int = 1024
    picture_steps: int = 12
    answer: int = 128
    prompt: int = 30
    layers: int = 16
    width: int = 1024
    tokens: int = 0  # that a model would have computed

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        rows, length = window.tokens.shape
        self.tokens += rows * length
        hidden = np.empty((rows, window.queries.shape[1], self.width), dtype=np.float32)
        kept = np.empty((rows, max(1, self.width // 64), length, 64), dtype=np.float32)
        return hidden, KeyValues((kept,) * self.layers, (kept,) * self.layers) if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        column = (np.arange(hidden.shape[1])[None] * 7919) % COLUMNS
        log_probability = np.log((column + 1) / (COLUMNS + 1)).astype(np.float32)
        return Prediction(_FIRST + column % (COLUMNS - _FIRST), log_probability, -log_probability)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        raise AssertionError("a planted answer is never the mask")

    def decoding(self, task: str, changes: dict[str, Any]) -> Decoding:
        prompt = list(range(20, 20 + self.prompt))
        if task == "text":
            text = TextSettings(answer_length=self.answer, steps=self.answer, block_length=min(32, self.answer))
            return generate.complete(self, prompt, text.replace(**changes), TextTokens(SPECIAL.mask))
        image, blank = ImageSettings(steps=self.picture_steps).replace(**changes), np.zeros(self.codes)
        return generate.draw(self, prompt, blank, blank == 0, image, VOCABULARY)


def rows(rounds: int, denoiser: Instant | None = None) -> Iterator[Row]:
    """A row for each way of drawing and of writing, beside the first of its kind: tokens of one decoding, and the processor
    milliseconds of a step."""
    denoiser = denoiser or Instant()
    for task, ways in (("picture", PICTURES), ("text", TEXTS)):
        exact = 0
        for changes in ways:
            spent = []
            for _ in range(rounds + 1):
                denoiser.tokens, began = 0, time.thread_time()
                steps = len(list(denoiser.decoding(task, changes).steps))
                spent.append(1e3 * (time.thread_time() - began) / steps)
            exact = exact or denoiser.tokens
            policy = " ".join(f"{name}={value}" for name, value in changes.items()) or "exact"
            row = {"task": f"overhead, {task}", "policy": policy, "steps": steps, "tokens": denoiser.tokens}
            yield row | {"of_exact": denoiser.tokens / exact, "python_ms": spread(spent[1:])}


def table(rows: Sequence[Row]) -> str:
    """A line a way of decoding."""
    names = ("task", "policy", "steps", "tokens")
    cells = [[*map(row.get, names), f"{row['of_exact']:.2f}", f"{row['python_ms']['median']:.2f}"] for row in rows]
    return markdown([*names, "of exact", "ms of Python a step"], cells)
