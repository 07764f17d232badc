"""Training of the image tokenizer: reconstruct icons on coloured backgrounds through a look-up-free code of +-1 bits. Knows the
losses and the loop; the network is train/vq, the pictures are train/data.

Lookup-free quantization with its entropy terms: Yu et al. 2023, "Language model beats diffusion" (MAGVIT-v2), section 3.1.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmada_lite.train.data.concepts import COLOURS
from mmada_lite.train.data.pictures import PLAIN, Augmentation, compose
from mmada_lite.train.optimizer import Average, Optimizer, warm_cosine
from mmada_lite.train.parallel import Workers
from mmada_lite.train.progress import Log, load_state, save_state, step_generator
from mmada_lite.train.vq import MagViT

log = logging.getLogger("mmada_lite")

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
    seed: int = 1
    save_seconds: float = 120.0
    threads: int = 2
    pieces: int = 4  # a batch is computed in this many parts
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


def reconstruction_loss(model: MagViT, pixels: Tensor, settings: VQSettings, share: float) -> tuple[Tensor, dict[str, float]]:
    """The whole loss of a batch and its parts; `share` scales the entropy term, which fades during training."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(pixels)
    decoded, z = result.pixels.float(), result.z.float()
    squared, absolute = F.mse_loss(decoded, pixels), F.l1_loss(decoded, pixels)
    edges, entropy = edge_loss(decoded, pixels), entropy_loss(z)
    commitment = F.mse_loss(z, torch.where(z > 0, 1.0, -1.0))
    loss = 2 * squared + absolute + settings.edges * edges
    if not settings.decoder_only:
        loss = loss + share * settings.entropy * entropy + settings.commitment * commitment
    loss = loss / settings.pieces
    values = {"mse": squared, "entropy": entropy, "commitment": commitment}
    return loss, {"loss": loss.item() * settings.pieces} | {name: value.item() for name, value in values.items()}


class PictureSource:
    """Batches of augmented pictures of concept icons and of the whole library."""

    def __init__(self, concepts: NDArray[np.uint8], library: NDArray[np.uint8], concept_share: float) -> None:
        self.concepts = concepts.reshape(-1, *concepts.shape[-3:])
        self.library = library
        self.concept_share = concept_share

    def batch(self, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        pictures = []
        for _ in range(size):
            icons = self.concepts if rng.random() < self.concept_share else self.library
            icon = icons[rng.integers(len(icons))]
            pictures.append(compose(icon, COLOURS[rng.integers(len(COLOURS))], rng, HEAVY))
        return np.stack(pictures)


@torch.no_grad()
def psnr(model: MagViT, pictures: NDArray[np.uint8], batch: int = 64) -> float:
    """Mean over pictures of the peak signal-to-noise ratio after encoding and decoding, dB on 0..255."""
    values = []
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        pixels = to_tensor(part)
        side = pixels.shape[-1] // 8
        decoded = to_pictures(model.decode(model.encode(pixels), (side, side)))
        error = ((decoded.astype(np.float64) - part) ** 2).mean(axis=(1, 2, 3))
        values.append(10 * np.log10(255**2 / np.maximum(error, 1e-3)))
    return float(np.concatenate(values).mean())


def validation_pictures(icons: NDArray[np.uint8], count: int, seed: int = 7) -> NDArray[np.uint8]:
    """A fixed set of untouched icons on backgrounds."""
    rng = np.random.default_rng(seed)
    flat = icons.reshape(-1, *icons.shape[-3:])
    order = rng.permutation(len(flat))[:count]
    return np.stack([compose(flat[i], COLOURS[rng.integers(len(COLOURS))], rng, PLAIN) for i in order])


def train_vq(
    model: MagViT, source: PictureSource, checks: dict[str, NDArray[np.uint8]], folder: Path, settings: VQSettings
) -> MagViT:
    """Train (or go on training) and return the model with averaged weights; state and log lie in `folder`."""
    model.encoder.requires_grad_(not settings.decoder_only)
    matrices = {name for name, p in model.named_parameters() if p.ndim == 4 and min(p.shape[:2]) > 3}
    optimizer = Optimizer(model, matrices, muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, decay=0.0)
    average = Average(model, 0.999)
    first = _resume(folder / "state.pt", model, optimizer, average)
    records = Log(folder / "log.jsonl", first)
    began = saved = time.monotonic()
    workers = Workers(settings.threads)
    for step in range(first, settings.steps):
        pixels = to_tensor(source.batch(settings.batch, step_generator(settings.seed, step)))
        fade = 0.1 + 0.9 * max(0.0, 1.0 - step / (0.6 * settings.steps))
        pieces = [partial(reconstruction_loss, model, part, settings, fade) for part in pixels.chunk(settings.pieces)]
        parts = workers.gradients(model, pieces)[0]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(warm_cosine(step, settings.steps, 100))
        average.update(model, step)
        if step % 50 == 0:
            records.write({"step": step, "seconds": round(time.monotonic() - began, 1), **parts})
        if time.monotonic() - saved > settings.save_seconds or step + 1 == settings.steps:
            saved = time.monotonic()
            _check(model, average, checks, records, step)
            _save(folder / "state.pt", model, optimizer, average, step + 1)
    average.swap(model)
    return model


def _check(model: MagViT, average: Average, checks: dict[str, NDArray[np.uint8]], records: Log, step: int) -> None:
    average.swap(model)
    values = {f"psnr_{name}": round(psnr(model, pictures), 3) for name, pictures in checks.items()}
    average.swap(model)
    records.write({"step": step, **values})
    log.info("step %d: %s", step, values)


def _save(file: Path, model: MagViT, optimizer: Optimizer, average: Average, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values, "step": step}
    save_state(file, state)


def _resume(file: Path, model: MagViT, optimizer: Optimizer, average: Average) -> int:
    state = load_state(file)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.values = state["average"]
    return int(state["step"])
