"""Keys and values that a forward pass leaves behind, and which of them are the next pass's context.

Keys are kept after rotation, so their order is of no consequence: a past may be the prefix, or prefix and suffix. What they are
computed with, and whether they are stale, is the business of the decoding loop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class KeyValues:
    """One array per layer: keys and values [B, Hkv, P, Hd], keys rotated to their absolute positions.

    Graphs for a GPU keep them in half precision."""

    keys: tuple[Floats, ...]
    values: tuple[Floats, ...]

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[2])

    def without(self, start: int, stop: int, buffer: "KVBuffer", *, last: bool = False) -> "KeyValues":
        """Everything but the positions start..stop-1: what a window over those positions attends to. It stands in `buffer`
        until that is used again. last: these are not to be read any more, so that a device has no second copy of all."""
        cut = [_cut(array, start, stop, buffer, number) for number, array in enumerate((*self.keys, *self.values))]
        return KeyValues(tuple(cut[: len(self.keys)]), tuple(cut[len(self.keys) :]))

    def behind(self, past: "KeyValues", start: int, stop: int, buffer: "KVBuffer") -> "KeyValues":
        """`past`, then these but for positions start..stop-1: what a window over those attends to that lies behind `past`. It
        stands in `buffer` until that is used again; where `past` stands in it already it is not written again."""
        length = past.length + self.length - (stop - start)
        there = past.length if buffer.begins_with(past, length) else 0
        pairs = zip((*past.keys, *past.values), (*self.keys, *self.values), strict=True)
        cut = [_cut(array, start, stop, buffer, number, before, there) for number, (before, array) in enumerate(pairs)]
        buffer.begun(past, length)
        return KeyValues(tuple(cut[: len(self.keys)]), tuple(cut[len(self.keys) :]))

    def shrunk(self, stop: int) -> "KeyValues":
        """Those of the first `stop` positions, moved together in the memory of all, which are not to be read any more: fresh
        memory costs four times what the copy does."""
        return KeyValues(tuple(_shrunk(key, stop) for key in self.keys), tuple(_shrunk(value, stop) for value in self.values))

    def at(self, places: NDArray[np.int64], buffer: "KVBuffer", *, last: bool = False) -> "KeyValues":
        """Those of the places [B, P] alone: what a window over scattered positions attends to. They stand in `buffer` until it
        is used again. last: as of `without`."""
        cut = [_at(array, places, buffer, number) for number, array in enumerate((*self.keys, *self.values))]
        return KeyValues(tuple(cut[: len(self.keys)]), tuple(cut[len(self.keys) :]))

    def picked_behind(self, past: "KeyValues", places: NDArray[np.int64], buffer: "KVBuffer") -> "KeyValues":
        """`past`, then these at the places [P] of every row: a past that grows. They stand in `buffer`; `past` does not."""
        pairs = zip((*past.keys, *past.values), (*self.keys, *self.values), strict=True)
        grown = [_joined([before, array[:, :, places]], buffer, number) for number, (before, array) in enumerate(pairs)]
        return KeyValues(tuple(grown[: len(self.keys)]), tuple(grown[len(self.keys) :]))

    def repeated(self, times: int) -> "KeyValues":
        """The same past for a batch of `times` canvases: one row becomes so many."""
        if times == 1:
            return self
        return KeyValues(tuple(k.repeat(times, axis=0) for k in self.keys), tuple(v.repeat(times, axis=0) for v in self.values))

    def first(self, batch: int) -> "KeyValues":
        """The past of the first `batch` rows."""
        if batch == self.keys[0].shape[0]:
            return self
        return KeyValues(tuple(k[:batch] for k in self.keys), tuple(v[:batch] for v in self.values))

    @classmethod
    def empty(cls, layers: int, batch: int, heads: int, head_dim: int, dtype: np.typing.DTypeLike = np.float32) -> "KeyValues":
        nothing = np.zeros((batch, heads, 0, head_dim), dtype=dtype)
        return cls((nothing,) * layers, (nothing,) * layers)


class KVBuffer:
    """Memory that one cut after another is written to: fresh memory costs four times what the copy does."""

    def __init__(self) -> None:
        self._flat: dict[int, NDArray] = {}
        self._begins: tuple[KeyValues, int] | None = None

    def array(self, number: int, shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
        """An array of a shape, number by number, to be written to."""
        self._begins = None
        size, flat = math.prod(shape), self._flat.get(number)
        if flat is None or flat.size < size or flat.dtype != dtype:
            flat = self._flat[number] = np.empty(size, dtype)
        return flat[:size].reshape(shape)

    def begun(self, past: KeyValues, length: int) -> None:
        """What was written last, of so many positions, begins with `past`."""
        self._begins = past, length

    def begins_with(self, past: KeyValues, length: int) -> bool:
        return self._begins is not None and self._begins[0] is past and self._begins[1] == length


def _cut(
    array: Floats, start: int, stop: int, buffer: KVBuffer, number: int, before: Floats | None = None, there: int = 0
) -> Floats:
    parts = [] if before is None or there else [before]
    return _joined([*parts, array[:, :, :start], array[:, :, stop:]], buffer, number, there)


def _joined(parts: Sequence[Floats], buffer: KVBuffer, number: int, there: int = 0) -> Floats:
    """there: positions before these that stand in the buffer as they should."""
    batch, heads, _, size = parts[0].shape
    into = buffer.array(number, (batch, heads, there + sum(part.shape[2] for part in parts), size), parts[0].dtype)
    np.concatenate(parts, axis=2, out=into[:, :, there:])
    return into


def _shrunk(array: Floats, stop: int) -> Floats:
    batch, heads, length, size = array.shape
    flat, step = array.reshape(-1), stop * size  # a copy where the array is not in one piece
    for number in range(1, batch * heads if stop < length else 1):
        flat[number * step : (number + 1) * step] = flat[number * length * size :][:step]
    return flat[: batch * heads * step].reshape(batch, heads, stop, size)


def _at(array: Floats, places: NDArray[np.int64], buffer: KVBuffer, number: int) -> Floats:
    batch, heads, _, size = array.shape
    cut = buffer.array(number, (batch, heads, places.shape[1], size), array.dtype)
    for row, place, into in zip(array, places, cut, strict=True):
        np.take(row, place, axis=1, out=into, mode="clip")  # "raise" would buffer the output
    return cut


@dataclass(frozen=True, slots=True)
class CachedContext:
    """What one block keeps of the forward that it began with: a past for each branch, and the window that is computed anew.

    prefix: the window runs from the block's start to the end of the row; dual: it is the block alone
    (Fast-dLLM, arXiv 2505.22618); prompt: as dual, and every block but the first begins with a forward over the answer alone,
    whose context is the prompt as it was then. `none` keeps nothing, and its window is the whole row.

    places [W]: what of start..stop-1 is still computed, None for all of it; the rest is committed and stands in the past.
    """

    pasts: tuple[KeyValues, ...]
    start: int
    stop: int
    places: NDArray[np.int64] | None = None

    @property
    def window(self) -> NDArray[np.int64]:
        """The positions [W] that a step computes."""
        return np.arange(self.start, self.stop) if self.places is None else self.places

    def committed(self, kept: Sequence[KeyValues], written: NDArray[np.bool_], buffers: Sequence[KVBuffer]) -> "CachedContext":
        """Those of the window that are written [W] join the past as a call over the window left them (`kept`)."""
        at = np.flatnonzero(written)
        pasts = (own.picked_behind(past, at, buffer) for past, own, buffer in zip(self.pasts, kept, buffers, strict=False))
        return CachedContext(tuple(pasts), self.start, self.stop, self.window[~written])

    @classmethod
    def after(
        cls,
        policy: str,
        kept: Sequence[KeyValues],
        start: int,
        stop: int,
        length: int,
        buffers: Sequence[KVBuffer],
        batch: int,
        prompt: "CachedContext | None",
    ) -> "CachedContext":
        """The context that a forward over everything leaves. kept: of the row's first `length` positions, or of those behind
        `prompt`, a branch each, as buffers are, whose last use ends here. batch: how many canvases are to share it."""
        end = length if policy == "prefix" else stop
        pasts = []
        for number, (branch, buffer) in enumerate(zip(kept, buffers, strict=False)):
            if prompt is None:
                cut = branch.without(start, end, buffer, last=policy != "prompt")
            else:
                cut = branch.behind(prompt.pasts[number], start - prompt.start, end - prompt.start, buffer)
            pasts.append(cut.repeated(batch))
        return cls(tuple(pasts), start, end)
