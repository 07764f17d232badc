"""The decodes that `mmada-lite bench latency` measures: text, holes, an answer about a picture, drawing and inpainting.

Prompts are ids, so that a bundle of random weights needs no tokenizer; a model with one gets a question. It knows prompts
and settings; it keeps no time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmada_lite.bundle import Bundle
from mmada_lite.decoding import generate
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.generate import Decoding, TextTokens
from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_prompt
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.vocabulary import Tokenizer, Vocabulary

# Device -> what a bundle is lowered for.
TARGETS = {"cpu": "cpu", "openvino": "openvino", "cuda": "cuda", "rtx": "tensorrt", "tensorrt": "tensorrt"}
ON_HOST = ("cpu", "openvino")  # devices whose weights lie in the machine's own memory
TASKS = ("text", "filling", "understanding", "drawing", "inpainting")
QUESTION = "what is 3 + 4?"
CAPTION = 16  # tokens of a prompt to draw


@dataclass(frozen=True, slots=True)
class Case:
    """One decode. begin: starts it anew; size: tokens of the answer or codes to draw; prompt: tokens before them; leave: masks
    at which the run ends early, and blocks: how many of how many that are."""

    task: str
    settings: TextSettings | ImageSettings
    begin: Callable[[Denoiser], Decoding]
    prompt: int
    size: int
    leave: int = 0
    blocks: tuple[int, int] = (1, 1)

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
        ids = self._asked() if prompt is None else words(self.bundle.vocabulary, prompt)
        return self._answer("text", ids, settings, blocks)

    def filling(self, prompt: int | None, settings: TextSettings, blocks: int | None = None) -> Case:
        """As many masks as a text has, behind the same prompt, but a given token before each: it takes the same forwards."""
        ids = self._asked() if prompt is None else words(self.bundle.vocabulary, prompt)
        given = words(self.bundle.vocabulary, settings.answer_length)
        answer = [token for word in given for token in (word, self.bundle.vocabulary.special.mask)]
        return self._answer("filling", ids, settings, blocks, answer)

    def understanding(self, settings: TextSettings, blocks: int | None = None) -> Case:
        """An answer after a picture's codes, between their brackets."""
        return self._answer("understanding", picture_prompt(self._codes(), self.bundle.vocabulary), settings, blocks)

    def drawing(self, settings: ImageSettings, *, part: float = 1.0) -> Case:
        """Drawing `part` of a picture's codes; less than 1 is inpainting."""
        codes = self._codes()
        unknown = np.arange(codes.size) < max(1, round(part * codes.size))
        prompt, size = paint_prompt(words(self.bundle.vocabulary, CAPTION), self.bundle.vocabulary), int(unknown.sum())
        chosen = settings.replace(steps=min(settings.steps, size))
        self._fits(len(prompt) + codes.size + 1)

        def begin(denoiser: Denoiser) -> Decoding:
            return generate.draw(denoiser, prompt, codes, unknown, chosen, self.bundle.vocabulary)

        return Case("drawing" if part == 1 else "inpainting", chosen, begin, len(prompt), size)

    def _answer(
        self,
        task: str,
        prompt: Sequence[int],
        settings: TextSettings,
        blocks: int | None,
        answer: Sequence[int] | None = None,
    ) -> Case:
        end = len(prompt) + settings.answer_length
        self._fits(end if answer is None else len(prompt) + len(answer))
        all_blocks, endless = settings.blocks(len(prompt)), TextTokens(self.bundle.vocabulary.special.mask)
        taken = min(blocks or len(all_blocks), len(all_blocks))

        def begin(denoiser: Denoiser) -> Decoding:
            # no token ends it: every run does the same work
            return generate.complete(denoiser, prompt, settings, endless, answer=answer)

        leave, size = end - all_blocks[taken - 1].stop, settings.answer_length
        return Case(task, settings, begin, len(prompt), size, leave, (taken, len(all_blocks)))

    def _codes(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, self.bundle.vocabulary.codebook_size, self.grid**2)

    def _asked(self) -> list[int]:
        path = self.bundle.tokenizer_path
        if path is None:
            return words(self.bundle.vocabulary, 64)
        return chat_ids(Tokenizer.from_file(path), self.bundle.vocabulary, [{"role": "user", "content": QUESTION}])

    def _fits(self, length: int) -> None:
        longest = self.bundle.architecture.max_sequence_length
        if length > longest:
            raise Error(
                f"{length} tokens do not fit into the {longest} that this model reads; ask for a shorter prompt or answer"
            )


def words(vocabulary: Vocabulary, count: int) -> list[int]:
    """So many random ids of text, none of them special."""
    special = {getattr(vocabulary.special, name) for name in vocabulary.special.__slots__}
    known = [n for n in range(min(vocabulary.image_code_offset, 4096)) if n not in special]
    return [known[n] for n in np.random.default_rng(count).integers(0, len(known), count)]
