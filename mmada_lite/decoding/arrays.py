"""Ids, codes and flags that a caller hands in, as arrays: whatever is no array of a model's numbers is an Error in one line.

It knows how many numbers there are of a kind; it knows no model.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error

Ints = NDArray[np.int64]
_MOST = 1 << 24  # no model reads as many numbers


def numbers_of(given: Any, what: str, count: int, axes: int) -> Ints:
    """Ids [N] or codes [h, w] as int64. Raises Error where one is not among the model's, which are 0 to count - 1."""
    array = array_of(given, f"{what}s")
    whole = array.dtype.kind in "iu" or (axes == 1 and not array.size)
    if array.ndim != axes or not whole or (axes == 2 and not array.size):
        form = "in a row" if axes == 1 else "row by row of a grid"
        raise Error(f"the {what}s are {size_of(array)} of {array.dtype}; give whole numbers, {form}")
    array = array if array.size else np.zeros(0, dtype=np.int64)
    outside = array[(array < 0) | (array >= count)]
    if outside.size:
        raise Error(f"the {what} {outside[0]} is none of the model's 0 to {count - 1}")
    return array.astype(np.int64)


def array_of(numbers: Any, what: str) -> NDArray[Any]:
    """What a caller calls an array, or an iterator, as one. Raises Error where it has no shape."""
    try:
        if isinstance(numbers, range) and len(numbers) > _MOST:
            raise ValueError("more numbers than a model reads")
        return np.asarray(list(numbers) if isinstance(numbers, Iterator) else numbers)
    except Exception as fault:  # rows of unequal length, and whatever an object of the caller's raises
        raise Error(f"the {what} are no array: {str(fault)[:80]}; give whole numbers in rows of one length") from None


def flags_of(given: Any, codes: Ints) -> NDArray[np.bool_]:
    """Which codes [h, w] are unknown, bool [h, w]. Raises Error where there is not one flag for each, or none is set."""
    flags = array_of(given, "flags")
    if flags.shape != codes.shape or flags.dtype.kind not in "biu" or flags.min() < 0 or flags.max() > 1:
        raise Error(f"the codes are {size_of(codes)} and what is unknown is {size_of(flags)}; give one flag for each code")
    if not flags.any():
        raise Error("no code is unknown; say what is to be drawn anew")
    return flags.astype(bool)


def size_of(array: NDArray[np.generic]) -> str:
    """2 x 3 of an array of that shape."""
    return " x ".join(map(str, array.shape)) or "a single number"
