"""Replays of recorded decodings (golden/README.md: text, mmu, t2i, cache) through the project's own loops, step by step.

It takes any denoiser: the torch reference and the exported graphs go through the same code. Recorded noise and recorded
draws come in as samplers. Nothing here knows how a result is shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mmada_lite.contracts import read_json
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

Ints = NDArray[np.int64]
Arrays = dict[str, NDArray]


@dataclass(slots=True)
class Comparison:
    """One thing compared: exact ones count differing elements, the others carry the largest absolute difference."""

    name: str
    what: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return bool(self.difference <= self.allowed)


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded case: its folder's case.json and tensors."""

    name: str
    info: dict[str, Any]
    tensors: Arrays

    @classmethod
    def load(cls, folder: Path, name: str) -> "Case":
        return cls(name, read_json(folder / "case.json"), load_file(folder / "trace.safetensors"))


def differing(a: NDArray, b: NDArray) -> float:
    """How many elements differ; infinite when the shapes do."""
    return float((a != b).sum()) if a.shape == b.shape else float("inf")


@dataclass(slots=True)
class RecordedSampler:
    """Takes its choices from a recording. Everything is indexed [call, row, position in the recorded sequence].

    gumbel: uniforms of the reference's token noise [calls, B, L, V] with its temperature; codes: what it drew at each
    image position [calls, B, N]; order: uniforms of a random order or of the confidence noise.
    """

    row: int
    dropped: int  # pads that stand before the canvas in the recorded sequence
    start: int  # where the canvas's region begins, for what is recorded per image position
    gumbel: NDArray | None = None
    temperature: float = 0.0
    codes: NDArray | None = None
    text_order: NDArray | None = None
    image_order: NDArray | None = None
    drawn: list[Ints] = field(default_factory=list)

    def draw(self, denoiser: Denoiser, head: Head, hidden: Floats, mix: Floats, step: int, positions: Ints) -> Prediction:
        if self.gumbel is None and self.codes is None:
            return denoiser.predict(head, hidden, mix, 0.0, None)
        logits = denoiser.logits(head, hidden, mix).astype(np.float64)
        rows = self._rows(positions)
        if self.codes is not None:
            token = self.codes[step][rows, positions - self.start]
        else:
            assert self.gumbel is not None
            u = self.gumbel[step][rows, positions + self.dropped]
            token = (logits - self.temperature * np.log(-np.log(u))).argmax(axis=-1)
        peak = logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[..., 0]
        chosen = np.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        return Prediction(token.astype(np.int64), (chosen - total).astype(np.float32))

    def order(self, head: Head, step: int, positions: Ints) -> Floats:
        rows = self._rows(positions)
        if head == "image":
            assert self.image_order is not None
            return np.asarray(self.image_order[step][rows, positions - self.start])
        assert self.text_order is not None
        return np.asarray(self.text_order[step][rows, positions + self.dropped])

    def _rows(self, positions: Ints) -> Ints:
        return self.row + np.arange(positions.shape[0])[:, None]


class WatchedDenoiser:
    """A denoiser that also writes down the span of every window, and the logits of chosen calls over their whole window."""

    def __init__(self, inner: Denoiser, keep_logits: tuple[int, ...] = ()) -> None:
        self._inner, self._keep = inner, keep_logits
        self.spans: list[tuple[int, int]] = []
        self.all_logits: dict[int, Floats] = {}

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        number = len(self.spans)
        self.spans.append((int(window.positions[0]), int(window.positions[-1]) + 1))
        if number in self._keep:
            everything = np.broadcast_to(np.arange(window.tokens.shape[1]), window.tokens.shape)
            all_queried = Window(window.tokens, window.positions, np.ascontiguousarray(everything), window.past)
            hidden, _ = self._inner.forward(all_queried, keep=False)
            self.all_logits[number] = self._inner.logits("text", hidden, np.eye(hidden.shape[0], dtype=np.float32))
        return self._inner.forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        return self._inner.predict(head, hidden, mix, temperature, uniform)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        return self._inner.logits(head, hidden, mix)


