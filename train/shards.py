"""Composing the pictures of the pool and encoding them with the image tokenizer, in shards that are written one by one and can
be added later. Knows the concepts and the splits; knows no text. `mmada_lite.train.data.pool` reads them.
"""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmada_lite.errors import Error
from mmada_lite.train.data.concepts import COLOURS, NUMBERS, PAIRED, SMALL
from mmada_lite.train.data.pictures import Augmentation, Pixels, compose
from mmada_lite.train.data.pool import FIELDS, NOTHING, Kind
from mmada_lite.train.data.scenes import GRIDS, compose_layout, draw_layout
from mmada_lite.train.data.texts import pairs
from mmada_lite.train.stage_vq import to_tensor
from mmada_lite.train.vq import MagViT

log = logging.getLogger("mmada_lite")

# Pictures to draw like are tidy; pictures to be recognized come in all conditions. What is drawn is not mirrored: a key or a
# moon has a left and a right.
TIDY = Augmentation((0.74, 0.92), 0.04, 5.0, False, 0.012, 0.12, 0.06, 0.06, 5.0)
WILD = Augmentation((0.5, 1.0), 0.10, 20.0, True, 0.12, 0.6, 0.2, 0.3, 9.0, 0.2, 0.7)
CLEAR = Augmentation((0.68, 0.96), 0.06, 8.0, True, 0.06, 0.4, 0.15, 0.2, 6.0, 0.08, 0.5)
TIDY_CELL = Augmentation((0.84, 0.96), 0.02, 4.0, False, 0.012, 0.12, 0.06, 0.06, 5.0)
WILD_CELL = Augmentation((0.76, 0.98), 0.04, 12.0, True, 0.05, 0.35, 0.12, 0.2, 9.0, 0.1, 0.5)
CLEAR_SHARE = 0.5  # of the pictures of one thing to be recognized, those in milder conditions, as most are shown
PAIRED_SHARE = 0.5  # of the pictures of two things, those that may show the guesses of `concepts.PAIRED`
SIGN_SHARE = 0.4  # of the pictures of one thing to be recognized, those that show a sign


