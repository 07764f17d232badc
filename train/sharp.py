"""Training of a sharper decoder for codes that are there already: the encoder, and with it the meaning of every code, stays.
Knows how a decoder grows, what it learns from and the losses beside the plain ones; `stage_vq` has the loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmada_lite.export.checkpoint import Tower
from mmada_lite.train.data.concepts import COLOURS
from mmada_lite.train.data.pictures import PLAIN, compose
from mmada_lite.train.data.scenes import GRIDS, compose_layout, draw_layout
from mmada_lite.train.shards import TIDY, TIDY_CELL
from mmada_lite.train.stage_vq import Objective, PictureSource, VQSettings, edge_loss
from mmada_lite.train.vq import MagViT

WINDOW = 8  # pixels: edges are compared over windows of this side, not pixel by pixel
FAINT = 1e-3  # squared differences below are no edges; pixels are -1..1


@dataclass(frozen=True, slots=True)
class SharpSettings:
    """Weights of what makes pictures sharp, and how many of them look as what is drawn does."""

    tidy_share: float = 0.6
    absolute: float = 1.0
    squared: float = 2.0
    blurred: float = 1.0
    ringing: float = 2.0
    # From a step on: times `squared`, and times `blurred` and `ringing`: first right, then sharp, then right where it is sharp.
    pace: tuple[tuple[int, float, float], ...] = ((0, 1.0, 1.0), (521, 1.0, 2.0), (1072, 1.0, 1.4), (1180, 2.0, 1.4))


def grow_decoder(model: MagViT, tower: Tower) -> MagViT:
    """The same encoder with a decoder of another shape: tensors are copied where shapes agree, and a residual block that the
    old one has not begins as the identity. Where only blocks were added, it draws exactly what the old one draws."""
    if tower == model.config.decoder:
        return model
    grown = MagViT(replace(model.config, decoder=tower))
    known, state = model.state_dict(), grown.state_dict()
    for name, tensor in state.items():
        if name in known and known[name].shape == tensor.shape:
            state[name] = known[name]
        elif name not in known and ".conv2." in name:
            state[name] = torch.zeros_like(tensor)
    grown.load_state_dict(state)
    return grown


def edge_losses(made: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    """How far [B, 3, H, W] is blurred and how far it rings. Over windows of the differences of neighbours: the root mean square
    below the original's, and the mean size above the original's.

    A sharp edge has the mean size of a blurred one and a larger root mean square. An edge a pixel beside its place costs
    little; ripples and halos have more of both.
    """
    blurred, ringing = made.new_zeros(()), made.new_zeros(())
    for axis in (2, 3):
        a, b = made.diff(dim=axis), original.diff(dim=axis)
        blurred = blurred + F.relu(_strength(b) - _strength(a)).mean()
        ringing = ringing + F.relu(_windows(a.abs()) - _windows(b.abs())).mean()
    return blurred, ringing


def _strength(differences: Tensor) -> Tensor:
    return (_windows(differences.square()) + FAINT).sqrt()


def _windows(values: Tensor) -> Tensor:
    return F.avg_pool2d(values.mean(1, keepdim=True), WINDOW, WINDOW // 2)


def saturated(pixels: Tensor) -> Tensor:
    """Clamped as a picture is, with the gradient of the identity: what is drawn beyond white costs nothing."""
    return pixels + (pixels.clamp(-1, 1) - pixels).detach()


class SharpObjective(Objective):
    """The decoder's loss of a piece of a batch, as a share of the batch's mean. `factors` says what `right` and `sharp_edges`
    are at a step."""

    def __init__(self, model: MagViT, settings: VQSettings, sharp: SharpSettings) -> None:
        super().__init__()
        self.model, self.settings, self.sharp = model, settings, sharp

    def forward(self, pixels: Tensor, right: Tensor, sharp_edges: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sharp = self.sharp
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):  # the very codes that are stored
            signs = self.model.quantize.signs(self.model.encoder(pixels))
        made = saturated(self.model.decoder(signs).float())
        squared, edges = F.mse_loss(made, pixels), edge_loss(made, pixels)
        blurred, ringing = edge_losses(made, pixels)
        loss = right[0] * sharp.squared * squared + sharp.absolute * F.l1_loss(made, pixels)
        loss = loss + self.settings.edges * edges + sharp_edges[0] * (sharp.blurred * blurred + sharp.ringing * ringing)
        values = {"mse": squared, "edges": edges, "blurred": blurred, "ringing": ringing}
        share = len(pixels) / self.settings.batch
        return share * loss, {name: torch.stack([v.detach(), v.new_tensor(1.0)]) for name, v in values.items()}

    def factors(self, step: int) -> dict[str, float]:
        """Of squared differences, and of blurred and ringing edges, as `pace` says."""
        _, right, sharp_edges = [phase for phase in self.sharp.pace if phase[0] <= step][-1]
        return {"right": right, "sharp_edges": sharp_edges}


@dataclass(frozen=True, slots=True)
class SharpSource(PictureSource):
    """Batches of which a share looks as what the transformer draws: tidy things, alone or in twos."""

    tidy_share: float = 0.0

    def _picture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        if rng.random() >= self.tidy_share:
            return PictureSource._picture(self, rng)
        colour = COLOURS[rng.integers(len(COLOURS))]
        if rng.random() < self.scene_share:
            return compose_layout(draw_layout(GRIDS[rng.integers(1, 3)], False, rng), self.concepts, colour, rng, TIDY_CELL)
        concepts = self.concepts.reshape(-1, *self.concepts.shape[-3:])
        icons = concepts if rng.random() < self.concept_share else self.library
        return compose(icons[rng.integers(len(icons))], colour, rng, PLAIN if rng.random() < 0.3 else TIDY)
