"""Training of a sharper decoder for codes that are there already: the encoder, and with it the meaning of every code, stays.
Knows how a decoder grows, what it learns from and the losses beside the plain ones; `stage_vq` has the loop.

The critic judges patches under the hinge loss (Isola et al. 2017, PatchGAN; Lim and Ye 2017), told the codes of each patch; the
distance of its own features is the perceptual term. Decoder and critic are moved by one backward pass, so that one state on
disk holds both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

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
    adversarial: float = 0.0  # 0, and features 0: no critic
    features: float = 0.0
    after: int = 300  # the critic learns from the first step; the decoder hears it from this one on


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


class Critic(nn.Module):
    """Whether each patch of a picture is an original one, given its codes: pixels [B, 3, H, W] and signs [B, bits, h, w] to
    [B, 1, h, w], high for originals; and its features, finest first."""

    def __init__(self, bits: int, factor: int, width: int = 24, groups: int = 8) -> None:
        super().__init__()
        levels = factor.bit_length() - 1
        widths = (3, *(width * 2 ** min(n, 2) for n in range(levels)))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(groups, b) for b in widths[1:])
        self.joined = nn.Conv2d(widths[-1] + bits, widths[-1], 3, padding=1)
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, pixels: Tensor, signs: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, features = pixels, list[Tensor]()
        for down, norm in zip(self.down, self.norms, strict=True):
            x = F.leaky_relu(norm(down(x)), 0.2)
            features.append(x)
        x = F.leaky_relu(self.joined(torch.cat([x, signs.to(x.dtype)], dim=1)), 0.2)
        features.append(x)
        return self.head(x).float(), features


def hinge(original: Tensor, made: Tensor) -> Tensor:
    """The critic's loss of its verdicts on originals and on what was made."""
    return F.relu(1 - original).mean() + F.relu(1 + made).mean()


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
    """The loss of a piece of a batch, as a share of the batch's mean: of the decoder and of its critic, whose gradients do not
    meet. `factors` says what `heard`, `right` and `sharp_edges` are at a step."""

    def __init__(self, model: MagViT, settings: VQSettings, sharp: SharpSettings) -> None:
        super().__init__()
        self.model, self.settings, self.sharp = model, settings, sharp
        self.critic = Critic(model.config.z_channels, model.config.downsample_factor)

    def forward(self, pixels: Tensor, heard: Tensor, right: Tensor, sharp_edges: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sharp = self.sharp
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):  # the very codes that are stored
            signs = self.model.quantize.signs(self.model.encoder(pixels))
        made = saturated(self.model.decoder(signs).float())
        squared, edges = F.mse_loss(made, pixels), edge_loss(made, pixels)
        blurred, ringing = edge_losses(made, pixels)
        loss = right[0] * sharp.squared * squared + sharp.absolute * F.l1_loss(made, pixels)
        loss = loss + self.settings.edges * edges + sharp_edges[0] * (sharp.blurred * blurred + sharp.ringing * ringing)
        values = {"mse": squared, "edges": edges, "blurred": blurred, "ringing": ringing}
        if sharp.adversarial or sharp.features:
            verdict_of_original, features = self.critic(pixels, signs)
            verdict_of_made, _ = self.critic(made.detach(), signs)
            values["critic"] = hinge(verdict_of_original, verdict_of_made)
            fixed = {name: p.detach() for name, p in self.critic.named_parameters()}
            verdict, likeness = functional_call(self.critic, fixed, (made, signs))
            values["features"] = torch.stack(
                [F.l1_loss(a.float(), b.detach().float()) for a, b in zip(likeness, features, strict=True)]
            ).mean()
            values["fooled"] = -verdict.mean()
            loss = loss + heard[0] * (sharp.adversarial * values["fooled"] + sharp.features * values["features"])
            loss = loss + values["critic"]
        share = len(pixels) / self.settings.batch
        return share * loss, {name: torch.stack([v.detach(), v.new_tensor(1.0)]) for name, v in values.items()}

    def factors(self, step: int) -> dict[str, float]:
        """Of the critic: 0 until it is heard, then up to 1 over as many steps as it learned alone, 100 at least. Of squared
        differences, and of blurred and ringing edges: as `pace` says."""
        sharp = self.sharp
        heard = min(1.0, max(0.0, (step - sharp.after) / max(100, sharp.after)))
        _, right, sharp_edges = [phase for phase in sharp.pace if phase[0] <= step][-1]
        return {"heard": heard, "right": right, "sharp_edges": sharp_edges}


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
