"""What a model for masked diffusion reads while it decodes: rows caught on the way, each position with the weight that its
error has.

Prompts of all three tasks are decoded by a denoiser with the project's own loops, and some of the steps kept: so mask
ratios come as decoding meets them, and it is known which masks were about to be written. A model that thinks before it draws
is watched while it does both. A given token is seen by the others alone; a mask counts for itself, the more the sooner it is
written. It knows no weights, layers or formats.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_end, picture_prompt, thinking_prompt, thought_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.forms.filling import Filling
from mmada_lite.quant.prompts import NEEDED, Prompt, Task, built_in, first_prompts
from mmada_lite.streams import Answer, Thinking
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Seen = Literal["masked", "unmasked"]
Watched = tuple[Task, Decoding]  # what it counts as, and the decode
Progress = Callable[[int, int], None]  # prompts decoded, prompts in all
_LIMIT = 10_000  # prompts of a task, and steps of each
_LONGEST_ANSWER = 64  # tokens decoded for calibration; the 8B model's own default would take an hour a prompt on a CPU


@dataclass(frozen=True, slots=True)
class Weighting:
    """How much an error at a position counts: `given` where the token is known; where it is masked, `masked`, and `soon` more
    that halves with every `half` of the steps that are left until it is written (a share of all steps)."""

    given: float = 0.25
    masked: float = 0.5
    soon: float = 1.5
    half: float = 0.125


@dataclass(frozen=True, slots=True)
class Calibration:
    """How much to look at. prompts: of each task; steps: kept of each decoding; seen: "masked" as decoding meets them, or
    "unmasked", the same rows when they are finished, all positions alike (what calibration does for other models)."""

    prompts: int = 32
    steps: int = 3
    seen: Seen = "masked"
    seed: int = 0
    weighting: Weighting = Weighting()

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.steps < 1:
            raise Error(f"calibration on {self.prompts} prompts and {self.steps} steps of each sees nothing; use 1 or more")
        if max(self.prompts, self.steps) > _LIMIT:
            raise Error(
                f"calibration on {self.prompts} prompts and {self.steps} steps of each is more than a machine decodes; "
                f"use {_LIMIT} at most"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One row as a model reads it. weight: of each position; predicted: of each position for the head, 0 where it is not
    asked."""

    task: Task
    tokens: Ints  # [L]
    weight: Floats  # [L]
    predicted: Floats  # [L]


_ARRAYS = ("tokens", "weight", "predicted")  # of a Sample


@dataclass(frozen=True, slots=True)
class CalibrationModel:
    """The model that is watched: a denoiser with what it takes to give it prompts. codes: of a picture; 0: it has no pictures.
    longest: tokens that it reads at most."""

    denoiser: Denoiser
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    codes: int
    longest: int
    text: TextSettings
    image: ImageSettings


def collect(
    model: CalibrationModel, calibration: Calibration, prompts: list[Prompt] | None = None, progress: Progress | None = None
) -> list[Sample]:
    """Rows of every task that the model has, recorded now. Pictures that are asked about are those that it just drew. A model
    that answers the first of the prompts to think about without a thought is asked no more of those."""
    rng = np.random.default_rng([calibration.seed, 0xCA11])
    chosen = prompts_by_task(prompts, calibration, pictures=model.codes > 0)
    total, done = sum(map(len, chosen.values())), 0
    pictures: list[Ints] = []
    samples: list[Sample] = []
    for task in chosen:
        for number, prompt in enumerate(chosen[task]):
            picture = pictures[number % len(pictures)] if pictures else np.zeros(model.codes, np.int64)
            recorded: list[Sample] = []
            for kind, decoding in _decodings(model, prompt, picture, calibration.seed * 1000 + number):
                recorded += _record(decoding, kind, calibration, rng)
                if task == "paint":
                    pictures.append(decoding.codes[0])
            complete = task != "think" or len(recorded) > calibration.steps  # a thought is drawn from
            if not complete and number == 0:
                break
            samples, done = samples + (recorded if complete else []), done + 1
            if progress:
                progress(done, total)
    return samples


def prompts_by_task(prompts: list[Prompt] | None, calibration: Calibration, *, pictures: bool) -> dict[Task, list[Prompt]]:
    """What a model is asked, task by task in this order: of those given, or built in. Raises Error where a task has none."""
    tasks: tuple[Task, ...] = ("paint", "ask", "chat", "think") if pictures else ("chat",)
    return {task: _chosen(prompts, task, calibration) for task in tasks}


def position_weights(steps_left: Ints, steps: int, weighting: Weighting) -> Floats:
    """steps_left [L]: steps until a position is written, 0 in this one, below 0 where the token is given -> weights [L]."""
    soon = weighting.soon * 0.5 ** (np.maximum(steps_left, 0) / max(1.0, weighting.half * steps))
    return np.where(steps_left < 0, weighting.given, weighting.masked + soon).astype(np.float32)


def _chosen(prompts: list[Prompt] | None, task: Task, calibration: Calibration) -> list[Prompt]:
    if prompts is None:
        return built_in(task, calibration.prompts, calibration.seed)
    chosen = first_prompts(prompts, task, calibration.prompts)
    if not chosen and task in NEEDED:
        raise Error(f"there is no prompt for {task} among those given; calibration needs all of {', '.join(NEEDED)}")
    return chosen


