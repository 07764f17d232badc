"""What a decode costs, written down: floating-point operations and bytes of every forward, head and picture, and the seconds
that follow from a machine's measured rates. docs/benchmarks.md has the formulas in words.

A piece of work takes the longer of its arithmetic and its traffic; a decode is the sum of its pieces. It knows shapes, settings
and schedules; it runs nothing and measures nothing: rates come from `mmada_lite.bench.speed.ceiling`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmada_lite.bundle import Architecture, Bundle, WeightGroup
from mmada_lite.decoding.schedules import masked_after, transfers
from mmada_lite.decoding.settings import ImageSettings, TextSettings

Kind = Literal["matrix", "attention", "elementwise", "memory", "nodes"]
_FLOAT = 4  # bytes
_GREEDY_PASSES = 11  # over the logits, by the head's own reductions: search 1, softmax 5, its sum 1, times logits 3, that sum 1
_DRAWN_PASSES = 8  # more, where a token is drawn: division 2, softmax 5, sums 1


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of work. flops (for `nodes`: how many); bytes; tokens: the rows of a product; part: backbone, head or
    copying; form: how the matrices are stored."""

    kind: Kind
    part: str
    flops: float = 0.0
    bytes: float = 0.0
    tokens: int = 1
    form: str = "fp32"


