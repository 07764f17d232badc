"""The decodes that `mmada-lite bench latency` measures: text, an answer about a picture, drawing and inpainting, each with
what the cost model says of its steps.

Prompts are ids, so that a bundle of random weights needs no tokenizer; a model with one gets a question. It knows prompts
and settings; it keeps no time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmada_lite.bench.speed import cost
from mmada_lite.bundle import Bundle
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_end, picture_prompt, unconditional_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.vocabulary import Tokenizer

TARGETS = {"cpu": "cpu", "cuda": "cuda", "rtx": "tensorrt", "tensorrt": "tensorrt"}  # device -> what a bundle is lowered for
TASKS = ("text", "understanding", "drawing", "inpainting")
QUESTION = "what is 3 + 4?"
CAPTION = 16  # tokens of a prompt to draw


@dataclass(frozen=True, slots=True)
class Case:
    """One decode. begin: starts it anew; size: tokens of the answer or codes to draw; prompt: tokens before them; pieces: the
    cost model's of each step, None with a threshold; leave: masks at which the run ends early, and blocks: how many of how many
    that are."""

    task: str
    settings: TextSettings | ImageSettings
    begin: Callable[[Denoiser], Decoding]
    prompt: int
    size: int
    pieces: Callable[[cost.Transformer], Iterator[list[cost.Piece]]] | None
    leave: int = 0
    blocks: tuple[int, int] = (1, 1)

    def steps(self, denoiser: Denoiser) -> Iterator[Step]:
        """Those of the decode begun anew."""
        return self.begin(denoiser).steps

    @property
    def scale(self) -> float:
        """What a run's seconds are multiplied by to stand for the whole decode."""
        return self.blocks[1] / self.blocks[0]


@dataclass(frozen=True, slots=True)
class Bench:
    """What the cases of a bundle have in common. grid: codes along a side of a picture."""

    bundle: Bundle
    grid: int

    @classmethod
    def of(cls, bundle: Bundle) -> "Bench":
        if bundle.image is None:
            raise Error(f"{bundle.path} has no pictures, which this benchmark draws and asks about; give another bundle")
        return cls(bundle, bundle.image.resolution // bundle.image.downsample)

    def text(self, prompt: int | None, settings: TextSettings, blocks: int | None = None) -> Case:
        """An answer after a prompt of so many random ids; None: after a question, where there is a tokenizer."""
        ids = self._asked() if prompt is None else self._words(prompt)
        return self._answer("text", ids, settings, blocks)

    def understanding(self, pictures: int, settings: TextSettings, blocks: int | None = None) -> Case:
        """An answer after `pictures` times as many codes as a picture has, between their brackets."""
        return self._answer("understanding", picture_prompt(self._codes(pictures), self.bundle.vocabulary), settings, blocks)

    def drawing(self, pictures: int, settings: ImageSettings, *, part: float = 1.0) -> Case:
        """Drawing `part` of so many pictures' codes; less than 1 is inpainting."""
        codes, vocabulary = self._codes(pictures), self.bundle.vocabulary
        unknown = np.arange(codes.size) < max(1, round(part * codes.size))
        prompt = paint_prompt(self._words(CAPTION), vocabulary)
        nothing = unconditional_prompt(vocabulary) if settings.guidance > 0 else None
        chosen = settings.replace(steps=min(settings.steps, int(unknown.sum())))
        lengths = tuple(len(ids) + codes.size + len(picture_end(vocabulary)) for ids in (prompt, nothing) if ids is not None)
        self._fits(max(lengths))

        def begin(denoiser: Denoiser) -> Decoding:
            return generate.draw(denoiser, prompt, codes, unknown, chosen, vocabulary)

        def pieces(model: cost.Transformer) -> Iterator[list[cost.Piece]]:
            return cost.drawing(model, lengths, int(unknown.sum()), chosen)

        name = "drawing" if part == 1 else "inpainting"
        return Case(name, chosen, begin, len(prompt), int(unknown.sum()), pieces)

    def _answer(self, task: str, prompt: Sequence[int], settings: TextSettings, blocks: int | None) -> Case:
        self._fits(len(prompt) + settings.answer_length)
        tokens = self._tokens(settings)
        all_blocks = settings.blocks(len(prompt))
        taken = min(blocks or len(all_blocks), len(all_blocks))
        leave = len(prompt) + settings.answer_length - all_blocks[taken - 1].stop

        def pieces(model: cost.Transformer) -> Iterator[list[cost.Piece]]:
            steps = sum(block.steps for block in all_blocks[:taken])
            return (step for _, step in zip(range(steps), cost.text(model, len(prompt), settings), strict=False))

        return Case(
            task,
            settings,
            lambda denoiser: generate.complete(denoiser, prompt, settings, tokens),
            len(prompt),
            settings.answer_length,
            pieces if settings.acceleration.threshold is None else None,
            leave,
            (taken, len(all_blocks)),
        )

    def _tokens(self, settings: TextSettings) -> TextTokens:
        """What a thought ends with, where one is waited for. No token ends a text: every run does the same work."""
        path = self.bundle.tokenizer_path if settings.acceleration.thought_first else None
        tokenizer = None if path is None else Tokenizer.from_file(path)
        return replace(TextTokens.of(self.bundle.vocabulary.special, tokenizer), stop=frozenset())

    def _words(self, count: int) -> list[int]:
        """So many different ids of text, none of them special."""
        vocabulary = self.bundle.vocabulary
        special = {getattr(vocabulary.special, name) for name in vocabulary.special.__slots__}
        known = [n for n in range(min(vocabulary.image_code_offset, 4096)) if n not in special]
        return [known[n] for n in np.random.default_rng(count).integers(0, len(known), count)]

    def _asked(self) -> list[int]:
        path = self.bundle.tokenizer_path
        if path is None:
            return self._words(64)
        return chat_ids(Tokenizer.from_file(path), self.bundle.vocabulary, [{"role": "user", "content": QUESTION}])

    def _codes(self, pictures: int) -> np.ndarray:
        count = pictures * self.grid**2
        return np.random.default_rng(pictures).integers(0, self.bundle.vocabulary.codebook_size, count)

    def _fits(self, length: int) -> None:
        longest = self.bundle.architecture.max_sequence_length
        if length > longest:
            raise Error(
                f"{length} tokens do not fit into the {longest} that this model reads; ask for a shorter prompt or answer"
            )