def _decodings(model: CalibrationModel, prompt: Prompt, picture: Ints, seed: int) -> Iterator[Watched]:
    """What a prompt takes: an answer, a picture, or a thought and then, once its steps are done, the picture that it describes
    if it does describe one."""
    encoded = model.tokenizer.encode(prompt.text)
    if prompt.task == "paint":
        yield "paint", _drawing(model, paint_prompt(encoded, model.vocabulary), seed)
    elif prompt.task == "think":
        yield from _thinking(model, encoded, seed)
    else:
        picture_ids = picture_prompt(picture, model.vocabulary) if prompt.task == "ask" else []
        ids = picture_ids + chat_ids(model.tokenizer, model.vocabulary, [{"role": "user", "content": prompt.text}])
        yield prompt.task, _writing(model, ids, seed)


def _thinking(model: CalibrationModel, text: list[int], seed: int) -> Iterator[Watched]:
    special = model.vocabulary.special
    ids = thinking_prompt(text, model.vocabulary)
    if len(ids) + _shortened(model.text).answer_length > model.longest:
        return
    decoding, stop = _writing(model, ids, seed), frozenset({special.eos, special.eot})
    filling = Filling.of(decoding, stop)
    yield "chat", replace(decoding, steps=filling.steps)
    answer = Answer(filling, model.tokenizer, stop)
    beside = len(thought_prompt(text, [], model.vocabulary)) + model.codes + len(picture_end(model.vocabulary))
    thinking = Thinking(answer, model.tokenizer, model.longest - beside)
    if thinking.fault is None:
        yield "paint", _drawing(model, thought_prompt(text, thinking.ids, model.vocabulary), seed)


def _drawing(model: CalibrationModel, ids: list[int], seed: int) -> Decoding:
    every = np.ones(model.codes, dtype=bool)
    decoding = generate.draw(model.denoiser, ids, np.zeros(model.codes), every, model.image, model.vocabulary, seed=seed)
    return _fitting(decoding, model)


def _writing(model: CalibrationModel, ids: list[int], seed: int) -> Decoding:
    tokens = TextTokens.of(model.vocabulary.special, model.tokenizer)
    return _fitting(generate.complete(model.denoiser, ids, _shortened(model.text), tokens, seed=seed), model)


def _shortened(text: TextSettings) -> TextSettings:
    """At most 64 tokens, at the pace of the given settings, and exact: no cache, no guidance."""
    length = min(text.answer_length, _LONGEST_ANSWER)
    block = min(text.block_length, length)
    steps = max(-(-length // block), min(length, round(text.steps * length / text.answer_length)))
    return text.replace(
        answer_length=length, block_length=block, steps=steps, cache="none", guidance=0.0, threshold=None, mode="default"
    )


def _fitting(decoding: Decoding, model: CalibrationModel) -> Decoding:
    length = decoding.canvas.length
    if length > model.longest:
        raise Error(f"a calibration row takes {length} tokens and the model reads {model.longest}; give shorter prompts")
    return decoding


def _record(decoding: Decoding, task: Task, calibration: Calibration, rng: np.random.Generator) -> list[Sample]:
    """Decode to the end; then the rows as they stood before some of the steps."""
    canvas = decoding.canvas
    snapshots = [[row.copy() for row in canvas.branches()]]
    written_at = np.full(canvas.length, -1, dtype=np.int64)  # the step that wrote each position
    for step in decoding.steps:
        written_at[step.positions] = step.index
        snapshots.append([row.copy() for row in canvas.branches()])
    count = len(snapshots) - 1
    samples = []
    for number in np.sort(rng.integers(count, size=calibration.steps)):
        branch = int(rng.integers(len(snapshots[0])))
        at = count if calibration.seen == "unmasked" else int(number)
        steps_left = np.where(written_at >= at, written_at - at, -1)  # [L]; below 0: given by now
        if calibration.seen == "unmasked":
            weight, predicted = np.ones(canvas.length, np.float32), (written_at >= 0).astype(np.float32)
        else:
            weight = position_weights(steps_left, count, calibration.weighting)
            predicted = np.where(steps_left < 0, 0, weight).astype(np.float32)
        samples.append(_sample(task, snapshots[at][branch][0], weight, predicted, canvas.shift if branch else 0))
    return samples


def _sample(task: Task, tokens: Ints, weight: Floats, predicted: Floats, shift: int) -> Sample:
    """A row with its weights. The row without a prompt is shorter: its positions are the last ones of the other."""
    if not shift:
        return Sample(task, tokens, weight, predicted)
    return Sample(task, tokens, weight[-len(tokens) :].copy(), predicted[-len(tokens) :].copy())


def grouped_by_length(samples: Sequence[Sample], limit: int = 4096) -> list[list[Sample]]:
    """Samples of one task and one length together, at most `limit` tokens: they pass through a layer as one batch."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.task, len(sample.tokens)), []).append(sample)
    sizes = {key: max(1, limit // key[1]) for key in groups}  # rows of a batch
    return [group[i : i + sizes[key]] for key, group in sorted(groups.items()) for i in range(0, len(group), sizes[key])]


def to_arrays(samples: Sequence[Sample]) -> dict[str, NDArray]:
    """Samples end to end, as a unit of a work folder."""
    joined = {name: np.concatenate([getattr(sample, name) for sample in samples]) for name in _ARRAYS}
    ends = np.cumsum([len(sample.tokens) for sample in samples])
    return joined | {"ends": ends, "tasks": np.array([sample.task for sample in samples])}


def samples_of(arrays: Mapping[str, NDArray]) -> list[Sample]:
    """What `to_arrays` was given."""
    parts = [np.split(np.array(arrays[name]), arrays["ends"][:-1]) for name in _ARRAYS]
    return [Sample(str(task), *values) for task, *values in zip(arrays["tasks"], *parts, strict=True)]  # type: ignore[arg-type]
