"""The states of all rows of calibration on their way through one block, stopping at each site where matrices read them.

Activations are rounded as the graph will round them, where it does. It knows a block's arithmetic; it knows nothing of
codes, of methods, or of how rows were chosen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.quant.folding import SITES
from mmada_lite.train.model import Block, KeyValue, attend, rotate, rotation


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
