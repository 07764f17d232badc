"""Training of the image tokenizer: reconstruct icons on coloured backgrounds through a look-up-free code of +-1 bits. Knows the
losses and the loop; the network is train/vq, the pictures are train/data.

Lookup-free quantization with its entropy terms: Yu et al. 2023, "Language model beats diffusion" (MAGVIT-v2), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmada_lite.train.data.concepts import COLOURS
from mmada_lite.train.data.pictures import PLAIN, Augmentation, compose
from mmada_lite.train.data.scenes import GRIDS, compose_layout, draw_layout
from mmada_lite.train.loop import Loop, LoopSettings
from mmada_lite.train.optimizer import warm_cosine
from mmada_lite.train.progress import step_generator
from mmada_lite.train.sharpness import sharpness
from mmada_lite.train.vq import MagViT

SEVERAL = Augmentation((0.7, 1.0), 0.06, 15.0, True, 0.05, 0.3, 0.12, 0.15, 15.0)
HEAVY = Augmentation((0.5, 1.05), 0.15, 20.0, True, 0.06, 0.35, 0.15, 0.2, 20.0)


@dataclass(frozen=True, slots=True)
class VQSettings:
    """Length and weights of the image tokenizer's training."""

    steps: int = 1000
    batch: int = 32
    muon_lr: float = 0.02
    adam_lr: float = 1.5e-3
    entropy: float = 0.05
    commitment: float = 0.1
    edges: float = 0.5
    concept_share: float = 0.5  # of a batch that shows icons of the concepts, the rest shows the library
    scene_share: float = 0.4  # of a batch that shows several things
    warmup: int = 100
    seed: int = 1
    pieces: int = 2  # a batch is computed in this many parts, all processes together
    decoder_only: bool = False  # leave the encoder, and with it the meaning of every code, as it is


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_pictures(pixels: Tensor) -> NDArray[np.uint8]:
    """float [B, 3, H, W] in -1..1 to uint8 [B, H, W, 3], clamped and truncated as the reference does."""
    scaled = ((pixels.float() + 1) / 2).clamp(0, 1) * 255
    array: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()
    return array


def entropy_loss(z: Tensor, groups: int = 2) -> Tensor:
    """Mean entropy of each code minus entropy of the mean code, nats; bits in `groups` blocks for the second term.

    The probability of a bit is the softmax over its two codewords with logits 2 z (+-1), so the first term factorizes exactly.
    """
    p = torch.sigmoid(4 * z.float()).permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, bits]
    p = p.clamp(1e-6, 1 - 1e-6)
    each = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1).mean()
    spread = p.new_zeros(())
    for block in p.chunk(groups, dim=1):
        joint = torch.ones_like(block[:, :1])
        for bit in block.unbind(1):
            joint = torch.cat([joint * (1 - bit[:, None]), joint * bit[:, None]], dim=1)  # [B h w, 2^k]
        mean = joint.mean(0)
        spread = spread - (mean * (mean + 1e-8).log()).sum()
    return each - spread


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of horizontal and vertical differences: sharp outlines matter more than smooth areas."""
    rows = F.l1_loss(a[..., 1:, :] - a[..., :-1, :], b[..., 1:, :] - b[..., :-1, :])
    columns = F.l1_loss(a[..., :, 1:] - a[..., :, :-1], b[..., :, 1:] - b[..., :, :-1])
    return rows + columns


class Objective(nn.Module):
    """The loss of a piece of a batch, by pixels and factors that change on the way."""

    def factors(self, step: int) -> dict[str, float]:
        """Of a step, by name."""
        raise NotImplementedError


class VQObjective(Objective):
    """The loss of a piece of a batch of pictures, float [rows, 3, H, W] in -1..1, as a share of the batch's mean."""

    def __init__(self, model: MagViT, settings: VQSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, pixels: Tensor, fade: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        settings, share = self.settings, len(pixels) / self.settings.batch
        result = self.model(pixels.to(memory_format=torch.channels_last))
        decoded, z = result.pixels.float(), result.z.float()
        squared, absolute = F.mse_loss(decoded, pixels), F.l1_loss(decoded, pixels)
        edges, entropy = edge_loss(decoded, pixels), entropy_loss(z)
        commitment = F.mse_loss(z, torch.where(z > 0, 1.0, -1.0))
        loss = 2 * squared + absolute + settings.edges * edges
        if not settings.decoder_only:
            loss = loss + fade[0] * settings.entropy * entropy + settings.commitment * commitment
        values = {"mse": squared, "entropy": entropy, "commitment": commitment}
        return share * loss, {name: torch.stack([v.detach(), v.new_tensor(1.0)]) for name, v in values.items()}

    def factors(self, step: int) -> dict[str, float]:
        """Of the entropy term: 1 at first, 0.1 from six tenths of the steps on."""
        return {"fade": 0.1 + 0.9 * max(0.0, 1.0 - step / (0.6 * self.settings.steps))}


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Batches of augmented pictures: icons of the concepts, icons of the whole library, several things in one picture."""

    concepts: NDArray[np.uint8]  # [styles, concepts, S, S, 4]
    library: NDArray[np.uint8]  # [icons, S, S, 4]
    concept_share: float
    scene_share: float = 0.0

    def batch(self, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        return np.stack([self._picture(rng) for _ in range(size)])

    def _picture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        colour = COLOURS[rng.integers(len(COLOURS))]
        if rng.random() < self.scene_share:
            layout = draw_layout(GRIDS[rng.integers(len(GRIDS))], False, rng)
            return compose_layout(layout, self.concepts, colour, rng, SEVERAL)
        concepts = self.concepts.reshape(-1, *self.concepts.shape[-3:])
        icons = concepts if rng.random() < self.concept_share else self.library
        return compose(icons[rng.integers(len(icons))], colour, rng, HEAVY)


def reconstruct(model: MagViT, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures [B, side, side, 3] after the image tokenizer and back."""
    parts = [to_pictures(model.decode(model.encode(to_tensor(pictures[i : i + 64])))) for i in range(0, len(pictures), 64)]
    return np.concatenate(parts)


def psnr(made: NDArray[np.uint8], originals: NDArray[np.uint8]) -> float:
    """Mean over pictures [B, H, W, 3] of the peak signal-to-noise ratio, dB on 0..255."""
    error = ((made.astype(np.float64) - originals) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-3))).mean())


