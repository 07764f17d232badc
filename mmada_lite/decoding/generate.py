"""Ids in, ids and steps out: `complete` a text or `draw` a picture, one or a batch of them.

This is the one place that builds a decode, which is a canvas, a sampler and a loop over a denoiser: the model, training,
calibration, benchmarks and replays all begin here. It knows ids alone; how words and pixels become ids is written elsewhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from numpy.typing import ArrayLike

from mmada_lite.decoding.canvas import Canvas, Ints, image_canvas, text_canvas
from mmada_lite.decoding.constraint import Constraint
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.rows import unconditional_prompt
from mmada_lite.decoding.sampling import PhiloxSampler, Sampler
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.decoding.text import decode_text
from mmada_lite.errors import Error
from mmada_lite.vocabulary import SpecialTokens, Tokenizer, Vocabulary, closing_ids


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The ids that a text's decode looks for. mask: what is to be written; stop: any of these ends a text; closing: they end a
    thought, one after the other."""

    mask: int
    stop: frozenset[int] = frozenset()
    closing: tuple[int, ...] = ()

    @classmethod
    def of(cls, special: SpecialTokens, tokenizer: Tokenizer | None) -> "TextTokens":
        """Those of a model. Without a tokenizer nobody knows how a thought ends."""
        closing = () if tokenizer is None else tuple(closing_ids(tokenizer))
        return cls(special.mask, frozenset({special.eos, special.eot}), closing)


@dataclass(frozen=True, slots=True)
class Decoding:
    """A decode on its way. steps: reading them does the work; canvas: what they fill, as it stands."""

    canvas: Canvas
    steps: Iterator[Step]

    @property
    def ids(self) -> Ints:
        """The answers or the pictures' tokens as they stand, int64 [B, N]; the mask where nothing is written yet."""
        return self.canvas.tokens[:, self.canvas.region].copy()

    @property
    def codes(self) -> Ints:
        """Codes of pictures that are drawn to the end, int64 [B, N]."""
        return self.ids - self.canvas.code_offset


def complete(
    denoiser: Denoiser,
    prompts: ArrayLike,
    settings: TextSettings,
    tokens: TextTokens,
    *,
    answer: ArrayLike | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    constraints: Sequence[Constraint] = (),
) -> Decoding:
    """Write `settings.answer_length` ids behind prompts [P] or [B, P]; masks inside a prompt are written too.

    answer: ids [N] or [B, N] in place of that many masks. Its masks are written, in as many steps as an answer of that many
    tokens takes; the others are given and never change. A stop token ends a text behind its last given token; before that it
    closes the hole that it stands in, and the masks behind it there become stop tokens. sampler: where the random numbers come
    from, in place of the seed's own. constraints: the form of each answer, or none. Raises Error for an answer without a mask,
    for constraints in mode reference, and, once the steps are read, for settings that do not allow for so many masks, for
    drafts of several rows and for a seed outside 0 .. 2**64 - 1.
    """
    if constraints and settings.mode == "reference":
        raise Error("mode reference writes masks and stops in the middle, so no form can be kept; use mode default")
    partial = settings.answer_length if answer is None else answer
    canvas = text_canvas(prompts, partial, tokens.mask, guided=settings.guidance > 0)
    numbers = sampler or PhiloxSampler(seed, settings.temperature, canvas.start)
    return Decoding(canvas, decode_text(denoiser, canvas, settings, numbers, tokens.stop, tokens.closing, constraints))


def draw(
    denoiser: Denoiser,
    prompts: ArrayLike,
    codes: ArrayLike,
    unknown: ArrayLike,
    settings: ImageSettings,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    sampler: Sampler | None = None,
) -> Decoding:
    """Draw the codes that are `unknown` behind prompts [P] or [B, P] (all that stands before the codes); the others are given
    and never change. codes, unknown: [B, N], of one prompt any shape of N.

    Guidance is against the family's unconditional row. No more steps are taken than a row has unknown codes, except in the
    reference's way. sampler: where the random numbers come from, in place of the seed's own. Raises Error, once the steps are
    read, for a seed outside 0 .. 2**64 - 1.
    """
    nothing = unconditional_prompt(vocabulary) if settings.guidance > 0 else None
    canvas = image_canvas(prompts, codes, unknown, vocabulary, unconditional_prompt=nothing)
    if settings.mode != "reference":
        settings = replace(settings, steps=min(settings.steps, max(1, int(canvas.masked().sum(axis=1).max()))))
    numbers = sampler or PhiloxSampler(seed, settings.sampling_temperature, canvas.start)
    return Decoding(canvas, decode_image(denoiser, canvas, settings, numbers))
