"""Who takes part in the benchmark of peers, and what each has to do: full forwards, an answer, an answer about a picture, a
picture. Every contestant is a table of tasks that begin anew whenever they are asked to. Weights are random; nothing is timed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmada_lite.bench import policies, third_party
from mmada_lite.bench.reference import PADDED, Logits, draw_picture, picture_to_draw, torch_logits, write_text
from mmada_lite.bench.speed.latency_cases import TARGETS, words
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser, Window
from mmada_lite.decoding.generate import TextTokens
from mmada_lite.decoding.rows import paint_prompt, picture_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.synthetic import AlikeTensors, RandomTensors, Size, cached_bundle, config_of
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import open_denoiser
from mmada_lite.train.loop import fast_type
from mmada_lite.train.model import MMaDA, load_state

GUIDANCE = 3.5
OPENVINO = {"openvino": False, "openvino int8 weights": True}  # on our fp32 graphs; whether weights are rounded
WORDS = 30  # ids of a caption
REFERENCES = {"torch fp32": torch.float32, "torch bf16": torch.bfloat16}
TORCH_DEVICES = {
    "cpu": "cpu",
    "openvino": "cpu",
    "cuda": "cuda",
    "rtx": "cuda",
    "tensorrt": "cuda",
}  # our device -> torch's beside it


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
    """A task in one way of doing it. begin: starts it anew, an item a step; steps: of the whole task, where a few of its steps
    tell the time of all; cycle: so many of them cost the same together, since a block's last steps ask the head for fewer rows
    than its first. logits: of a full forward, [tokens, V] in float32, by which errors are told."""

    begin: Callable[[], Iterator[object]]
    steps: int | None = None
    cycle: int = 1
    logits: Callable[[], np.ndarray] | None = None


Tasks = dict[str, TaskRun]


@dataclass(frozen=True)
class Contest:
    """What all who take part have in common. device: ours; torch's is the one beside it. alike: torch's weights are those of
    `AlikeTensors`."""

    size_name: str
    size: Size
    plan: Plan
    work: Path
    threads: int
    device: str = "cpu"
    alike: bool = False

    def makers(self, precisions: Sequence[str], asked: Sequence[str] = ()) -> dict[str, Callable[[], Tasks]]:
        """Name -> what opens a contestant, in the order of the table; the loops of ours are run in the first precision. A maker
        raises Error where it cannot take part here."""
        makers: dict[str, Callable[[], Tasks]] = {
            name: partial(self._published, dtype, name in asked) for name, dtype in REFERENCES.items()
        }
        for precision in precisions:
            makers[f"ours {precision}"] = partial(self._forwards, precision)
            for policy in policies.for_peers() if precision == precisions[0] else ():
                makers[f"ours {precision} {policy.name}"] = partial(self.decoding, precision, policy)
        if TORCH_DEVICES[self.device] == "cpu":
            makers |= {f"bitsandbytes {kind}": partial(self._bitsandbytes, kind) for kind in ("int8", "nf4")}
            makers["optimum dynamic int8"] = self._optimum
            makers["torch dynamic int8"] = self._torch_dynamic
            makers |= {name: partial(self._openvino, int8) for name, int8 in OPENVINO.items()}
        return makers

    def torch_model(self, dtype: torch.dtype) -> MMaDA:
        """The torch reference with the random weights that bundles have."""
        config = config_of(self.size)
        with torch.device("meta"):
            model = MMaDA(config)
        load_state(model, (AlikeTensors if self.alike else RandomTensors)(config.expected_tensors()), dtype)
        return model.to(TORCH_DEVICES[self.device]).eval()

    def reference(self, logits: Logits) -> Tasks:
        """All tasks in the published way over whatever gives logits of whole rows."""
        size, plan, device = self.size, self.plan, TORCH_DEVICES[self.device]
        vocabulary, mask = size.vocabulary, size.vocabulary.special.mask
        picture = picture_to_draw(paint_prompt(self._words(WORDS), vocabulary), vocabulary, size.grid**2, plan.padded, device)

        def forward(count: int) -> Iterator[Tensor]:
            yield logits(torch.tensor([self._words(count)], device=device), None)

        def write(prompt: list[int]) -> Iterator[Tensor]:
            row = torch.tensor([prompt], device=device)
            return write_text(logits, row, plan.answer, plan.block, plan.steps, mask)

        def draw() -> Iterator[Tensor]:
            return draw_picture(logits, picture, plan.drawing_steps, GUIDANCE)

        return {
            **{
                f"forward {count}": TaskRun(partial(forward, count), logits=partial(_logits_of, partial(forward, count)))
                for count in plan.forwards
            },
            "text": TaskRun(partial(write, self._words(plan.prompt)), plan.steps),
            "understanding": TaskRun(partial(write, self._seen()), plan.steps),
            "drawing": TaskRun(draw, plan.drawing_steps),
        }

    def decoding(self, precision: str, policy: policies.Policy) -> Tasks:
        """Our loops under a policy. Where it changes no setting of pictures, they are drawn under exact alone. No token ends a
        text, so that all who take part write as much."""
        denoiser, vocabulary, plan, exact = self._opened(precision), self.size.vocabulary, self.plan, not policy.of_text
        endless, caption = TextTokens(vocabulary.special.mask), paint_prompt(self._words(WORDS), vocabulary)
        blank = np.zeros(self.size.grid**2, dtype=np.int64)
        text = policy.text(TextSettings(answer_length=plan.answer, steps=plan.steps, block_length=plan.block))
        image = policy.image(ImageSettings(plan.drawing_steps, GUIDANCE))

        def write(prompt: list[int]) -> TaskRun:
            block = plan.block * plan.steps // plan.answer  # its steps
            return TaskRun(
                lambda: generate.complete(denoiser, prompt, text, endless).steps, text.steps if exact else None, block
            )

        def draw() -> Iterator[object]:
            return generate.draw(denoiser, caption, blank, blank == 0, image, vocabulary).steps

        tasks = {"text": write(self._words(plan.prompt)), "understanding": write(self._seen())}
        if exact or policy.of_image:
            tasks["drawing"] = TaskRun(draw, None if policy.of_image else image.steps)
        return tasks

    def _published(self, dtype: torch.dtype, by_name: bool) -> Tasks:
        if dtype == torch.bfloat16 and fast_type(torch.device(TORCH_DEVICES[self.device])) != dtype and not by_name:
            raise Error(
                "this processor has no bfloat16 instructions, and torch is far slower without; "
                '--contestants "torch bf16" measures it'
            )
        return self.reference(torch_logits(self.torch_model(dtype)))

    def _forwards(self, precision: str) -> Tasks:
        """Full forwards of ours with the head over all rows, its choice of a token counted in."""
        denoiser = self._opened(precision)

        def forward(count: int) -> Iterator[object]:
            hidden, _ = denoiser.forward(_window(np.array([self._words(count)])), keep=False)
            yield denoiser.predict("text", hidden, np.eye(len(hidden), dtype=np.float32), 0.0, None)

        def logits(count: int) -> np.ndarray:
            hidden, _ = denoiser.forward(_window(np.array([self._words(count)])), keep=False)
            made: np.ndarray = denoiser.logits("text", hidden, np.eye(len(hidden), dtype=np.float32))[0]
            return made

        return {
            f"forward {count}": TaskRun(partial(forward, count), logits=partial(logits, count)) for count in self.plan.forwards
        }

    def _bitsandbytes(self, kind: str) -> Tasks:
        """The published loop over the torch model whose Linears are bitsandbytes' own, the head too."""
        third_party.need("bitsandbytes")
        model = self.torch_model(torch.float32)
        third_party.quantize_blocks(model, kind)
        return self.reference(torch_logits(model, third_party.quantized_linear(model.transformer.ff_out, kind)))

    def _optimum(self) -> Tasks:
        """The published loop over our fp32 graphs as optimum makes them int8."""
        third_party.need("optimum.onnxruntime", "optimum-onnx")
        bundle = cached_bundle(self.size_name, "fp32", self.work)
        return self._over(third_party.optimum(bundle.path, self.work / f"{self.size_name}-optimum", self.threads).denoiser)

    def _torch_dynamic(self) -> Tasks:
        """The published loop over the torch model in torch's own dynamic int8."""
        model = third_party.dynamic_int8(self.torch_model(torch.float32))
        return self.reference(torch_logits(model, model.transformer.ff_out))

    def _openvino(self, int8: bool) -> Tasks:
        """The published loop over our fp32 graphs in OpenVINO, which computes them in bf16 where the processor has it."""
        bundle = cached_bundle(self.size_name, "fp32", self.work)
        return self._over(third_party.openvino(bundle.path, self.threads, int8=int8))

    def _over(self, denoiser: Denoiser) -> Tasks:
        """The published loop over graphs, which take no mask, so that pads are attended to."""

        def logits(tokens: Tensor, kept: Tensor | None) -> Tensor:
            hidden, _ = denoiser.forward(_window(tokens.numpy()), keep=False)
            return torch.from_numpy(denoiser.logits("text", hidden, np.eye(len(hidden), dtype=np.float32)))

        return self.reference(logits)

    def _opened(self, precision: str) -> Denoiser:
        return _open(self.size_name, precision, self.work, self.device, self.threads)

    def _words(self, count: int) -> list[int]:
        return words(self.size.vocabulary, count)

    def _seen(self) -> list[int]:
        """The prompt that shows a picture: its codes between their brackets."""
        codes = np.random.default_rng(0).integers(0, self.size.codes, self.size.grid**2)
        return picture_prompt(codes, self.size.vocabulary)


@cache
def _open(size_name: str, precision: str, work: Path, device: str, threads: int) -> Denoiser:
    """Once for all that a precision of ours does."""
    bundle = cached_bundle(size_name, precision, work, target=TARGETS[device])
    return open_denoiser(bundle, choose_device(device), threads)


def _logits_of(forward: Callable[[], Iterator[Tensor]]) -> np.ndarray:
    """Of the one row of a forward, in float32."""
    logits: np.ndarray = next(forward())[0].float().cpu().numpy()
    return logits


def _window(tokens: np.ndarray) -> Window:
    places = np.arange(tokens.shape[1], dtype=np.int64)
    return Window(tokens, places, np.ascontiguousarray(np.broadcast_to(places, tokens.shape)))