def validation_pictures(icons: NDArray[np.uint8], count: int, seed: int = 7) -> NDArray[np.uint8]:
    """A fixed set of untouched icons on backgrounds."""
    rng = np.random.default_rng(seed)
    flat = icons.reshape(-1, *icons.shape[-3:])
    order = rng.permutation(len(flat))[:count]
    return np.stack([compose(flat[i], COLOURS[rng.integers(len(COLOURS))], rng, PLAIN) for i in order])


def train_vq(
    model: MagViT,
    source: PictureSource,
    checks: dict[str, NDArray[np.uint8]],
    folder: Path,
    settings: VQSettings,
    objective: Objective | None = None,
    until: int | None = None,
) -> MagViT:
    """Train (or go on training) and return the model with averaged weights; state and log lie in `folder`. `objective`: of the
    same model and settings, with losses of its own; `until` stops before that step."""
    model.encoder.requires_grad_(not settings.decoder_only)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = objective or VQObjective(model, settings)
    matrices = {name for name, p in objective.named_parameters() if p.ndim == 4 and min(p.shape[:2]) > 3}
    how = LoopSettings(settings.steps, settings.muon_lr, settings.adam_lr, 0.0, 0.999 if settings.steps > 600 else 0.99, 1.0)
    loop = Loop(objective, matrices, folder, how, lambda step: warm_cosine(step, settings.steps, settings.warmup))
    pieces = max(1, settings.pieces // loop.accelerator.num_processes)  # entropy is of a piece's rows, not of each: as many

    def batch(step: int) -> list[dict[str, Tensor]]:
        pixels = to_tensor(source.batch(settings.batch, step_generator(settings.seed, step)))
        factors = objective.factors(step)
        return [
            {"pixels": part} | {name: torch.full((len(part),), value) for name, value in factors.items()}
            for part in pixels.chunk(pieces)
        ]

    def check() -> dict[str, float]:
        loop.average.swap(objective)
        values = dict[str, float]()
        for name, pictures in checks.items():
            made = reconstruct(model, pictures)
            values |= {f"psnr_{name}": round(psnr(made, pictures), 3), f"sharp_{name}": round(sharpness(made, pictures), 3)}
        loop.average.swap(objective)
        return values

    loop.run(batch, until, check)
    loop.average.swap(objective)
    return model
