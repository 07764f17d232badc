"""The C++ host writes what is open in an answer, and chooses among a few, as Python does."""

from pathlib import Path

import pytest
from cpp_host import Host
from fill_cases import same_everywhere, same_notation


@pytest.mark.parametrize(
    ("models", "cases"), [(3, 20), pytest.param(20, 100, marks=pytest.mark.slow)], ids=["some", "thousands"]
)
def test_random_answers_with_holes_and_choices(
    host: Host, tiny_checkpoint: Path, tmp_path: Path, models: int, cases: int
) -> None:
    same_everywhere(host, tiny_checkpoint, tmp_path, models, cases)


def test_holes_are_read_alike(host: Host) -> None:
    same_notation(host, 2000)
