"""Laws of numbers that a caller hands in: what is meant is taken, and anything else is one line."""

from typing import Any

import numpy as np
import pytest

from mmada_lite import Error
from mmada_lite.decoding import arrays
from mmada_lite.decoding.arrays import flags_of, numbers_of


def test_ids_in_a_row_are_taken() -> None:
    for given in ([0, 4], (0, 4), iter([0, 4]), range(0, 5, 4), np.array([0, 4], dtype=np.uint8)):
        ids = numbers_of(given, "id", 5, 1)
        assert ids.dtype == np.int64
        assert ids.tolist() == [0, 4]


def test_no_ids_are_ids_and_no_codes_are_none() -> None:
    for none in ([], np.array([], dtype=str)):
        nothing = numbers_of(none, "id", 5, 1)
        assert (nothing.shape, nothing.dtype) == ((0,), np.int64)
    for none in ([], [[]], np.zeros((2, 0), dtype=int)):
        with pytest.raises(Error, match=r"the codes are .* give whole numbers, row by row of a grid"):
            numbers_of(none, "code", 5, 2)
    assert numbers_of([[1, 2]], "code", 5, 2).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0, -1], r"^the id -1 is none of the model's 0 to 4$"),
        ([5, 7], r"^the id 5 is none of the model's 0 to 4$"),
        ([[1, 2]], r"^the ids are 1 x 2 of int64; give whole numbers, in a row$"),
        ([1.0], r"^the ids are 1 of float64; give whole numbers, in a row$"),
        ([[1], [2, 3]], r"^the ids are no array: .+; give whole numbers in rows of one length$"),
        (range(10**12), r"^the ids are no array: more numbers than a model reads; give"),
        (range((1 << 24) + 1), r"^the ids are no array: more numbers than a model reads; give"),
    ],
    ids=str,
)
def test_other_ids_are_refused_by_what_they_are(given: Any, said: str) -> None:
    with pytest.raises(Error, match=said):
        numbers_of(given, "id", 5, 1)


def test_as_many_numbers_as_a_model_reads_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_MOST", 4)
    assert numbers_of(range(4), "id", 5, 1).tolist() == [0, 1, 2, 3]
    with pytest.raises(Error, match="more numbers than a model reads"):
        numbers_of(range(5), "id", 5, 1)


class Broken:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise ValueError("x" * 100)


def test_of_a_foreign_fault_eighty_letters_are_said() -> None:
    with pytest.raises(Error, match=rf"^the ids are no array: {'x' * 80}; give whole numbers in rows of one length$"):
        numbers_of(Broken(), "id", 5, 1)


def test_flags_are_one_for_each_code() -> None:
    codes = np.zeros((1, 3), dtype=np.int64)
    for given in ([[True, False, True]], [[1, 0, 1]], np.array([[1, 0, 1]], dtype=np.uint8)):
        flags = flags_of(given, codes)
        assert flags.dtype == np.bool_
        assert flags.tolist() == [[True, False, True]]
    for wrong in ([[1, 0]], [1, 0, 1], [[2, 0, 1]], [[-1, 0, 1]], [[1.0, 0.0, 1.0]], [[0.5, 0, 1]]):
        with pytest.raises(Error, match="give one flag for each code"):
            flags_of(wrong, codes)
    with pytest.raises(Error, match="the flags are no array"):
        flags_of([[1], [0, 1]], codes)
    with pytest.raises(Error, match="no code is unknown"):
        flags_of([[0, 0, 0]], codes)
