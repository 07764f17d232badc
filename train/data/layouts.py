"""Where things lie in a picture: a grid of cells with a name in each, what a cell looks like as a picture of its own, and codes
turned so that one side of the picture is at the right. Knows no models and no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.errors import Error
from mmada_lite.train.data.pictures import RESOLUTION, Pixels, background_tone

Side = Literal["right", "bottom", "left", "top"]
SIDES: tuple[Side, ...] = get_args(Side)  # each a quarter turn to the left before it is at the right
Number = TypeVar("Number", bound=np.generic)


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

    def at(self, side: Side) -> str | None:
        """The thing that fills one half of a picture of two; None where no half on that side is a cell."""
        across = (self.rows, self.columns) == ((1, 2) if side in ("right", "left") else (2, 1))
        return self.names[side in ("right", "bottom")] if across else None


def to_right(codes: NDArray[Number], side: Side) -> NDArray[Number]:
    """Codes [..., S * S] of square pictures as [..., S, S], turned so that `side` is at the right."""
    length = round(codes.shape[-1] ** 0.5)
    return np.rot90(codes.reshape(*codes.shape[:-1], length, length), SIDES.index(side), axes=(-2, -1))


def from_right(pictures: NDArray[Number], side: Side) -> NDArray[Number]:
    """The inverse of `to_right`: [..., S, S] to [..., S * S]."""
    turned = np.rot90(pictures, -SIDES.index(side), axes=(-2, -1))
    return turned.reshape(*turned.shape[:-2], -1)


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
