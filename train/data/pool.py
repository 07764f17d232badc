"""A pool of composed pictures already encoded to codes, so that the transformer's training never waits for the image
tokenizer: reading it. `mmada_lite.train.shards` writes it. Knows the concepts and the splits; knows no text and no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.scenes import GRIDS
from mmada_lite.train.data.texts import pairs

FIELDS = ("codes", "names", "grid", "colour", "tidy")
NOTHING = -1
Kind = Literal["single", "scene"]


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoded pictures with what they show."""

    codes: NDArray[np.int64]  # [N, tokens]
    names: NDArray[np.int64]  # [N, 4] index into CONCEPTS of each cell, row by row; NOTHING where there is none
    grid: NDArray[np.int64]  # [N] index into GRIDS; of one thing alone NOTHING
    colour: NDArray[np.int64]  # [N] index into COLOURS
    tidy: NDArray[np.bool_]  # [N]

    def layout(self, number: int) -> Layout:
        """What a picture of several things shows."""
        rows, columns = GRIDS[self.grid[number]]
        names = (int(n) for n in self.names[number, : rows * columns])
        return Layout(rows, columns, tuple(None if n == NOTHING else CONCEPT_NAMES[n] for n in names))


def read_pool(folder: Path, kind: Kind, limit: int | None = None) -> Pool:
    """All shards of a kind (or the first `limit`), joined. Raises Error where there are none or one cannot be read."""
    files = sorted(folder.glob(f"{kind}-*.npz"))[:limit]
    if not files:
        raise Error(f"{folder} holds no encoded pictures of kind {kind!r}: run `python -m mmada_lite.train pool` first")
    shards = [_read_shard(file) for file in files]
    pool = Pool(*(np.concatenate([shard[name] for shard in shards]) for name in FIELDS))
    allowed = ~_shows_held_out(pool)
    return Pool(*(getattr(pool, name)[allowed] for name in FIELDS))


def _shows_held_out(pool: Pool) -> NDArray[np.bool_]:
    """Pictures that show a thing on a background that is kept for the evaluation of drawings, among other things too."""
    held_out = np.zeros((len(CONCEPT_NAMES) + 1, len(COLOURS)), dtype=bool)  # the last row stands for NOTHING
    for concept, colour in pairs(held_out=True):
        held_out[concept, COLOURS.index(colour)] = True
    return np.asarray(held_out[pool.names, pool.colour[:, None]].any(axis=1), dtype=np.bool_)


def _read_shard(file: Path) -> dict[str, NDArray]:
    try:
        with np.load(file) as data:
            shard = {name: data[name] for name in FIELDS}
    except Exception as error:  # a cut file is a zip error, an old one a KeyError, a foreign one a ValueError
        raise Error(
            f"{file} cannot be read ({str(error)[:80]}): delete it and run `python -m mmada_lite.train pool`"
        ) from error
    if not len(shard["codes"]):
        raise Error(f"{file} is empty: delete it and run `python -m mmada_lite.train pool`")
    return shard
