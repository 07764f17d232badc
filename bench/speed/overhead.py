"""`mmada-lite bench loops`: what decoding costs beside the model. A planted denoiser answers at once, so that the processor
time of a step is Python's own share (selection, bookkeeping, copies); it counts the tokens that a model would have computed.

Knows sizes and settings, and no weights: it runs on any machine in seconds, also on a busy one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mmada_lite import __version__
from mmada_lite.bench.arguments import require_counts
from mmada_lite.decoding.canvas import Canvas, image_canvas, text_canvas
from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.decoding.text import decode_text
from mmada_lite.errors import Error
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

Chosen = TypeVar("Chosen", ImageSettings, TextSettings)
SPECIAL = SpecialTokens(*range(12))
_FIRST = 12  # the first id that is no special token
PICTURES: dict[str, dict[str, Any]] = {
    "exact": {},
    "refresh 3": {"refresh": 3},
    "unconditional every 4": {"unconditional_every": 4},
    "guidance to 0.6": {"guidance_to": 0.6},
    "refresh 4, shortlist 2": {"refresh": 4, "shortlist": 2.0},
    "refresh 3, shortlist 1.5": {"refresh": 3, "shortlist": 1.5},
    "refresh 2, shortlist 2, unconditional every 2": {"refresh": 2, "shortlist": 2.0, "unconditional_every": 2},
    "refresh 3, shortlist 2, unconditional every 2": {"refresh": 3, "shortlist": 2.0, "unconditional_every": 2},
    "refresh 4, shortlist 2, unconditional every 2": {"refresh": 4, "shortlist": 2.0, "unconditional_every": 2},
    "refresh 4, shortlist 2, unconditional every 4": {"refresh": 4, "shortlist": 2.0, "unconditional_every": 4},
}
TEXTS: dict[str, dict[str, Any]] = {"exact": {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}


@dataclass(slots=True)
class Instant:
    """A denoiser that knows its answers beforehand: states and keys of the right shapes, certainties that are all different."""

    layers: int
    heads: int
    head_size: int
    width: int
    columns: int
    tokens: int = 0  # that a model would have computed
    pairs: int = 0  # of a query and a key, in each layer

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        rows, length = window.tokens.shape
        self.tokens += rows * length
        self.pairs += rows * length * (length + (window.past.length if window.past else 0))
        hidden = np.empty((rows, window.rows.shape[1], self.width), dtype=np.float32)
        kept = np.empty((rows, self.heads, length, self.head_size), dtype=np.float32)
        return hidden, KeyValues((kept,) * self.layers, (kept,) * self.layers) if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        count = hidden.shape[1]
        place = (np.arange(count)[None] * 7919) % self.columns
        sure = np.log((place + 1) / (self.columns + 1)).astype(np.float32)
        return Prediction(_FIRST + place % (self.columns - _FIRST), sure, -sure)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        raise AssertionError("a planted answer is never the mask")


def picture_of(codes: int, columns: int, prompt: int) -> Callable[[], Canvas]:
    """A canvas of masks after a prompt of so many tokens, guided."""
    vocabulary = Vocabulary(SPECIAL, 1000, columns, 1000 + columns)
    return lambda: image_canvas(
        list(range(20, 20 + prompt)), np.zeros(codes), np.ones(codes, dtype=bool), vocabulary, unconditional_prompt=[1, 2, 3]
    )


def measured(denoiser: Instant, decode: Callable[[], list[Step]], rounds: int) -> dict[str, Any]:
    """Tokens and pairs of one decoding, and the processor milliseconds of a step."""
    spent = []
    for _ in range(rounds + 1):
        denoiser.tokens = denoiser.pairs = 0
        began = time.thread_time()
        steps = decode()
        spent.append(1e3 * (time.thread_time() - began) / len(steps))
    low, middle, high = np.percentile(spent[1:], (25, 50, 75)).round(3).tolist()
    found = {"steps": len(steps), "tokens": denoiser.tokens, "pairs": denoiser.pairs}
    return found | {"python_ms": {"median": middle, "low": low, "high": high}}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="mmada-lite bench loops", description=__doc__)
    parser.add_argument("--codes", type=int, default=1024, help="of a picture (default: %(default)s)")
    parser.add_argument("--picture-steps", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--answer-length", type=int, default=128, help="default: %(default)s, with a step a token")
    parser.add_argument("--prompt", type=int, default=30, help="tokens before the picture or the answer (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=16, help="default: those of size S, %(default)s")
    parser.add_argument("--width", type=int, default=1024, help="of a state; heads have 64 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s, after one to warm up")
    arguments = parser.parse_args(argv)
    try:
        require_counts(arguments, "codes", "picture-steps", "answer-length", "prompt", "layers", "width", "rounds")
        rows = [*_pictures(arguments), *_texts(arguments)]
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    print("| decoding | steps | tokens computed | of exact | pairs of attention, of exact | Python's own ms a step |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['task']}, {row['policy']} | {row['steps']} | {row['tokens']:,} | {row['of_exact']:.2f} | "
            f"{row['pairs_of_exact']:.2f} | {row['python_ms']['median']:.2f} |"
        )
    command = " ".join(["mmada-lite bench loops", *(sys.argv[2:] if argv is None else argv)])
    print(json.dumps({"bench": "loops", "command": command, "versions": {"mmada-lite": __version__}, "rows": rows}))
    return 0


def _pictures(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    denoiser, begin = _planted(arguments, 8192), picture_of(arguments.codes, 8192, arguments.prompt)
    base = ImageSettings(steps=arguments.picture_steps)

    def decode(chosen: ImageSettings) -> list[Step]:
        canvas = begin()
        return list(decode_image(denoiser, canvas, chosen, PhiloxSampler(0, 1.0, canvas.start)))

    return _compared("picture", denoiser, decode, base, PICTURES, arguments.rounds)


def _texts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    denoiser, length = _planted(arguments, 4096), arguments.answer_length
    base = TextSettings(answer_length=length, steps=length, block_length=min(32, length))

    def decode(chosen: TextSettings) -> list[Step]:
        canvas = text_canvas(list(range(20, 20 + arguments.prompt)), length, SPECIAL)
        return list(decode_text(denoiser, canvas, chosen, PhiloxSampler(0, 0.0, canvas.start)))

    return _compared("text", denoiser, decode, base, TEXTS, arguments.rounds)


def _planted(arguments: argparse.Namespace, columns: int) -> Instant:
    return Instant(arguments.layers, max(1, arguments.width // 64), 64, arguments.width, columns)


def _compared(
    task: str,
    denoiser: Instant,
    decode: Callable[[Chosen], list[Step]],
    base: Chosen,
    policies: Mapping[str, Mapping[str, Any]],
    rounds: int,
) -> list[dict[str, Any]]:
    """A row for each policy, beside the first of them."""
    rows: list[dict[str, Any]] = []
    for name, changes in policies.items():
        row = measured(denoiser, partial(decode, replace(base, **changes)), rounds)
        exact = rows[0] if rows else row
        shares = {"of_exact": row["tokens"] / exact["tokens"], "pairs_of_exact": row["pairs"] / exact["pairs"]}
        rows.append({"task": task, "policy": name, **row, **shares})
    return rows


if __name__ == "__main__":
    sys.exit(main())