def _text_settings(given: dict[str, Any]) -> TextSettings:
    """What every recorded text decoding says, in mode reference."""
    return TextSettings(
        answer_length=given["gen_length"],
        steps=given["steps"],
        block_length=given["block_length"],
        order=given["remasking"],
        mode="reference",
    )


def replay_text(denoiser: Denoiser, case: Case) -> Iterator[Comparison]:
    """A text or understanding case: the whole sequence after every step, and the number of calls.

    Without guidance the left pads of each row are dropped; with it the reference attends to them, and so does this.
    """
    info, recorded = case.info, case.tensors
    given = info["settings"]
    settings = _text_settings(given).replace(guidance=given["cfg_scale"], temperature=given["temperature"])
    stops = given.get("function") == "mmu_generate_fast" and info.get("eot_token") is not None
    tokens = TextTokens(info["mask_id"], frozenset({info["eot_token"]} if stops else ()))
    steps, prompt = recorded["x_steps"], recorded["prompt"]  # [calls, B, P+A], [B, P]
    wrong, calls = 0.0, set()
    for row, rows, dropped in _row_groups(prompt, recorded.get("attention_mask"), settings.guidance > 0):
        given_ids = prompt[row : row + rows, dropped:]
        sampler = RecordedSampler(
            row,
            dropped,
            given_ids.shape[1],
            recorded.get("gumbel_uniform"),
            settings.temperature,
            text_order=recorded.get("remask_uniform"),
        )
        decoding = generate.complete(denoiser, given_ids, settings, tokens, sampler=sampler)
        number = 0
        for number, _ in enumerate(decoding.steps, 1):
            wrong += _differing_after(steps, number - 1, decoding, row, rows, dropped)
        wrong += differing(decoding.canvas.tokens, recorded["final"][row : row + rows, dropped:])
        calls.add(number)
    yield Comparison(case.name, "tokens after every step", wrong, 0)
    yield Comparison(case.name, "forward calls", float(calls != {info["forward_calls"]}), 0)


def _differing_after(steps: NDArray, number: int, decoding: Decoding, row: int, rows: int, dropped: int) -> float:
    """How many tokens differ from the recorded ones after a step; infinitely many where none was recorded."""
    if number >= len(steps):
        return float("inf")
    return differing(decoding.canvas.tokens, steps[number][row : row + rows, dropped:])


def _row_groups(prompt: Ints, attention: NDArray | None, guided: bool) -> Iterator[tuple[int, int, int]]:
    """(first row, rows, pads dropped): all rows together, or one by one where they are padded."""
    if attention is None or guided:
        yield 0, prompt.shape[0], 0
        return
    for row, flags in enumerate(attention):
        pads = int(np.argmax(flags != 0))
        if not flags[pads:].all():
            raise ValueError(f"row {row} is padded in its middle; only left pads are recorded by the reference")
        yield row, 1, pads


def replay_cache(denoiser: Denoiser, case: Case) -> Iterator[Comparison]:
    """A Fast-dLLM case: the sequence after every call, each call's span, the number of calls, and logits where kept."""
    info, recorded = case.info, case.tensors
    given = info["settings"]
    policy: Any = "none" if info["mode"] == "plain" else info["mode"]
    settings = _text_settings(given).replace(cache=policy, threshold=given.get("threshold"))
    watched = WatchedDenoiser(denoiser, (0, 1) if "logits_call0_full" in recorded else ())
    tokens, sampler = TextTokens(info["mask_id"]), RecordedSampler(0, 0, 0)
    decoding = generate.complete(watched, recorded["prompt"], settings, tokens, sampler=sampler)
    wrong, number = 0.0, 0
    for number, _ in enumerate(decoding.steps, 1):
        wrong += _differing_after(recorded["x_steps"][:, None], number - 1, decoding, 0, 1, 0)
    yield Comparison(case.name, "tokens after every call", wrong + differing(decoding.canvas.tokens, recorded["final"]), 0)
    yield Comparison(case.name, "forward calls", abs(number - info["nfe"]), 0)
    yield Comparison(case.name, "span of every call", differing(np.array(watched.spans), recorded["call_span"][:, :2]), 0)
    for call, key in ((0, "logits_call0_full"), (1, "logits_first_cached_call")):
        if key in recorded:
            yield Comparison(case.name, key, float(np.abs(watched.all_logits[call] - recorded[key]).max()), 2e-4)


