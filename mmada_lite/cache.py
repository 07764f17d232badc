"""Keys and values that a forward pass leaves behind, and which of them the next pass may lean on.

Keys are kept after rotation, so their order is of no consequence: a past may be the prefix, or prefix and suffix. What
they are computed with, and whether they are stale, is the business of the decoding loop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
POLICIES = ("none", "prefix", "dual")


@dataclass(frozen=True, slots=True)
class KeyValues:
    """One array per layer: keys and values [B, Hkv, P, Hd], keys rotated to their absolute positions.

    Graphs for a GPU keep them in half precision."""

    keys: tuple[Floats, ...]
    values: tuple[Floats, ...]

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[2])

    def without(self, start: int, stop: int, room: "Room") -> "KeyValues":
        """Everything but the positions start..stop-1: what a window over those positions leans on. They stand in `room` until
        it is used again."""
        cut = [_cut(array, start, stop, room, number) for number, array in enumerate((*self.keys, *self.values))]
        return KeyValues(tuple(cut[: len(self.keys)]), tuple(cut[len(self.keys) :]))

    def at(self, places: NDArray[np.int64], room: "Room") -> "KeyValues":
        """Those of the places [B, P] alone: what a window over scattered positions leans on. They stand in `room` until it is
        used again."""
        cut = [_at(array, places, room, number) for number, array in enumerate((*self.keys, *self.values))]
        return KeyValues(tuple(cut[: len(self.keys)]), tuple(cut[len(self.keys) :]))

    def repeated(self, times: int) -> "KeyValues":
        """The same past for `times` canvases at once: one row becomes so many."""
        if times == 1:
            return self
        return KeyValues(tuple(k.repeat(times, axis=0) for k in self.keys), tuple(v.repeat(times, axis=0) for v in self.values))

    def first(self, rows: int) -> "KeyValues":
        """The past of the first `rows` rows."""
        if rows == self.keys[0].shape[0]:
            return self
        return KeyValues(tuple(k[:rows] for k in self.keys), tuple(v[:rows] for v in self.values))

    @classmethod
    def empty(cls, layers: int, rows: int, heads: int, head_dim: int, dtype: np.typing.DTypeLike = np.float32) -> "KeyValues":
        nothing = np.zeros((rows, heads, 0, head_dim), dtype=dtype)
        return cls((nothing,) * layers, (nothing,) * layers)


class Room:
    """Memory that one cut after another is written to: fresh memory costs four times what the copy does."""

    def __init__(self) -> None:
        self._flat: dict[int, NDArray] = {}

    def array(self, number: int, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
        """An array of a shape, number by number; what it held before is lost."""
        size, flat = math.prod(shape), self._flat.get(number)
        if flat is None or flat.size < size or flat.dtype != dtype:
            flat = self._flat[number] = np.empty(size, dtype)
        return flat[:size].reshape(shape)


def _cut(array: Floats, start: int, stop: int, room: Room, number: int) -> Floats:
    rows, heads, length, size = array.shape
    left = room.array(number, (rows, heads, start + max(length - stop, 0), size), array.dtype)
    return np.concatenate([array[:, :, :start], array[:, :, stop:]], axis=2, out=left)


def _at(array: Floats, places: NDArray[np.int64], room: Room, number: int) -> Floats:
    rows, heads, _, size = array.shape
    cut = room.array(number, (rows, heads, places.shape[1], size), array.dtype)
    for row, place, into in zip(array, places, cut, strict=True):
        np.take(row, place, axis=1, out=into, mode="clip")  # "raise" would buffer the output
    return cut


@dataclass(frozen=True, slots=True)
class Memory:
    """What one block keeps of its last full forward: a past per branch, and the window that is computed afresh.

    prefix: the window runs from the block's start to the end of the row; dual: it is the block alone
    (Fast-dLLM, arXiv 2505.22618). `none` keeps nothing, and its window is the whole row.
    """

    pasts: tuple[KeyValues, ...]
    start: int
    stop: int

    @classmethod
    def after(
        cls, policy: str, kept: Sequence[KeyValues], start: int, stop: int, length: int, rooms: Sequence[Room], rows: int = 1
    ) -> "Memory":
        """kept: of the row's first `length` positions, a branch each, as rooms are, whose last use ends here. rows: how many
        canvases are to lean at once on the one that was read."""
        end = stop if policy == "dual" else length
        cut = (branch.without(start, end, room).repeated(rows) for branch, room in zip(kept, rooms, strict=False))
        return cls(tuple(cut), start, end)
