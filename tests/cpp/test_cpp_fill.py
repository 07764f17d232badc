"""The C++ host writes what is open in an answer, and chooses among a few, as Python does."""

from pathlib import Path

import pytest
from cpp_host import Host
from fill_cases import loud_bundle, same_everywhere, same_notation, same_recording, same_texts

from mmada_lite import load
from mmada_lite.model import embedded_bundle


@pytest.mark.parametrize(
    ("models", "cases"), [(3, 20), pytest.param(20, 100, marks=pytest.mark.slow)], ids=["some", "thousands"]
)
def test_random_answers_with_holes_and_choices(
    host: Host, tiny_checkpoint: Path, tmp_path: Path, models: int, cases: int
) -> None:
    same_everywhere(host, tiny_checkpoint, tmp_path, models, cases)


def test_holes_are_read_alike(host: Host) -> None:
    same_notation(host, 2000)


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_are_filled_alike(host: Host, tiny_checkpoint: Path, tmp_path: Path, seed: int) -> None:
    """Of a random model, in bytes, and of the packaged one."""
    folder = loud_bundle(tiny_checkpoint, tmp_path, seed) if seed else embedded_bundle()
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    same_texts(host, load(folder, device="cpu", threads=1), 1, 25, seed)


def test_recorded_holes_are_filled_step_by_step(host: Host, golden: Path, tmp_path: Path) -> None:
    same_recording(host, golden, tmp_path)
