"""A pool of augmented pictures already encoded to codes, so that the transformer's training never waits for the image
tokenizer. Shards are written one by one and can be added later. Knows the concepts and the split of pairs; knows no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error
from mmada_lite.train.data.concepts import COLOURS
from mmada_lite.train.data.pictures import Augmentation, compose
from mmada_lite.train.data.texts import pairs
from mmada_lite.train.stage_vq import to_tensor
from mmada_lite.train.vq import MagViT

# Pictures to draw like are tidy; pictures to be recognized come in all conditions.
TIDY = Augmentation((0.74, 0.92), 0.04, 5.0, True, 0.012, 0.12, 0.06, 0.06, 5.0)
WILD = Augmentation((0.5, 1.0), 0.10, 20.0, True, 0.12, 0.6, 0.2, 0.3, 9.0, 0.2)


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded pictures with what they show."""

    codes: NDArray[np.int64]  # [N, tokens]
    concept: NDArray[np.int64]  # [N] index into CONCEPTS
    colour: NDArray[np.int64]  # [N] index into COLOURS
    tidy: NDArray[np.bool_]  # [N]


def write_shard(file: Path, icons: NDArray[np.uint8], model: MagViT, count: int, seed: int) -> None:
    """Compose and encode `count` pictures of training pairs; icons [styles, concepts, S, S, 4]. Even rows are tidy."""
    rng = np.random.default_rng([seed, 0x90_01])
    allowed = pairs(held=False)
    which = rng.integers(len(allowed), size=count)
    style = rng.integers(len(icons), size=count)
    concept = np.array([allowed[i][0] for i in which])
    colour = np.array([COLOURS.index(allowed[i][1]) for i in which])
    tidy = np.arange(count) % 2 == 0
    codes = []
    for start in range(0, count, 64):
        rows = range(start, min(start + 64, count))
        pictures = [compose(icons[style[i], concept[i]], COLOURS[colour[i]], rng, TIDY if tidy[i] else WILD) for i in rows]
        codes.append(encode(model, np.stack(pictures)))
    partial = file.with_name(file.name + ".partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as stream:
        np.savez(stream, codes=np.concatenate(codes), concept=concept, colour=colour, tidy=tidy)
    partial.replace(file)


def encode(model: MagViT, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """uint8 [B, H, W, 3] to codes [B, tokens]."""
    codes: NDArray[np.int64] = model.encode(to_tensor(pictures)).numpy()
    return codes


def read_pool(folder: Path, limit: int | None = None) -> Pool:
    """All shards of a folder (or the first `limit`), joined."""
    files = sorted(folder.glob("*.npz"))[:limit]
    if not files:
        raise Error(f"{folder} holds no encoded pictures: run `python -m mmada_lite.train pool` first")
    shards = [np.load(file) for file in files]
    joined = {name: np.concatenate([shard[name] for shard in shards]) for name in ("codes", "concept", "colour", "tidy")}
    return Pool(joined["codes"], joined["concept"], joined["colour"], joined["tidy"])


def extend_pool(folder: Path, icons: NDArray[np.uint8], model: MagViT, shards: int, count: int) -> None:
    """Write shards until there are `shards` of them; those that exist stay."""
    for number in range(shards):
        file = folder / f"{number:05d}.npz"
        if not file.exists():
            write_shard(file, icons, model, count, number)