def replay_image(denoiser: Denoiser, case: Case) -> Iterator[Comparison]:
    """A text-to-image case: ids after every step, the drawn codes, the mask counts and the guided rows of step two."""
    info, recorded = case.info, case.tensors
    given = info["settings"]
    n = given["seq_len"]
    settings = ImageSettings(
        steps=given["timesteps"],
        guidance=given["guidance_scale"],
        schedule=given["schedule"],
        temperature=given["temperature"],
        sampling_temperature=0.0 if info["deterministic"] else 1.0,
        mode="reference",
    )
    wrong, codes_wrong, rows_wrong = 0.0, 0.0, 0.0
    for row in range(recorded["input_ids"].shape[0]):
        dropped = int(np.argmax(recorded["attention_mask"][row] != 0))
        ids = recorded["input_ids"][row, dropped:]
        start = ids.size - n - 1
        sampler = RecordedSampler(
            row,
            dropped,
            start,
            codes=None if info["deterministic"] else recorded["sampled_codes_raw_steps"],
            image_order=recorded.get("confidence_uniform_steps"),
        )
        vocabulary, codes = _vocabulary_of(ids, start, given), ids[start:-1] - given["image_code_offset"]
        unknown = ids[start:-1] == given["mask_token_id"]
        decoding = generate.draw(denoiser, ids[:start], codes, unknown, settings, vocabulary, sampler=sampler)
        steps: list[Step] = []
        for number, step in enumerate(decoding.steps):
            wrong += differing(decoding.canvas.tokens[0], recorded["input_ids_steps"][number, row, dropped:])
            if number == 0 and "forward_input_step1" in recorded and settings.steps > 1:
                rows_wrong += _guided_rows_differ(decoding, recorded, row, dropped)
            steps.append(step)
        last = steps[-1].predicted_codes
        assert last is not None
        codes_wrong += differing(last[0], recorded["final_codes"][row])
    yield Comparison(case.name, "ids after every step", wrong, 0)
    yield Comparison(case.name, "final codes", codes_wrong, 0)
    if "forward_input_step1" in recorded:
        yield Comparison(case.name, "rows of the second step", rows_wrong, 0)


def _vocabulary_of(ids: Ints, start: int, given: dict[str, Any]) -> Vocabulary:
    """The ids that a drawing is laid out with, read off a recorded row without pads, [t2i] bos text eos [soi] codes [eoi]; the
    codes begin at `start`. Those that are not recorded stand as the mask."""
    task, bos, eos, soi, eoi = (int(ids[place]) for place in (0, 1, start - 2, start - 1, -1))
    mask, offset, codebook = given["mask_token_id"], given["image_code_offset"], given["codebook_size"]
    named = {"t2i": task, "bos": bos, "eos": eos, "soi": soi, "eoi": eoi}
    special = SpecialTokens(**dict.fromkeys(SpecialTokens.__dataclass_fields__, mask) | named)
    return Vocabulary(special, offset, codebook, offset + codebook)


def _guided_rows_differ(decoding: Decoding, recorded: Arrays, row: int, dropped: int) -> float:
    """The recorded second batch (conditional rows, then unconditional ones) against the canvas after the first step."""
    canvas, second_batch = decoding.canvas, recorded["forward_input_step1"]
    wrong = differing(canvas.tokens[0], second_batch[row, dropped:])
    if canvas.unconditional is not None:
        unconditional = second_batch[recorded["input_ids"].shape[0] + row]
        wrong += differing(canvas.unconditional[0], unconditional[unconditional.size - canvas.unconditional.shape[1] :])
    return wrong
