"""Where things lie in a picture: a grid of cells with a name in each, and what a cell looks like as a picture of its own. Knows
no models and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.errors import Error
from mmada_lite.train.data.pictures import RESOLUTION, Pixels, background_tone


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies in each cell of a grid, row by row; None where nothing does.

    "a cat left of a car" is Layout(1, 2, ("cat", "car")), a 2x2 scene has rows 2 and columns 2, a single thing is
    Layout(1, 1, ("cat",)).
    """

    rows: int
    columns: int
    names: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or len(self.names) != self.rows * self.columns:
            raise Error(f"a layout of {self.rows} x {self.columns} cells cannot have {len(self.names)} names; give one a cell")

    @property
    def named(self) -> list[tuple[int, str]]:
        """(cell, name) of the cells that hold something."""
        return [(cell, name) for cell, name in enumerate(self.names) if name is not None]


def cells(picture: Pixels, rows: int, columns: int) -> list[Pixels]:
    """The picture [H, W, 3] cut into rows * columns parts, row by row."""
    return [part for band in np.array_split(picture, rows, axis=0) for part in np.array_split(band, columns, axis=1)]


def cell_pictures(picture: Pixels, rows: int, columns: int, size: int = RESOLUTION) -> NDArray[np.uint8]:
    """Each cell as a square picture [cells, size, size, 3]: filled up with the background, then enlarged."""
    tone = np.rint(background_tone(picture)).astype(np.uint8)
    return np.stack([square(cell, size, tone) for cell in cells(picture, rows, columns)])


def square(cell: Pixels, size: int = RESOLUTION, tone: NDArray[np.uint8] | None = None) -> Pixels:
    """A picture filled up to a square with `tone` (its own background), then brought to `size`."""
    tone = np.rint(background_tone(cell)).astype(np.uint8) if tone is None else tone
    height, width = cell.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = tone
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cell
    if side == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)
