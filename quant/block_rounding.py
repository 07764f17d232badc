"""One transformer block is rounded, site after site: all rows of calibration pass through it, stop where matrices read them,
and go on through what was rounded. The output matrix of a head is rounded by the same means.

Activations are rounded as the graph will round them, where it does. Two models are followed with gptaq: the one that is being
rounded and the exact one, which no rounding touches. It knows a block's arithmetic; it knows nothing of how rows were chosen
or where codes go.
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
from mmada_lite.quant.gptq import factor_hessian, gptq, match_outputs
from mmada_lite.quant.methods import Method, quantize_clipped
from mmada_lite.quant.transforms import OUTPUT_MATRIX, ROOT, SITES, TransformedTensors, by_key_head, smoothing
from mmada_lite.train.model import Block, KeyValue, attend, load_state, rotate, rotation

ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)  # shares of the difficulty that smoothing may move into the weights; or none
_HEAD_OUTPUTS = 4096  # outputs of a head that are in memory at once
_ALPHA_TOKENS = 256  # tokens on which alphas are compared
_ADDED = ("value", "product")  # sites whose products are added to the residual stream


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


def embed(source: Tensors, batches: Sequence[Batch]) -> list[Tensor]:
    """What the first layer reads, [B, L, D] of each batch; of the table only the rows that occur are read."""
    ids = torch.unique(torch.cat([batch.tokens.flatten() for batch in batches]))
    name = f"{ROOT}.wte.weight"
    table = aligned(np.concatenate([np.asarray(source.read(name, slice(i, i + 1)), np.float32) for i in ids.tolist()]))
    return [table[torch.searchsorted(ids, batch.tokens)] for batch in batches]


def aligned(values: np.ndarray) -> Tensor:
    """A copy where torch itself would have put it. Its products differ in the last bit by where their inputs happen to lie
    (several threads, few rows), and one bit may round another way: the same conversion would not end in the same bytes."""
    return torch.tensor(values)


def load_block(source: Tensors, config: TransformerConfig, layer: int) -> Block:
    """Layer `layer` alone, in float32."""
    with torch.device("meta"):
        block = Block(config)
    load_state(block, _PrefixedTensors(source, f"{ROOT}.blocks.{layer}."), torch.float32)
    return block.requires_grad_(False).eval()


class _PrefixedTensors:
    """A source whose names lack what all of them begin with."""

    def __init__(self, source: Tensors, prefix: str) -> None:
        self.source, self.prefix = source, prefix

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.prefix + name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.source.read(self.prefix + name, rows)


class BlockForward:
    """A forward pass of all batches through one block that stops at each site. `states` [B, L, D] of each batch become, in
    place, those that the next layer reads once all sites, in their order, are passed. round_activations: to int8 with a scale
    for each token, before every product."""

    def __init__(self, block: Block, config: TransformerConfig, states: list[Tensor], round_activations: bool) -> None:
        self.block, self.config, self.states, self.round_activations = block, config, states, round_activations
        self._attended: list[Tensor] = []  # what attn_out reads, [B, L, D] of each batch

    def inputs(self, site: str, batch: int) -> Tensor:
        """What the matrices of a site multiply, [B, L, K], before it is rounded."""
        if site == "value":
            return self._attended[batch]
        norm = self.block.attn_norm if site == "attention" else self.block.ff_norm
        normed: Tensor = norm(self.states[batch])
        if site != "product":
            return normed
        return F.silu(self._times("ff_proj", normed)) * self._times("up_proj", normed)

    def go_past(self, site: str) -> None:
        """Multiply with the matrices of a site, as they are by now."""
        if site == "attention":
            self._attended = [self._attend(self.inputs(site, i)) for i in range(len(self.states))]
        for i, x in enumerate(self.states):
            if site == "value":
                self.states[i] = x + self._times("attn_out", self.inputs(site, i))
            if site == "product":
                self.states[i] = x + self._times("ff_out", self.inputs(site, i))

    def linear(self, matrix: str) -> nn.Linear:
        linear: nn.Linear = getattr(self.block, matrix)
        return linear

    def activations(self, x: Tensor) -> Tensor:
        """x as a product sees it."""
        if not self.round_activations:
            return x
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return (x / scale).round() * scale

    def _attend(self, normed: Tensor) -> Tensor:
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


class BlockRounder:
    """A block being rounded. With a floating `spec` nothing is rounded and no codes are given."""

    def __init__(self, block: Block, config: TransformerConfig, method: Method, spec: WeightSpec, name: str) -> None:
        self.block, self.config, self.method, self.spec, self.name = block, config, method, spec, name
        self.codes: dict[str, Quantized] = {}

    @torch.no_grad()
    def advance(
        self, states: list[Tensor], batches: Sequence[Batch], exact_states: list[Tensor] | None = None
    ) -> dict[str, Quantized]:
        """The codes of its matrices; the states [B, L, D] become, in place, those that the next layer reads.

        exact_states: the same where no layer is rounded, and then those of the next layer. With them matrices are moved
        towards what they give there before they are rounded (gptaq).
        """
        exact = None if exact_states is None else BlockForward(copy.deepcopy(self.block), self.config, exact_states, False)
        forward = self._forward(states)
        for site in SITES:
            if not self.spec.format.floating:
                self._round(site, batches, forward, exact)
            forward.go_past(site)
            if exact is not None:
                exact.go_past(site)
        return self.codes

    @torch.no_grad()
    def smoothing_factors(self, states: Sequence[Tensor], batches: Sequence[Batch]) -> dict[str, NDArray[np.float32]]:
        """Site -> the factors [K] under which rounding costs least there, before anything is rounded."""
        forward, factors = self._forward(list(states)), {}
        counted = [slice(None) if (w := batch.weight).min() == w.max() else w.flatten() > w.min() for batch in batches]
        for site in SITES:
            inputs = torch.cat([forward.inputs(site, i).flatten(0, 1)[tokens] for i, tokens in enumerate(counted)])
            factors[site] = self._best_factors(site, inputs, forward)
            forward.go_past(site)
        return factors

    def _forward(self, states: list[Tensor]) -> BlockForward:
        return BlockForward(self.block, self.config, states, self.spec.activation is not None)

    def _best_factors(self, site: str, inputs: Tensor, forward: BlockForward) -> NDArray[np.float32]:
        """inputs [tokens, K]: what the site's matrices multiply."""
        weights = torch.cat([forward.linear(matrix).weight for matrix in SITES[site]])
        sizes = (inputs.abs().amax(0) if forward.round_activations else inputs.abs().mean(0)).numpy()
        peaks = weights.abs().amax(0).numpy()
        if site == "value":
            sizes, peaks = (self._shared(channels) for channels in (sizes, peaks))
        some = inputs[torch.linspace(0, len(inputs) - 1, min(_ALPHA_TOKENS, len(inputs))).long()]

        def cost(factors: NDArray[np.float32]) -> float:
            """Squared error of the product when both sides are rounded under these factors."""
            scale = aligned(factors)
            rounded = aligned(dequantize(quantize((weights * scale).numpy(), self.spec.format, self.name)))
            products = forward.activations(some / scale) @ rounded.T
            return float((products - some @ weights.T).square().mean())

        best = np.ones_like(sizes)
        lowest = cost(best)
        for alpha in ALPHAS:
            factors = smoothing(sizes, peaks, alpha)
            if (tried := cost(factors)) < lowest:
                lowest, best = tried, factors
        return best

    def _shared(self, channels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest of the query heads that share a key head, for each of them."""
        heads = by_key_head(channels, self.config)
        return np.broadcast_to(heads.max(1, keepdims=True), heads.shape).reshape(-1)

    def _round(self, site: str, batches: Sequence[Batch], forward: BlockForward, exact: BlockForward | None) -> None:
        """Round the matrices of a site."""
        sums = self._sums(site, batches, forward, exact) if self.method.compensates else []
        hessian = factor_hessian(sums[0], f"{self.name}.{SITES[site][0]}.weight") if sums else None
        for matrix in SITES[site]:
            name, weight = f"{self.name}.{matrix}.weight", forward.linear(matrix).weight
            if len(sums) > 1:
                weight = match_outputs(weight, sum(sums[2:], start=weight @ sums[1]), sums[0], name)
            if hessian is not None:
                quantized = gptq(weight, hessian, self.spec.format, name)
            else:
                alone = quantize_clipped if self.method.rounding == "clip" else quantize
                quantized = alone(weight.numpy(), self.spec.format, name)
            self.codes[matrix] = quantized
            forward.linear(matrix).weight = nn.Parameter(aligned(dequantize(quantized)), requires_grad=False)

    def _sums(self, site: str, batches: Sequence[Batch], forward: BlockForward, exact: BlockForward | None) -> list[Tensor]:
        """Sums over positions of weight * y x^T, where the site's matrices multiply x: of y = x; then, with an exact pass, of
        what they multiply there, and where their product is added to the states, of what the states lack by now."""

        def terms() -> Iterator[tuple[Tensor, ...]]:
            for i, batch in enumerate(batches):
                x = forward.activations(forward.inputs(site, i))
                exact_inputs = () if exact is None else (exact.inputs(site, i),)
                lacking = (exact.states[i] - forward.states[i],) if exact is not None and site in _ADDED else ()
                yield batch.weight, x, *exact_inputs, *lacking

        return weighted_sums(terms())


def weighted_sums(terms: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Sums over positions of weight * y x^T, [N, K], of y = x and of every other y: from tuples of weight [B, L], x [B, L, K]
    and any others [B, L, N]."""
    totals: list[Tensor] = []
    for weight, *values in terms:
        root = weight.sqrt()[..., None]
        x, *others = ((each * root).flatten(0, 1) for each in values)
        if totals:
            for total, y in zip(totals, (x, *others), strict=True):
                total.addmm_(y.T, x)
        else:
            totals = [y.T @ x for y in (x, *others)]
    assert totals, "sums of nothing"
    return totals


@dataclass(frozen=True, slots=True)
class HeadSample:
    """What a head reads of a batch: states [B, L, D] after the last layer, and the same where no layer is rounded."""

    batch: Batch
    states: Tensor
    exact_states: Tensor | None = None


@torch.no_grad()
def round_head(source: TransformedTensors, samples: Sequence[HeadSample], rows: slice, spec: WeightSpec) -> Quantized:
    """Codes by GPTQ of rows of the output matrix, for states after the last layer at what is predicted there; where there
    are exact states, of rows that give from the states what they would have given from these."""
    eps = source.config.rms_norm_eps
    scale = aligned(np.asarray(source.read(f"{ROOT}.ln_f.weight"), np.float32))

    def normed(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], scale, eps)

    def terms() -> Iterator[tuple[Tensor, ...]]:
        for sample in samples:
            exact = () if sample.exact_states is None else (normed(sample.exact_states),)
            yield sample.batch.predicted, normed(sample.states), *exact

    sums = weighted_sums(terms())
    hessian, parts = factor_hessian(sums[0], OUTPUT_MATRIX), []
    for begin in range(rows.start, rows.stop, _HEAD_OUTPUTS):
        chunk_rows = slice(begin, min(begin + _HEAD_OUTPUTS, rows.stop))
        chunk = aligned(np.asarray(source.read(OUTPUT_MATRIX, chunk_rows), np.float32))
        if sums[1:]:
            chunk = match_outputs(chunk, chunk @ sums[1], sums[0], OUTPUT_MATRIX)
        parts.append(gptq(chunk, hessian, spec.format, OUTPUT_MATRIX))
    return Quantized.joined(parts)
