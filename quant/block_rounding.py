"""The states of all rows of calibration on their way through one block, stopping at each site where matrices read them.

Activations are rounded as the graph will round them, where it does. It knows a block's arithmetic; it knows nothing of
codes, of methods, or of how rows were chosen.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.formats import Quantized, dequantize, quantize
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.quant.calibration import Sample
from mmada_lite.quant.gptq import aimed, gptq, prepare
from mmada_lite.quant.methods import Method, clipped
from mmada_lite.quant.transforms import ROOT, SITES, Folded, grouped, smoothing
from mmada_lite.train.model import Block, KeyValue, attend, load_state, rotate, rotation


class Passage:
    """`states` [B, L, D] of each batch, which become in place those that the next layer reads once all sites, in their
    order, are passed. round_activations: to int8 with a scale for each token, before every product."""

    def __init__(self, block: Block, config: TransformerConfig, states: list[Tensor], round_activations: bool) -> None:
        self.block, self.config, self.states, self.round_activations = block, config, states, round_activations
        self._mixed: list[Tensor] = []

    def read(self, site: str, batch: int) -> Tensor:
        """What the matrices of a site multiply, [B, L, K], as it comes."""
        if site == "value":
            return self._mixed[batch]
        norm = self.block.attn_norm if site == "attention" else self.block.ff_norm
        normed: Tensor = norm(self.states[batch])
        if site != "product":
            return normed
        return F.silu(self._times("ff_proj", normed)) * self._times("up_proj", normed)

    def go_past(self, site: str) -> None:
        """Multiply with the matrices of a site, as they are by now."""
        if site == "attention":
            self._mixed = [self._attended(self.read(site, i)) for i in range(len(self.states))]
        for i, x in enumerate(self.states):
            if site == "value":
                self.states[i] = x + self._times("attn_out", self.read(site, i))
            if site == "product":
                self.states[i] = x + self._times("ff_out", self.read(site, i))

    def linear(self, matrix: str) -> nn.Linear:
        found: nn.Linear = getattr(self.block, matrix)
        return found

    def activations(self, x: Tensor) -> Tensor:
        """x as a product sees it."""
        if not self.round_activations:
            return x
        unit = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (x / unit).round() * unit

    def _attended(self, normed: Tensor) -> Tensor:
        """normed [B, L, D] -> what attn_out reads, [B, L, D]."""
        block = self.block
        angles = self._angles(normed.shape[1])
        q, k, v = (block.heads(self._times(name, normed)) for name in SITES["attention"])
        q, k = rotate(q, *angles), rotate(k, *angles)
        if block.repeats > 1:
            k, v = k.repeat_interleave(block.repeats, 1), v.repeat_interleave(block.repeats, 1)
        return attend(q, k, v, None).transpose(1, 2).flatten(2)

    def _angles(self, length: int) -> KeyValue:
        return rotation(torch.arange(length)[None], self.config.head_dim, self.config.rope_theta)

    def _times(self, matrix: str, x: Tensor) -> Tensor:
        return F.linear(self.activations(x), self.linear(matrix).weight)


SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the difficulty that smoothing may move into the weights; or none
_ROWS = 4096  # outputs of a head that are held at once
_TRIED_ON = 256  # tokens on which shares are compared
_ADDED = ("value", "product")  # sites whose products are added to the states


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one task and one length."""

    tokens: Tensor  # int64 [B, L]
    weight: Tensor  # float32 [B, L]
    predicted: Tensor  # float32 [B, L]
    task: str

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Batch":
        fields = ([getattr(sample, name) for sample in samples] for name in ("tokens", "weight", "predicted"))
        tokens, weight, predicted = (aligned(np.stack(field)) for field in fields)
        return cls(tokens, weight, predicted, samples[0].task)


def embedded(source: Tensors, batches: Sequence[Batch]) -> list[Tensor]:
    """What the first layer reads, [B, L, D] of each batch; of the table only the rows that occur are read."""
    found = torch.unique(torch.cat([batch.tokens.flatten() for batch in batches]))
    name = f"{ROOT}.wte.weight"
    rows = np.concatenate([np.asarray(source.read(name, slice(t, t + 1)), np.float32) for t in found.tolist()])
    table = aligned(rows)
    return [table[torch.searchsorted(found, batch.tokens)] for batch in batches]