def write_shard(
    file: Path,
    kind: Kind,
    icons: NDArray[np.uint8],
    model: MagViT,
    count: int,
    seed: int,
    signs: NDArray[np.uint8] | None = None,
    asked: bool = False,
) -> None:
    """Compose and encode `count` pictures of the training side; icons [styles, concepts, S, S, 4], and signs of the same shape
    for a share of what is to be recognized. Even rows are tidy, to be drawn; with `asked` none is."""
    rng = np.random.default_rng([seed, 0x90_01, kind == "scene"])
    compose_one = _scene if kind == "scene" else partial(_single, signs=signs)
    parts: list[tuple[NDArray[np.int64], dict[str, NDArray]]] = []
    for start in range(0, count, 64):
        tidy = (np.arange(start, min(start + 64, count)) % 2 == 0) & (not asked)
        composed = [compose_one(icons, bool(t), rng) for t in tidy]
        shown = {
            "names": np.array([names for _, names, _, _ in composed]),
            "grid": np.array([grid for _, _, grid, _ in composed]),
            "colour": np.array([colour for _, _, _, colour in composed]),
            "tidy": tidy,
        }
        parts.append((encode(model, np.stack([picture for picture, _, _, _ in composed])), shown))
    arrays = {name: np.concatenate([shown[name] for _, shown in parts]) for name in FIELDS[1:]}
    unfinished = file.with_name(file.name + ".partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("wb") as stream:
        np.savez(stream, codes=np.concatenate([codes for codes, _ in parts]), **arrays)  # type: ignore[arg-type]
    unfinished.replace(file)
    log.info("%s: %d pictures", file.name, count)


def _single(
    icons: NDArray[np.uint8], tidy: bool, rng: np.random.Generator, signs: NDArray[np.uint8] | None = None
) -> tuple[Pixels, list[int], int, int]:
    allowed = pairs(held_out=False)
    concept, colour = allowed[rng.integers(len(allowed))]
    shown = signs if signs is not None and not tidy and rng.random() < SIGN_SHARE else icons
    how = TIDY if tidy else CLEAR if rng.random() < CLEAR_SHARE else WILD
    picture = compose(shown[rng.integers(len(shown)), concept], colour, rng, how)
    return picture, [concept, NOTHING, NOTHING, NOTHING], NOTHING, COLOURS.index(colour)


def _scene(icons: NDArray[np.uint8], tidy: bool, rng: np.random.Generator) -> tuple[Pixels, list[int], int, int]:
    """Tidy ones are two things side by side, to be drawn; the others are mostly four places, to be asked about."""
    grid, unseen = int(rng.integers(1, 3)) if tidy else 0, set(pairs(held_out=True))
    among = PAIRED if tidy and rng.random() < PAIRED_SHARE else SMALL
    layout, colour = draw_layout(GRIDS[grid], False, rng, among=among), int(rng.integers(len(COLOURS)))
    while any((NUMBERS[name], COLOURS[colour]) in unseen for _, name in layout.named):  # each thing has colours of its own
        layout, colour = draw_layout(GRIDS[grid], False, rng, among=among), int(rng.integers(len(COLOURS)))
    picture = compose_layout(layout, icons, COLOURS[colour], rng, TIDY_CELL if tidy or rng.random() < 0.5 else WILD_CELL)
    names = [NOTHING if name is None else NUMBERS[name] for name in layout.names]
    return picture, names + [NOTHING] * (4 - len(names)), grid, colour


def encode(model: MagViT, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """uint8 [B, H, W, 3] to codes [B, tokens]."""
    codes: NDArray[np.int64] = model.encode(to_tensor(pictures)).numpy()
    return codes


def extend_pool(
    folder: Path,
    kind: Kind,
    icons: NDArray[np.uint8],
    model: MagViT,
    count: int,
    numbers: Sequence[int],
    signs: NDArray[np.uint8] | None = None,
    asked: bool = False,
    workers: int = 0,
) -> None:
    """Write the shards of those numbers, `count` pictures each; those that exist stay. `workers`: so many processes, a shard
    each at a time, one thread each, and no more than there are cores; the shards are the same. Raises Error where one of them
    is ended."""
    files = {number: folder / f"{kind}-{number:05d}.npz" for number in numbers}
    left = {number: file for number, file in files.items() if not file.exists()}
    workers = min(workers, len(left), os.cpu_count() or 1)
    if workers < 2:
        for number, file in left.items():
            write_shard(file, kind, icons, model, count, number, signs, asked)
        return
    with tempfile.TemporaryDirectory() as shared:
        material = Path(shared) / "material.pickle"  # sent with every job it could hang for ever where a process is ended
        material.write_bytes(pickle.dumps((icons, model, signs)))
        _share_out(folder, kind, material, count, left, asked, workers)


def _share_out(
    folder: Path, kind: Kind, material: Path, count: int, left: Mapping[int, Path], asked: bool, workers: int
) -> None:
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(material,)) as pool:
        try:
            jobs = [pool.submit(_make_shard, file, kind, count, number, asked) for number, file in left.items()]
            for job in as_completed(jobs):
                job.result()
        except BrokenProcessPool as fault:
            raise Error(
                f"{folder}: a process that made shards was ended, as for want of memory; what is done stays: run `pool` again, "
                f"with fewer than --workers {workers}"
            ) from fault


_material: tuple[NDArray[np.uint8], MagViT, NDArray[np.uint8] | None]  # of a process that makes shards: icons, model, signs


def _start_worker(material: Path) -> None:
    global _material
    _material = pickle.loads(material.read_bytes())
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _make_shard(file: Path, kind: Kind, count: int, number: int, asked: bool) -> None:
    icons, model, signs = _material
    write_shard(file, kind, icons, model, count, number, signs, asked)