@dataclass(frozen=True, slots=True)
class Transformer:
    """What the cost depends on: shape, columns of the picture's head, and by graph the form and bytes of its matrices and the
    number of its nodes."""

    architecture: Architecture
    codes: int
    forms: Mapping[str, str]
    bytes: Mapping[str, int]
    nodes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, nodes: Mapping[str, int]) -> "Transformer":
        groups = {name: bundle.quantization[name] for name in ("backbone", "text_head", "image_head")}
        forms = {name: form_of(group) for name, group in groups.items()}
        return cls(
            bundle.architecture,
            bundle.vocabulary.codebook_size,
            forms,
            {n: g.bytes or 0 for n, g in groups.items()},
            nodes,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """A machine, measured. matrix: form -> tokens -> FLOP/s; attention: tokens -> FLOP/s; elementwise: tokens -> bytes/s of a
    node that adds two tensors; memory: bytes/s of reading what no cache holds; node: seconds of the smallest node."""

    matrix: Mapping[str, Mapping[int, float]]
    attention: Mapping[int, float]
    elementwise: Mapping[int, float]
    memory: float
    node: float = 0.0

    def seconds(self, piece: Piece) -> float:
        """The longer of arithmetic and traffic."""
        if piece.kind == "nodes":
            return piece.flops * self.node
        if piece.kind == "elementwise":
            return piece.bytes / at(self.elementwise, piece.tokens)
        traffic = piece.bytes / self.memory
        if piece.kind == "memory":
            return traffic
        rates = self.attention if piece.kind == "attention" else self.matrix[piece.form]
        return max(piece.flops / at(rates, piece.tokens), traffic)


def form_of(group: WeightGroup) -> str:
    """The name of a ceiling's form: half precision is computed in float32 on a CPU."""
    if group.format in ("fp32", "fp16"):
        return "fp32"
    return group.format if group.block is None else f"{group.format}-b{group.block}"


def at(rates: Mapping[int, float], tokens: int) -> float:
    """The rate at a number of tokens, between those measured by straight lines in logarithms, beyond them the nearest."""
    known = sorted(rates)
    if tokens <= known[0] or len(known) == 1:
        return rates[known[0]]
    for low, high in itertools.pairwise(known):
        if tokens <= high:
            share = math.log(tokens / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(rates[low]) + share * math.log(rates[high]))
    return rates[known[-1]]


def predicted(pieces: Iterable[Piece], rates: Rates) -> float:
    """Seconds."""
    return sum(rates.seconds(piece) for piece in pieces)


def matrix_flops(pieces: Iterable[Piece], part: str = "backbone") -> float:
    return sum(piece.flops for piece in pieces if piece.kind == "matrix" and piece.part == part)


def forward(model: Transformer, window: int, past: int, rows: int, batch: int = 1) -> list[Piece]:
    """One call of the backbone: `window` positions over `past` cached ones, `rows` of which leave the last layer.

    With d, k, m the widths of the model, of all keys of a position and of the feed-forward part: a layer multiplies
    4 d k + 4 d^2 + 6 d m a token and 4 d (window + past) for its attention; keys and values are computed for the whole window,
    everything else of the last layer for the rows alone.
    """
    a = model.architecture
    d, m, k, seen = a.d_model, a.mlp_hidden_size, a.n_kv_heads * a.head_dim, window + past
    form, each = model.forms["backbone"], model.bytes["backbone"] / a.n_layers
    pieces = []
    for count, asked in ((a.n_layers - 1, window), (1, rows)):
        if not count:
            continue
        products = count * batch * (4 * window * d * k + asked * (4 * d * d + 6 * d * m))
        moved = count * batch * _FLOAT * (asked * (14 * d + 8 * m) + window * (2 * d + 6 * k))
        tokens = batch * asked
        pieces += [
            Piece("matrix", "backbone", products, count * each, tokens, form),
            Piece("attention", "backbone", count * batch * 4 * asked * seen * d, tokens=asked),
            Piece("elementwise", "backbone", bytes=moved, tokens=tokens),
            Piece("elementwise", "backbone", bytes=count * batch * _FLOAT * 4 * seen * k, tokens=seen),
        ]
    return [*pieces, Piece("nodes", "backbone", model.nodes.get("backbone", 0))]


def head(model: Transformer, name: str, rows: int, *, drawn: bool = False) -> list[Piece]:
    """One call of a head for `rows` positions: every column, and the passes over the logits that choose and measure a token."""
    columns = model.codes if name == "image_head" else model.architecture.vocab_size
    passes = _GREEDY_PASSES + (_DRAWN_PASSES if drawn else 0)
    return [
        Piece("matrix", "head", 2 * rows * model.architecture.d_model * columns, model.bytes[name], rows, model.forms[name]),
        Piece("elementwise", "head", bytes=passes * _FLOAT * rows * columns, tokens=rows),
        Piece("nodes", "head", model.nodes.get(name, 0)),
    ]


def text(model: Transformer, prompt: int, settings: TextSettings) -> Iterator[list[Piece]]:
    """Every step of an answer after `prompt` tokens, as the loop takes them without a threshold: the pieces of each."""
    length, branches = prompt + settings.answer_length, 2 if settings.guidance > 0 else 1
    saving = settings.acceleration
    for block in settings.blocks(prompt):
        masks = wide = block.stop - block.start
        for turn, written in enumerate(transfers(masks, block.steps)):
            window = length
            if turn and saving.cache != "none":
                window = length - block.start if saving.cache == "prefix" else wide
            elif saving.cache == "prompt" and block.start > prompt:
                window = settings.answer_length
            step = [each for _ in range(branches) for each in forward(model, window, length - window, masks)]
            step += head(model, "text_head", masks, drawn=settings.temperature > 0)
            if not turn and saving.cache != "none":  # the caches are cut to the past of later steps: read and written once
                step.append(_cut(model, branches * length))
            if turn and saving.kv_commit_every is not None and wide - masks >= saving.kv_commit_every:
                step.append(_cut(model, branches * (length - masks)))
                wide = masks
            yield step
            masks -= int(written)


def drawing(model: Transformer, lengths: tuple[int, ...], unknown: int, settings: ImageSettings) -> Iterator[list[Piece]]:
    """Every step of drawing `unknown` codes. lengths: tokens of the conditional row and, with guidance, of the other."""
    masks = unknown
    for k, left in enumerate(masked_after(settings.schedule, unknown, settings.steps)):
        step = [each for length in lengths for each in forward(model, length, 0, masks)]
        yield step + head(model, "image_head", masks, drawn=settings.sampling_temperature > 0)
        later = settings.steps - 1 - k  # each of them draws at least one; the last leaves none
        masks = max(0, min(masks - 1, max(int(left), later) if later else 0))


def _cut(model: Transformer, length: int) -> Piece:
    a = model.architecture
    return Piece("memory", "copying", bytes=2 * 2 * _FLOAT * a.n_layers * a.n_kv_heads * a.head_dim * length)
