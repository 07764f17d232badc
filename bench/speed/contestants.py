"""Who takes part in the benchmark of peers, and what each has to do: full forwards, an answer, an answer about a picture, a
picture. Every contestant is a table of tasks that begin anew whenever they are asked to. Weights are random; nothing is timed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmada_lite.bench import policies, third_party
from mmada_lite.bench.reference import PADDED, Logits, draw_picture, picture_to_draw, torch_logits, write_text
from mmada_lite.bench.speed import llama
from mmada_lite.bench.speed.latency_cases import TARGETS
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser, Window
from mmada_lite.decoding.generate import TextTokens
from mmada_lite.decoding.rows import paint_prompt, picture_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.export.synthetic import RandomTensors, Size, cached_bundle, config_of
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import open_denoiser
from mmada_lite.train.model import MMaDA, load_state

Kind = Literal["reference", "ours", "other"]
GUIDANCE = 3.5
WORDS = 30  # ids of a caption


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks: tokens of full forwards; a prompt, its answer, blocks and steps; steps of a picture; pads of its prompt."""

    forwards: tuple[int, ...]
    prompt: int
    answer: int
    block: int
    steps: int
    drawing_steps: int
    padded: int

    @classmethod
    def of(cls, size: Size) -> "Plan":
        """What is measured at a published picture's size, and in miniature."""
        if size.grid < 32:
            return cls((8, 16), 8, size.answer, size.block, size.answer, 4, 48)
        return cls((32, 128, 512, 1056), 64, size.answer, size.block, size.answer, 12, PADDED)

    @property
    def tasks(self) -> list[str]:
        return [*(f"forward {count}" for count in self.forwards), "text", "understanding", "drawing"]

    def written(self, task: str, size: Size) -> int:
        """Tokens, or codes, that a task gives."""
        if task.startswith("forward"):
            return int(task.split()[-1])
        return size.grid**2 if task == "drawing" else self.answer


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task in one way of doing it. begin: starts it anew, an item a step; steps: of the whole task, where it is known; equal:
    whether a few of its steps tell the time of all, as they do where all cost the same; cycle: or where so many of them do
    together, since a block's last steps ask the head for fewer rows than its first."""

    begin: Callable[[], Iterator[object]]
    steps: int | None
    equal: bool
    cycle: int = 1


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    kind: Kind
    tasks: Mapping[str, TaskRun]


def torch_model(size: Size, dtype: torch.dtype, device: str = "cpu") -> MMaDA:
    """The torch reference with the random weights that bundles have. device: torch's."""
    config = config_of(size)
    with torch.device("meta"):
        model = MMaDA(config)
    load_state(model, RandomTensors(config.expected_tensors()), dtype)
    return model.to(device).eval()


def reference(
    name: str,
    logits: Logits,
    size: Size,
    plan: Plan,
    kind: Kind = "reference",
    *,
    pictures: bool = True,
    device: str = "cpu",
) -> Contestant:
    """All tasks in the published way over whatever gives logits of whole rows. pictures: whether it can draw; device: torch's,
    where it wants its rows."""
    mask = size.vocabulary.special.mask
    caption = paint_prompt(_words(WORDS, size), size.vocabulary)
    picture = picture_to_draw(caption, size.vocabulary, size.grid**2, plan.padded, device)

    def forward(count: int) -> Iterator[Tensor]:
        yield logits(torch.from_numpy(_row(count, size)).to(device), None)

    def write(prompt: list[int]) -> Iterator[Tensor]:
        return write_text(logits, torch.tensor([prompt], device=device), plan.answer, plan.block, plan.steps, mask)

    tasks = {f"forward {n}": TaskRun(lambda n=n: forward(n), 1, True) for n in plan.forwards}  # type: ignore[misc]
    tasks["text"] = TaskRun(lambda: write(_words(plan.prompt, size)), plan.steps, True)
    tasks["understanding"] = TaskRun(lambda: write(_seen(size)), plan.steps, True)
    if pictures:
        tasks["drawing"] = TaskRun(
            lambda: draw_picture(logits, picture, plan.drawing_steps, GUIDANCE), plan.drawing_steps, True
        )
    return Contestant(name, kind, tasks)


def ours(
    size_name: str, size: Size, plan: Plan, precision: str, work: Path, threads: int, *, decode: bool, device: str = "cpu"
) -> Iterator[Contestant]:
    """Our runtime in one precision: full forwards with the head over all rows, and with `decode` every policy."""
    bundle = cached_bundle(size_name, precision, work, target=TARGETS[device])
    denoiser = open_denoiser(bundle, choose_device(device), threads)
    tasks = {f"forward {n}": TaskRun(lambda n=n: _forward(denoiser, _row(n, size)), 1, True) for n in plan.forwards}  # type: ignore[misc]
    yield Contestant(f"ours {precision}", "ours", tasks)
    if decode:
        for policy in policies.for_peers():
            yield Contestant(f"ours {precision} {policy.name}", "ours", _decoding(denoiser, size, plan, policy))


