"""The judge of drawings: a small convolutional classifier of the concepts on pixels. It is trained on composed pictures of the
training styles and of signs, on their reconstructions by the image tokenizer, on things cut out of pictures of two and on
pictures grown by half, as what is judged looks; never on a drawing of the model that it judges.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmada_lite.errors import Error
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, NUMBERS
from mmada_lite.train.data.layouts import cell_pictures, square
from mmada_lite.train.data.pictures import PLAIN, Augmentation, background_tone, compose
from mmada_lite.train.data.scenes import GRIDS, compose_layout, draw_layout
from mmada_lite.train.intervals import interval
from mmada_lite.train.optimizer import warm_cosine
from mmada_lite.train.progress import step_generator
from mmada_lite.train.stage_vq import reconstruct, to_pictures, to_tensor
from mmada_lite.train.vq import MagViT

log = logging.getLogger("mmada_lite")

WILD_CELL = Augmentation((0.7, 1.0), 0.08, 15.0, True, 0.08, 0.5, 0.2, 0.25, 12.0)
PLAIN_CELL = Augmentation((0.9, 0.9), 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0)
CONDITIONS = Augmentation((0.5, 1.0), 0.12, 20.0, True, 0.10, 0.5, 0.2, 0.3, 15.0, 0.1, 0.5)
GROWING = Augmentation((0.7, 0.96), 0.06, 10.0, True, 0.05, 0.4, 0.15, 0.2, 9.0, 0.0, 0.3)
SIGN_SHARE = 0.15  # of the pictures of one thing, those that show a sign


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Length of the judge's training."""

    pictures: int = 18000
    steps: int = 3000
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 3


