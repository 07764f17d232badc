"""The record of what the packaged model writes, step by step, at every speed, with how near each step was to another: reading
it, comparing with it, and making it. `python tests/runtime/shipped_ids.py` writes it anew, which is right only after the
model's files, the cases or the laws of decoding were changed on purpose."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from decode_margins import Margins, code_margin, measured
from shipped_cases import CASES, PICTURES, Case, play

import mmada_lite
from mmada_lite import Model, images
from mmada_lite.decoding.settings import PRESETS
from mmada_lite.model import embedded_bundle
from mmada_lite.streams import Answer

RECORD = Path(__file__).parent / "recorded" / "shipped_ids.jsonl"
ROUNDING = 1e-4  # nats or probability: smaller gaps another processor's rounding may turn, larger ones never
_INSTRUCTIONS = ("avx", "fma", "f16c", "amx", "sse4", "asimd", "sve", "i8mm", "bf16", "dot")
_PROCESSOR = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Step:
    """What one step wrote, and how far it was from writing something else. Before the first, of a case with a picture: the
    codes that were read."""

    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    margin: float = 0.0


@dataclass(frozen=True)
class Run:
    """A case at a speed. ids: an answer's tokens, or a drawing's codes; text: the answer, or the thought before a drawing."""

    case: str
    speed: str
    steps: tuple[Step, ...]
    model_calls: int
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Difference:
    """The first way in which a run is not as recorded. margin: of the step that wrote something else, or infinite where the
    steps are equal and something else is not, which no rounding explains."""

    run: Run
    what: str
    margin: float
    same_ids: bool

    def counts(self, same_machine: bool) -> bool:
        return same_machine or self.margin >= ROUNDING

    def __str__(self) -> str:
        return f"{self.run.case}, at speed {self.run.speed}: {self.what}, margin {self.margin:.3g}"


def difference(recorded: Run, played: Run) -> Difference | None:
    """None where the same positions, tokens and model calls came in the same order."""
    same_ids = recorded.ids == played.ids
    for number, (old, new) in enumerate(zip(recorded.steps, played.steps, strict=False)):
        if (old.positions, old.tokens) != (new.positions, new.tokens):
            return Difference(recorded, f"step {number} of {len(recorded.steps)} differs", old.margin, same_ids)
    for name, old_value, new_value in (
        ("steps", len(recorded.steps), len(played.steps)),
        ("model calls", recorded.model_calls, played.model_calls),
        ("ids", recorded.ids, played.ids),
        ("text", recorded.text, played.text),
    ):
        if old_value != new_value:
            return Difference(recorded, f"{name} {new_value!r} where there were {old_value!r}", float("inf"), same_ids)
    return None


def run_case(model: Model, case: Case, speed: str, margins: Margins | None = None) -> Run:
    """Play a case; with `margins` measured too."""
    steps = []
    if case.picture:
        codes = model.codec.encode(images.to_pixels(PICTURES[case.picture])).ravel().tolist()
        steps.append(Step(tuple(range(len(codes))), tuple(codes), _picture_margin(model, case.picture) if margins else 0.0))
    if margins:
        margins.start()
    stream = play(model, case)
    for step in stream:
        margin = margins.take() if margins else 0.0
        steps.append(Step(tuple(step.positions.tolist()), tuple(step.tokens.tolist()), margin))
    assert stream.last is not None
    ids, text = (stream.ids, stream.text) if isinstance(stream, Answer) else (stream.codes.ravel(), stream.thought or "")
    return Run(case.name, speed, tuple(steps), stream.last.model_calls, tuple(ids.tolist()), text)


def _picture_margin(model: Model, name: str) -> float:
    return code_margin(str(model.bundle.path / "image_encoder.onnx"), images.to_pixels(PICTURES[name]))


def machine() -> dict[str, Any]:
    """What rounding depends on: the processor's instructions and onnxruntime."""
    flags: set[str] = set()
    if _PROCESSOR.is_file():
        for line in _PROCESSOR.read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() in ("flags", "Features"):
                flags.update(flag for flag in line.partition(":")[2].split() if any(part in flag for part in _INSTRUCTIONS))
    return {"architecture": platform.machine(), "instructions": sorted(flags), "onnxruntime": onnxruntime.__version__}


def model_files() -> dict[str, str]:
    """sha256 of everything in the package that ids depend on: weights, graphs, tokenizer."""
    files = [path for path in embedded_bundle().iterdir() if path.suffix in (".onnx", ".bin") or path.name == "tokenizer.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def changed_files(recorded: dict[str, str], present: dict[str, str]) -> str | None:
    """What to say when the model is not the recorded one, None when it is."""
    names = sorted(name for name in recorded | present if recorded.get(name) != present.get(name))
    if not names:
        return None
    changed = f"{', '.join(names)} of the packaged model changed"
    return f"{changed}; if that is meant, write the record anew: python tests/runtime/shipped_ids.py"


def read_record(path: Path = RECORD) -> tuple[dict[str, Any], list[Run]]:
    """What the record was made with, and its runs."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return json.loads(header), [_run_from(json.loads(line)) for line in lines]


def _run_from(line: dict[str, Any]) -> Run:
    steps = tuple(Step(tuple(flat[1::2]), tuple(flat[2::2]), flat[0]) for flat in line["steps"])
    return Run(line["case"], line["speed"], steps, line["model_calls"], tuple(line["ids"]), line["text"])


def _line_of(run: Run) -> str:
    """A step is its margin, then position and token in turn."""
    steps = []
    for step in run.steps:
        pairs = [number for pair in zip(step.positions, step.tokens, strict=True) for number in pair]
        steps.append([float(f"{step.margin:.2e}"), *pairs])
    line = {
        "case": run.case,
        "speed": run.speed,
        "model_calls": run.model_calls,
        "text": run.text,
        "ids": run.ids,
        "steps": steps,
    }
    return json.dumps(line, separators=(",", ":"))


def record() -> Iterator[str]:
    """The lines of a new record. Every case is played without being measured too: that must change nothing."""
    yield json.dumps({"schema": 1, "machine": machine(), "files": model_files()})
    for speed in PRESETS:
        model = mmada_lite.load(device="cpu", threads=1, speed=speed)
        print(f"speed {speed}: {len(CASES)} cases, each twice", file=sys.stderr)
        for case in CASES:
            plain = run_case(model, case, speed)
            with measured(model) as margins:
                run = run_case(model, case, speed, margins)
            if changed := difference(plain, run):
                raise SystemExit(f"measuring changed what is written: {changed}")
            yield _line_of(run)


if __name__ == "__main__":
    lines = list(record())
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{RECORD.name}: {len(lines) - 1} runs, {RECORD.stat().st_size:,} bytes")