def aligned(values: np.ndarray) -> Tensor:
    """A copy where torch itself would have put it. Its products differ in the last bit by where their inputs happen to lie
    (several threads, few rows), and one bit may round another way: the same conversion would not end in the same bytes."""
    return torch.tensor(values)


def load_block(source: Tensors, config: TransformerConfig, layer: int) -> Block:
    """Layer `layer` alone, in float32."""
    with torch.device("meta"):
        block = Block(config)
    load_state(block, Prefixed(source, f"{ROOT}.blocks.{layer}."), torch.float32)
    return block.requires_grad_(False).eval()


class Prefixed:
    """A source whose names lack what all of them begin with."""

    def __init__(self, source: Tensors, prefix: str) -> None:
        self.source, self.prefix = source, prefix

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.prefix + name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.source.read(self.prefix + name, rows)


class Layer:
    """A block being rounded. With `form` floating nothing is rounded and no codes are given."""

    def __init__(self, block: Block, config: TransformerConfig, method: Method, form: WeightSpec, name: str) -> None:
        self.block, self.config, self.method, self.form, self.name = block, config, method, form, name
        self.codes: dict[str, Quantized] = {}

    @torch.no_grad()
    def advance(self, states: list[Tensor], batches: Sequence[Batch], aims: list[Tensor] | None = None) -> dict[str, Quantized]:
        """The codes of its matrices; the states [B, L, D] become, in place, those that the next layer reads.

        aims: the same states where no layer is rounded, and then those of the next layer. With them matrices are moved
        towards what they give there before they are rounded (gptaq).
        """
        whole = None if aims is None else Passage(copy.deepcopy(self.block), self.config, aims, False)
        passage = self._passage(states)
        for site in SITES:
            if not self.form.format.floating:
                self._round(site, batches, passage, whole)
            passage.go_past(site)
            if whole is not None:
                whole.go_past(site)
        return self.codes

    @torch.no_grad()
    def factors(self, states: Sequence[Tensor], batches: Sequence[Batch]) -> dict[str, NDArray[np.float32]]:
        """Site -> the factors [K] under which rounding costs least there, before anything is rounded."""
        passage, found = self._passage(list(states)), {}
        kept = [slice(None) if (w := batch.weight).min() == w.max() else w.flatten() > w.min() for batch in batches]
        for site in SITES:
            read = torch.cat([passage.read(site, i).flatten(0, 1)[some] for i, some in enumerate(kept)])
            found[site] = self._factors(site, read, passage)
            passage.go_past(site)
        return found

    def _passage(self, states: list[Tensor]) -> Passage:
        return Passage(self.block, self.config, states, self.form.activation is not None)

    def _factors(self, site: str, read: Tensor, passage: Passage) -> NDArray[np.float32]:
        """read [tokens, K]: what the site's matrices multiply."""
        weights = torch.cat([passage.linear(matrix).weight for matrix in SITES[site]])
        size = (read.abs().amax(0) if passage.round_activations else read.abs().mean(0)).numpy()
        peaks = weights.abs().amax(0).numpy()
        if site == "value":
            size, peaks = (self._shared(channels) for channels in (size, peaks))
        some = read[torch.linspace(0, len(read) - 1, min(_TRIED_ON, len(read))).long()]

        def cost(factors: NDArray[np.float32]) -> float:
            """Squared error of the product when both sides are rounded under these factors."""
            scale = aligned(factors)
            held = quantize((weights * scale).numpy(), self.form.format, self.name)
            found = passage.activations(some / scale) @ aligned(dequantize(held)).T
            return float((found - some @ weights.T).square().mean())

        best, chosen = cost(np.ones_like(size)), np.ones_like(size)
        for share in SHARES:
            factors = smoothing(size, peaks, share)
            if (tried := cost(factors)) < best:
                best, chosen = tried, factors
        return chosen

    def _shared(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest of the query heads that share a key head, for each of them."""
        heads = grouped(channels, self.config)
        return np.broadcast_to(heads.max(1, keepdims=True), heads.shape).reshape(-1)

    def _round(self, site: str, batches: Sequence[Batch], passage: Passage, whole: Passage | None) -> None:
        """Round the matrices of a site."""
        sums = self._sums(site, batches, passage, whole) if self.method.compensates else []
        moments = prepare(sums[0], f"{self.name}.{SITES[site][0]}.weight") if sums else None
        for matrix in SITES[site]:
            name, weight = f"{self.name}.{matrix}.weight", passage.linear(matrix).weight
            if len(sums) > 1:
                weight = aimed(weight, sum(sums[2:], start=weight @ sums[1]), sums[0], name)
            if moments is not None:
                held = gptq(weight, moments, self.form.format, name)
            else:
                held = (clipped if self.method.rounding == "clip" else quantize)(weight.numpy(), self.form.format, name)
            self.codes[matrix] = held
            passage.linear(matrix).weight = nn.Parameter(aligned(dequantize(held)), requires_grad=False)

    def _sums(self, site: str, batches: Sequence[Batch], passage: Passage, whole: Passage | None) -> list[Tensor]:
        """Sums over positions of weight * y x^T, where the site's matrices multiply x: of y = x; then, with a whole passage,
        of what they multiply there, and where their product is added to the states, of what the states lack by now."""

        def read() -> Iterator[tuple[Tensor, ...]]:
            for i, batch in enumerate(batches):
                x = passage.activations(passage.read(site, i))
                there = () if whole is None else (whole.read(site, i),)
                lacking = (whole.states[i] - passage.states[i],) if whole is not None and site in _ADDED else ()
                yield batch.weight, x, *there, *lacking

        return weighted_sums(read())


def weighted_sums(read: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Sums over positions of weight * y x^T, [N, K], of y = x and of every other y: from tuples of weight [B, L], x [B, L, K]
    and any others [B, L, N]."""
    totals: list[Tensor] = []
    for weight, *given in read:
        root = weight.sqrt()[..., None]
        x, *others = ((each * root).flatten(0, 1) for each in given)
        if totals:
            for total, y in zip(totals, (x, *others), strict=True):
                total.addmm_(y.T, x)
        else:
            totals = [y.T @ x for y in (x, *others)]
    assert totals, "sums of nothing"
    return totals


@dataclass(frozen=True, slots=True)
class HeadRead:
    """What a head reads of a batch: states [B, L, D] after the last layer; aims, the same where no layer is rounded."""

    batch: Batch
    states: Tensor
    aims: Tensor | None = None


@torch.no_grad()
def round_head(source: Folded, read: Sequence[HeadRead], rows: slice, form: WeightSpec) -> Quantized:
    """Codes by GPTQ of rows of the output matrix, for states after the last layer at what is predicted there; where there
    are aims, of rows that give from those states what they would have given from these."""
    name, eps = f"{ROOT}.ff_out.weight", source.config.rms_norm_eps
    scale = aligned(np.asarray(source.read(f"{ROOT}.ln_f.weight"), np.float32))

    def normed(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], scale, eps)

    whole = ((normed(each.aims),) if each.aims is not None else () for each in read)
    sums = weighted_sums((each.batch.predicted, normed(each.states), *aim) for each, aim in zip(read, whole, strict=True))
    moments, parts = prepare(sums[0], name), []
    for begin in range(rows.start, rows.stop, _ROWS):
        chunk = aligned(np.asarray(source.read(name, slice(begin, min(begin + _ROWS, rows.stop))), np.float32))
        parts.append(gptq(aimed(chunk, chunk @ sums[1], sums[0], name) if sums[1:] else chunk, moments, form.format, name))
    codes, scales = np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts])
    zeros = None if form.format.symmetric else np.concatenate([part.zeros for part in parts if part.zeros is not None])
    return Quantized(form.format, codes, scales, zeros)