def _decoding(denoiser: Denoiser, size: Size, plan: Plan, policy: policies.Policy) -> dict[str, TaskRun]:
    """The three tasks under a policy. Where it changes no setting of pictures, they are drawn under exact alone. No token ends
    a text, so that all who take part write as much."""
    special, exact = size.vocabulary.special, not policy.of_text
    endless, caption = TextTokens(special.mask), paint_prompt(_words(WORDS, size), size.vocabulary)
    blank = np.zeros(size.grid**2, dtype=np.int64)
    block = plan.block * plan.steps // plan.answer  # its steps
    text = policy.text(TextSettings(answer_length=plan.answer, steps=plan.steps, block_length=plan.block))
    image = policy.image(ImageSettings(plan.drawing_steps, GUIDANCE))

    def write(prompt: list[int]) -> Iterator[object]:
        return generate.complete(denoiser, prompt, text, endless).steps

    def draw() -> Iterator[object]:
        return generate.draw(denoiser, caption, blank, blank == 0, image, size.vocabulary).steps

    tasks = {
        "text": TaskRun(lambda: write(_words(plan.prompt, size)), text.steps if exact else None, exact, block),
        "understanding": TaskRun(lambda: write(_seen(size)), text.steps if exact else None, exact, block),
    }
    if exact or policy.of_image:
        tasks["drawing"] = TaskRun(draw, image.steps, not policy.of_image)
    return tasks


def others(size_name: str, size: Size, plan: Plan, work: Path, threads: int) -> Iterator[tuple[str, Callable[[], Contestant]]]:
    """Name and maker of every contestant of someone else's; a maker raises Error where its package is not installed."""
    for kind in ("int8", "nf4"):
        yield f"bitsandbytes {kind}", lambda kind=kind: _bitsandbytes(size, plan, kind)  # type: ignore[misc]
    yield "optimum dynamic int8", lambda: _optimum(size_name, size, plan, work, threads)
    for kind in llama.KINDS:
        yield f"llama.cpp {kind}", lambda kind=kind: _llama(size_name, size, plan, work, kind, threads)  # type: ignore[misc]


def _bitsandbytes(size: Size, plan: Plan, kind: str) -> Contestant:
    """The published loop over the torch model whose Linears are bitsandbytes' own, the head too."""
    third_party.need("bitsandbytes")
    model = torch_model(size, torch.float32)
    third_party.quantize_blocks(model, kind)
    head = third_party.quantized_linear(model.transformer.ff_out, kind)
    return reference(f"bitsandbytes {kind}", torch_logits(model, head), size, plan, "other")


def _optimum(size_name: str, size: Size, plan: Plan, work: Path, threads: int) -> Contestant:
    """The published loop over our fp32 graphs as optimum makes them int8. These take no mask, so pads are attended to."""
    third_party.need("optimum.onnxruntime", "optimum-onnx")
    bundle = cached_bundle(size_name, "fp32", work)
    denoiser = third_party.optimum(bundle.path, work / f"{size_name}-optimum", threads).denoiser

    def logits(tokens: Tensor, kept: Tensor | None) -> Tensor:
        hidden, _ = denoiser.forward(_window(tokens.numpy()), keep=False)
        return torch.from_numpy(denoiser.logits("text", hidden, np.eye(len(hidden), dtype=np.float32)))

    return reference("optimum dynamic int8", logits, size, plan, "other")


def _llama(size_name: str, size: Size, plan: Plan, work: Path, kind: str, threads: int) -> Contestant:
    """The published loop over the forward of llama.cpp. It draws nothing: a guided pair has masked pads, which it cannot do."""
    llama.needed()
    longest = max(*plan.forwards, len(_seen(size)) + plan.answer)
    path = llama.cached_file(size, size_name, kind, work)
    logits = llama.logits_of(path, longest, threads)
    return reference(f"llama.cpp {kind}", logits, size, plan, "other", pictures=False)


def _forward(denoiser: Denoiser, tokens: np.ndarray) -> Iterator[object]:
    """One full forward with the text head over every row, its choice of a token counted in."""
    hidden, _ = denoiser.forward(_window(tokens), keep=False)
    yield denoiser.predict("text", hidden, np.eye(len(hidden), dtype=np.float32), 0.0, None)


def _window(tokens: np.ndarray) -> Window:
    places = np.arange(tokens.shape[1], dtype=np.int64)
    return Window(tokens, places, np.ascontiguousarray(np.broadcast_to(places, tokens.shape)))


def _row(count: int, size: Size) -> np.ndarray:
    return np.array([_words(count, size)], dtype=np.int64)


def _words(count: int, size: Size) -> list[int]:
    """Ids of no meaning, none of them special."""
    first, stop = 12, size.vocabulary.image_code_offset
    token_ids: list[int] = np.random.default_rng(count).integers(first, stop, count).tolist()
    return token_ids


def _seen(size: Size) -> list[int]:
    """The prompt that shows a picture: its codes between their brackets."""
    return picture_prompt(np.random.default_rng(0).integers(0, size.codes, size.grid**2), size.vocabulary)
