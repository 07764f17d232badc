"""One layer at a time in torch: what its matrices read in calibration, their codes, and what the next layer will read.

Matrices are rounded in the order in which data passes them, and each sees what the rounded ones before it give. It
knows blocks and formats; it knows nothing of files, of resuming, or of how rows were chosen.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.lowering import Form
from mmada_lite.quant.calibration import Sample
from mmada_lite.quant.folding import ROOT, SITES, Folded, grouped, smoothing
from mmada_lite.quant.formats import Quantized, dequantize, quantize
from mmada_lite.quant.gptq import gptq, prepare
from mmada_lite.quant.search import Method, clipped
from mmada_lite.train.model import Block, KeyValue, attend, load_state, rotate, rotation

SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)  # of the difficulty that smoothing may move into the weights; or none
_ROWS = 4096  # outputs of a head that are held at once
_TRIED_ON = 256  # tokens on which shares are compared


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
    """A block being rounded. `advance` gives the codes of its matrices and turns the states [B, L, D], in place, into those
    that the next layer reads. With `form` floating nothing is rounded and no codes are given."""

    def __init__(self, block: Block, config: TransformerConfig, method: Method, form: Form, name: str) -> None:
        self.block, self.config, self.method, self.form, self.name = block, config, method, form, name
        self.codes: dict[str, Quantized] = {}

    @torch.no_grad()
    def advance(self, states: list[Tensor], batches: Sequence[Batch]) -> dict[str, Quantized]:
        block = self.block
        mixed = list(states)
        self._round("attention", batches, lambda i: block.attn_norm(states[i]))
        for i, x in enumerate(states):
            mixed[i] = self._attended(block.attn_norm(x))
        self._round("value", batches, lambda i: mixed[i])
        for i, x in enumerate(states):
            states[i] = x + self._times("attn_out", mixed[i])
        self._round("feedforward", batches, lambda i: block.ff_norm(states[i]))
        self._round("product", batches, lambda i: self._product(block.ff_norm(states[i])))
        for i, x in enumerate(states):
            states[i] = x + self._times("ff_out", self._product(block.ff_norm(x)))
        return self.codes

    @torch.no_grad()
    def factors(self, states: Sequence[Tensor], batches: Sequence[Batch]) -> dict[str, NDArray[np.float32]]:
        """Site -> the factors [K] under which rounding costs least there, before anything is rounded."""
        seen: dict[str, list[Tensor]] = {site: [] for site in SITES}
        for x, batch in zip(states, batches, strict=True):
            normed = self.block.attn_norm(x)
            mixed = self._attended(normed)
            later = self.block.ff_norm(x + self._times("attn_out", mixed))
            kept = batch.weight.flatten() > batch.weight.min() if batch.weight.min() < batch.weight.max() else slice(None)
            for site, read in zip(SITES, (normed, mixed, later, self._product(later)), strict=True):
                seen[site].append(read.flatten(0, 1)[kept])
        return {site: self._factors(site, torch.cat(read)) for site, read in seen.items()}

    def _factors(self, site: str, read: Tensor) -> NDArray[np.float32]:
        """read [tokens, K]: what the site's matrices multiply."""
        weights = torch.cat([self._linear(matrix).weight for matrix in SITES[site]])
        size = (read.abs().amax(0) if self.form.activation else read.abs().mean(0)).numpy()
        peaks = weights.abs().amax(0).numpy()
        if site == "value":
            size, peaks = (self._shared(channels) for channels in (size, peaks))
        some = read[torch.linspace(0, len(read) - 1, min(_TRIED_ON, len(read))).long()]
        best, chosen = self._cost(weights, some, np.ones_like(size)), np.ones_like(size)
        for share in SHARES:
            factors = smoothing(size, peaks, share)
            if (cost := self._cost(weights, some, factors)) < best:
                best, chosen = cost, factors
        return chosen

    def _shared(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest of the query heads that share a key head, for each of them."""
        heads = grouped(channels, self.config)
        return np.broadcast_to(heads.max(1, keepdims=True), heads.shape).reshape(-1)

    def _cost(self, weights: Tensor, read: Tensor, factors: NDArray[np.float32]) -> float:
        """Squared error of the product when both sides are rounded under these factors."""
        scale = aligned(factors)
        held = quantize((weights * scale).numpy(), self.form.format, self.name)
        found = self._activations(read / scale) @ aligned(dequantize(held)).T
        return float((found - read @ weights.T).square().mean())

    def _round(self, site: str, batches: Sequence[Batch], read: Callable[[int], Tensor]) -> None:
        """Round the matrices of a site, which multiply read(i) [B, L, K] of batch i."""
        if self.form.format.floating:
            return
        moments = None
        if self.method.rounding == "gptq":
            sums = weighted_moments((self._activations(read(i)), batch.weight) for i, batch in enumerate(batches))
            moments = prepare(sums, f"{self.name}.{SITES[site][0]}.weight")
        for matrix in SITES[site]:
            name, weight = f"{self.name}.{matrix}.weight", self._linear(matrix).weight
            if moments is not None:
                held = gptq(weight, moments, self.form.format, name)
            else:
                held = (clipped if self.method.rounding == "clip" else quantize)(weight.numpy(), self.form.format, name)
            self.codes[matrix] = held
            self._linear(matrix).weight = nn.Parameter(aligned(dequantize(held)), requires_grad=False)

    def _attended(self, normed: Tensor) -> Tensor:
        """normed [B, L, D] -> what attn_out reads, [B, L, D]."""
        block = self.block
        angles = self._angles(normed.shape[1])
        q, k, v = (block.heads(self._times(name, normed)) for name in SITES["attention"])
        q, k = rotate(q, *angles), rotate(k, *angles)
        if block.repeats > 1:
            k, v = k.repeat_interleave(block.repeats, 1), v.repeat_interleave(block.repeats, 1)
        return attend(q, k, v, None).transpose(1, 2).flatten(2)

    def _product(self, normed: Tensor) -> Tensor:
        return F.silu(self._times("ff_proj", normed)) * self._times("up_proj", normed)

    def _angles(self, length: int) -> KeyValue:
        return rotation(torch.arange(length)[None], self.config.head_dim, self.config.rope_theta)

    def _times(self, matrix: str, x: Tensor) -> Tensor:
        return F.linear(self._activations(x), self._linear(matrix).weight)

    def _activations(self, x: Tensor) -> Tensor:
        """x as the graph will round it: int8 with a scale for each token, or as it is."""
        if not self.form.activation:
            return x
        unit = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (x / unit).round() * unit

    def _linear(self, matrix: str) -> nn.Linear:
        found: nn.Linear = getattr(self.block, matrix)
        return found


def weighted_moments(read: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over positions of weight * x x^T, [K, K], from pairs of x [B, L, K] and weight [B, L]."""
    total: Tensor | None = None
    for x, weight in read:
        scaled = (x * weight.sqrt()[..., None]).flatten(0, 1)
        total = scaled.T @ scaled if total is None else total.addmm_(scaled.T, scaled)
    assert total is not None, "moments of nothing"
    return total


@torch.no_grad()
def round_head(source: Folded, read: Sequence[tuple[Tensor, Batch]], rows: slice, form: Form) -> Quantized:
    """Codes by GPTQ of rows of the output matrix, for states [B, L, D] after the last layer at what is predicted there."""
    name, eps = f"{ROOT}.ff_out.weight", source.config.rms_norm_eps
    scale = aligned(np.asarray(source.read(f"{ROOT}.ln_f.weight"), np.float32))
    moments = prepare(weighted_moments((F.rms_norm(x, x.shape[-1:], scale, eps), batch.predicted) for x, batch in read), name)
    parts = []
    for begin in range(rows.start, rows.stop, _ROWS):
        chunk = source.read(name, slice(begin, min(begin + _ROWS, rows.stop)))
        parts.append(gptq(aligned(np.asarray(chunk, np.float32)), moments, form.format, name))
    codes, scales = np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts])
    zeros = None if form.format.symmetric else np.concatenate([part.zeros for part in parts if part.zeros is not None])
    return Quantized(form.format, codes, scales, zeros)
