"""Laws of keys and values that are kept: every cut is as numpy's own, and a buffer says when it need not be written."""

import numpy as np
import pytest

from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer

BATCH, HEADS, LENGTH, SIZE = 4, 2, 9, 3


def drawn(seed: int, length: int = LENGTH, dtype: type = np.float32) -> KeyValues:
    """Two layers."""
    four = np.random.default_rng(seed).standard_normal((4, BATCH, HEADS, length, SIZE)).astype(dtype)
    return KeyValues(tuple(four[:2]), tuple(four[2:]))


def arrays(each: KeyValues) -> list[np.ndarray]:
    return [*each.keys, *each.values]


def same(one: KeyValues, wanted: list[np.ndarray]) -> None:
    assert len(one.keys) == len(one.values) == 2
    for own, other in zip(arrays(one), wanted, strict=True):
        assert own.dtype == other.dtype
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_cut_is_what_numpy_cuts(dtype: type) -> None:
    past, row, places = drawn(0, 5, dtype), drawn(1, dtype=dtype), np.array([0, 3, 8])
    outside = [*range(2), *range(6, LENGTH)]
    same(row.without(2, 6, KVBuffer()), [array[:, :, outside] for array in arrays(row)])
    both = list(zip(arrays(past), arrays(row), strict=True))
    behind = [np.concatenate([before, array[:, :, outside]], axis=2) for before, array in both]
    same(row.behind(past, 2, 6, KVBuffer()), behind)
    picked = [np.concatenate([before, array[:, :, places]], axis=2) for before, array in both]
    same(row.picked_behind(past, places, KVBuffer()), picked)
    scattered = np.stack([np.random.default_rng(n).permutation(LENGTH)[:5] for n in range(BATCH)])
    same(
        row.at(scattered, KVBuffer()),
        [np.take_along_axis(array, scattered[:, None, :, None], axis=2) for array in arrays(row)],
    )


def test_a_past_that_stands_in_its_buffer_is_not_written_again() -> None:
    """It is changed between, so that what is written shows: only the same past before as many positions is spared."""
    row, buffer = drawn(1), KVBuffer()
    past, other = drawn(0, 5), drawn(2, 5)
    for array in arrays(past):
        array[:] = 1
    row.behind(past, 2, 6, buffer)
    for array in arrays(past):
        array[:] = 2
    begins = [set(array[:, :, :5].flat) for array in arrays(row.behind(past, 3, 7, buffer))]
    assert begins == [{1.0}] * 4
    begins = [set(array[:, :, :5].flat) for array in arrays(row.behind(past, 3, 6, buffer))]  # longer: all lies elsewhere
    assert begins == [{2.0}] * 4
    same(
        row.behind(other, 3, 6, buffer),
        [np.concatenate([a, b[:, :, [0, 1, 2, 6, 7, 8]]], axis=2) for a, b in zip(arrays(other), arrays(row), strict=True)],
    )


def test_a_buffer_begins_with_what_was_written_last() -> None:
    past, buffer = drawn(0), KVBuffer()
    assert not buffer.begins_with(past, 7)
    buffer.begun(past, 7)
    assert buffer.begins_with(past, 7)
    assert not buffer.begins_with(past, 8)
    assert not buffer.begins_with(drawn(0), 7)
    buffer.array(0, (2, 3), np.dtype(np.float32))
    assert not buffer.begins_with(past, 7)


def test_a_past_is_repeated_and_cut_by_rows() -> None:
    row = drawn(0)
    assert row.repeated(1) is row
    same(row.repeated(2), [array.repeat(2, axis=0) for array in arrays(row)])
    assert row.first(BATCH) is row
    same(row.first(HEADS), [array[:HEADS] for array in arrays(row)])
    nothing = KeyValues.empty(2, BATCH, HEADS, SIZE)
    same(nothing, [np.zeros((BATCH, HEADS, 0, SIZE), np.float32)] * 4)
    assert nothing.length == 0