class Judge(nn.Module):
    """Four strided convolutions, a residual one after each, mean and maximum over the grid, one linear layer. Pixels
    [B, 3, 64, 64] in -1..1 to logits."""

    def __init__(self, classes: int = len(CONCEPT_NAMES), width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 6 * width)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.residuals = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1, bias=False) for b in widths[1:])
        self.residual_norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        levels = zip(self.convolutions, self.norms, self.residuals, self.residual_norms, strict=True)
        for convolution, norm, residual, residual_norm in levels:
            x = F.relu(norm(convolution(x)))
            x = x + F.relu(residual_norm(residual(x)))
        logits: Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))
        return logits

    @torch.no_grad()
    def classify(self, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Pictures uint8 [B, 64, 64, 3] to the index of the concept, [B]."""
        self.eval()
        device = self.head.weight.device
        parts = [self(to_tensor(pictures[i : i + 256]).to(device)).argmax(1).cpu() for i in range(0, len(pictures), 256)]
        concepts: NDArray[np.int64] = torch.cat(parts).numpy()
        return concepts

    def save(self, folder: Path, report: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "judge.safetensors")
        content = {"concepts": list(CONCEPT_NAMES), **report}
        (folder / "judge.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        file = folder / "judge.safetensors"
        if not file.exists():
            raise Error(f"{file} is missing: run `python -m mmada_lite.train judge` first")
        judge = cls()
        try:
            judge.load_state_dict(load_file(file))
        except Exception as error:  # of other concepts, or cut
            line = str(error).strip().splitlines()[-1].strip()[:160]
            raise Error(f"{file} is no judge of these concepts ({line}): run `python -m mmada_lite.train judge`") from error
        return judge.eval()


def compose_many(
    icons: NDArray[np.uint8], count: int, rng: np.random.Generator, how: Augmentation
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pictures, concept indices) with random styles, concepts and backgrounds; icons [styles, concepts, S, S, 4]."""
    concepts = rng.integers(icons.shape[1], size=count)
    pictures = [compose(icons[rng.integers(len(icons)), c], COLOURS[rng.integers(len(COLOURS))], rng, how) for c in concepts]
    return np.stack(pictures), concepts


def measure(judge: Judge, model: MagViT, icons: dict[str, NDArray[np.uint8]], count: int = 960) -> dict[str, object]:
    """Share of untouched icons named right, raw and after the image tokenizer; alone, in a picture grown by half,
    and cut out of pictures of two."""
    report: dict[str, object] = {}
    for role, role_icons in icons.items():
        rng = np.random.default_rng(9)
        pictures, labels = compose_many(role_icons, count, rng, PLAIN)
        halves, names = compose_cells(role_icons, count // 2, rng, PLAIN_CELL, None)
        seen, asked = compose_cells(role_icons, count // 2, rng, PLAIN_CELL, model)
        grown, grown_names = compose_grown(role_icons, count // 2, rng, PLAIN, None)
        for name, shown, right in (
            ("raw", pictures, labels),
            ("grown_raw", grown, grown_names),
            ("reconstructed", reconstruct(model, pictures), labels),
            ("cells_raw", halves, names),
            ("cells_reconstructed", seen, asked),
        ):
            report[f"{role}_{name}"] = interval(int((judge.classify(shown) == right).sum()), len(right))
    return report


def compose_cells(
    icons: NDArray[np.uint8], count: int, rng: np.random.Generator, how: Augmentation, model: MagViT | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pictures, concept indices) of things cut out of pictures of two, enlarged; with a model, out of reconstructions."""
    layouts = [draw_layout(GRIDS[1 + n % 2], False, rng) for n in range(-(-count // 2))]
    scenes = np.stack([compose_layout(layout, icons, COLOURS[rng.integers(len(COLOURS))], rng, how) for layout in layouts])
    if model is not None:
        scenes = reconstruct(model, scenes)
    parts = [cell_pictures(scene, layout.rows, layout.columns) for scene, layout in zip(scenes, layouts, strict=True)]
    names = [NUMBERS[name] for layout in layouts for _, name in layout.named]
    return np.concatenate(parts)[:count], np.array(names)[:count]


def compose_grown(
    icons: NDArray[np.uint8], count: int, rng: np.random.Generator, how: Augmentation, model: MagViT | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pictures, concept indices) of things whose picture was grown by half of its side in one direction, with nothing in the
    new part, then brought to a square; with a model, decoded from the codes of the picture and the repeated codes of its edge.
    """
    pictures, labels = compose_many(icons, count, rng, how)
    half = pictures.shape[1] // 2
    if model is None:
        wide = np.concatenate([pictures, np.empty_like(pictures[:, :, :half])], axis=2)
        for picture, grown in zip(pictures, wide, strict=True):
            grown[:, 2 * half :] = np.rint(background_tone(picture))
    else:
        parts = [_decode_grown(model, pictures[i : i + 64]) for i in range(0, count, 64)]
        wide = np.concatenate(parts)
    return np.stack([square(np.rot90(picture, 2 * int(rng.integers(2)))) for picture in wide]), labels


def _decode_grown(model: MagViT, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    codes = model.encode(to_tensor(pictures))
    side = round(codes.shape[1] ** 0.5)
    grid = codes.reshape(-1, side, side)
    grown = torch.cat([grid, grid[:, :, -1:].expand(-1, -1, side // 2)], dim=2)
    return to_pictures(model.decode(grown.flatten(1), (side, side + side // 2)))


def train_judge(
    icons: NDArray[np.uint8], model: MagViT, settings: JudgeSettings, signs: NDArray[np.uint8] | None = None
) -> Judge:
    """Train on the icons of the training styles [styles, concepts, S, S, 4], and on signs of the same shape: raw pictures,
    their reconstructions, things cut out of both and pictures grown by half."""
    rng, count = np.random.default_rng(settings.seed), settings.pictures
    shown = 0 if signs is None else round(SIGN_SHARE * count)
    parts = [compose_many(icons, count - shown, rng, CONDITIONS)]
    if signs is not None:
        parts.append(compose_many(signs, shown, rng, CONDITIONS))
    pictures, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    log.info("judge: %d pictures of one thing", count)
    others = [
        (reconstruct(model, pictures), labels),
        compose_cells(icons, count // 6, rng, WILD_CELL, None),
        compose_cells(icons, count // 4, rng, WILD_CELL, model),
        compose_grown(icons, count // 6, rng, GROWING, None),
        compose_grown(icons, count // 4, rng, GROWING, model),
    ]
    seen = np.concatenate([pictures, *(more for more, _ in others)])
    targets = torch.from_numpy(np.concatenate([labels, *(more for _, more in others)]))
    log.info("judge: %d pictures in all", len(seen))
    torch.manual_seed(settings.seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.learning_rate, weight_decay=0.05)
    for step in range(settings.steps):
        batch = step_generator(settings.seed, step).integers(len(seen), size=settings.batch)
        pixels = to_tensor(seen[batch])
        loss = F.cross_entropy(
            judge(_erase(pixels, step_generator(settings.seed + 1, step))), targets[batch], label_smoothing=0.05
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_cosine(step, settings.steps, 50)
        optimizer.step()
        if step % 250 == 0:
            log.info("judge step %d loss %.3f", step, loss.item())
    return judge.eval()


def _erase(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Grey out a random square of each picture and add noise, so that no single detail decides."""
    for picture in pixels:
        side = int(rng.integers(0, 24))
        y, x = rng.integers(0, 64 - side, size=2)
        picture[:, y : y + side, x : x + side] = 0.0
    noise = torch.from_numpy(rng.normal(0.0, 0.06, tuple(pixels.shape)).astype(np.float32))
    return pixels + noise
