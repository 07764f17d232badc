"""The recordings of holes: answers of which a part is given, written by our torch model in float32 from the small models of
tests/golden/llm, step by step. `python tests/recorded_fill.py` makes tests/golden/fill/fill.json anew, which is right only
after the laws of decoding were changed on purpose.

A case names its model, the ids before the answer, the answer with masks, the settings that differ from the base, the seed and
the stop tokens. A step is its positions and tokens, which every host must repeat. margin: the smallest gap of a case between
two tokens or two positions that a choice was made between, in nats; cases with less than `LEAST` are not recorded.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmada_lite.bench.parity.check import _Models
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.settings import PRESETS, TextSettings

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "fill" / "fill.json"
LEAST = 1e-3
BASE = TextSettings(answer_length=16, steps=16, block_length=4)
SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "few steps": {"steps": 8, "block_length": 8},
    "balanced": dict(PRESETS["balanced"][0]),
    "fast": dict(PRESETS["fast"][0]),
    "prefix": {"cache": "prefix"},
    "prompt": {"cache": "prompt", "refresh": 2},
    "guided": {"guidance": 0.5, "block_length": 8},
    "lossless": {"speculative_steps": 3, "block_length": 8},
    "entropy": {"entropy_bound": 0.5},
    "warm": {"temperature": 0.7, "order": "random"},
    "reference": {"mode": "reference", "block_length": 2},
}


class Gaps:
    """A denoiser that notes the smallest gap between the two most probable tokens, and between the surest positions."""

    def __init__(self, inner: Denoiser) -> None:
        self._inner, self.least = inner, np.inf

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        return self._inner.forward(window, keep=keep)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        return self._inner.logits(head, hidden, mix)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        drawn = self._inner.predict(head, hidden, mix, temperature, uniform)
        if temperature > 0:
            weights = np.exp(self.logits(head, hidden, mix).astype(np.float64) / temperature)
            ends = np.cumsum(weights, axis=-1) / weights.sum(axis=-1, keepdims=True)
            assert uniform is not None
            self.least = min(self.least, float(np.abs(ends - uniform[..., None]).min()))
        else:
            best = np.sort(self.logits(head, hidden, mix), axis=-1)[..., -2:]
            self.least = min(self.least, float((best[..., 1] - best[..., 0]).min()))
        for row in drawn.log_probability:  # a query that stands for none repeats the first: no choice is between equals
            gaps = np.diff(np.unique(row))
            self.least = min(self.least, float(gaps.min(initial=np.inf)))
        return drawn


def decoded(denoiser: Denoiser, case: dict[str, Any]) -> tuple[list[list[list[int]]], list[int], int]:
    """Positions and tokens of every step, the finished answer, model calls."""
    tokens = TextTokens(case["mask"], frozenset(case["stop"]), tuple(case["closing"]))
    settings = BASE.replace(**case["settings"])
    decoding = complete(denoiser, case["prompt"], settings, tokens, answer=case["answer"], seed=case["seed"])
    steps = list(decoding.steps)
    written = [[step.positions.tolist(), step.tokens.tolist()] for step in steps]
    return written, decoding.ids[0].tolist(), steps[-1].model_calls


def drawn_case(model: str, name: str, mask: int, texts: int, rng: np.random.Generator) -> dict[str, Any]:
    """An answer of some holes, of which one may be its tail."""
    answer: list[int] = []
    while not 4 <= answer.count(mask) <= 12 or (name == "reference" and answer.count(mask) % 2):
        answer = []
        for _ in range(rng.integers(2, 5)):
            answer += rng.integers(0, texts, size=rng.integers(0, 4)).tolist() + [mask] * int(rng.integers(1, 6))
        answer += rng.integers(0, texts, size=rng.integers(0, 3)).tolist()
    prompt = rng.integers(0, texts, size=rng.integers(1, 12)).tolist()
    changes = {"steps": 8, "block_length": 2} | SETTINGS[name] if name == "reference" else SETTINGS[name]
    about = {"model": model, "name": name, "seed": int(rng.integers(100)), "mask": mask, "stop": []}
    return about | {"closing": [], "prompt": prompt, "answer": answer, "settings": changes}


def record(models: _Models, each: int = 3) -> Iterator[dict[str, Any]]:
    """So many cases of every kind of settings, with room between what was chosen and what was not."""
    rng = np.random.default_rng(33)
    for number, name in enumerate(SETTINGS):
        found = 0
        while found < each:
            model = ("llm/mha", "llm/gqa")[(number + found) % 2]
            info = json.loads((GOLDEN / model / "case.json").read_text())["token_ids"]
            case = drawn_case(model, name, info["mask"], info["bos"], rng)
            denoiser = models.denoiser("torch", model)
            endless = [token for _, written in decoded(denoiser, case)[0] for token in written if token < info["bos"]]
            if not endless:  # codes of pictures end no text
                continue
            case["stop"] = sorted({int(token) for token in rng.choice(endless, size=found)})  # so that some holes are closed
            gaps = Gaps(denoiser)
            steps, ids, calls = decoded(gaps, case)
            if gaps.least < LEAST:
                continue
            found += 1
            yield case | {"margin": round(gaps.least, 6), "model_calls": calls, "ids": ids, "steps": steps}


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        cases = list(record(_Models(GOLDEN, Path(scratch))))
    FILE.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    FILE.write_text(f'{{"base":{json.dumps(BASE.flat())},\n"cases":[\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{FILE.name}: {len(cases)} cases, {FILE.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
