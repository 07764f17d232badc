"""The modules of the page, in node: they write what is open in an answer, and choose among a few, as Python does."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import WEB
from fill_cases import loud_bundle, same_everywhere, same_notation, same_texts
from line_host import Host

from mmada_lite import load
from mmada_lite.model import embedded_bundle


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if shutil.which("node") is None or not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs node and onnxruntime-web: npm ci --prefix examples/web")
    running = Host("node", Path(__file__).parent / "host.mjs")
    yield running
    assert running.close() == 0


@pytest.mark.parametrize(
    ("models", "cases"), [(3, 20), pytest.param(20, 100, marks=pytest.mark.slow)], ids=["some", "thousands"]
)
def test_random_answers_with_holes_and_choices(
    host: Host, tiny_checkpoint: Path, tmp_path: Path, models: int, cases: int
) -> None:
    """A browser adds up in another order: these models leave no room for that to decide."""
    same_everywhere(host, tiny_checkpoint, tmp_path, models, cases)


def test_holes_are_read_alike(host: Host) -> None:
    same_notation(host, 2000)


@pytest.mark.parametrize("seed", [0, 1])
def test_texts_are_filled_alike(host: Host, tiny_checkpoint: Path, tmp_path: Path, seed: int) -> None:
    """Of a random model, in bytes, and of the packaged one."""
    folder = loud_bundle(tiny_checkpoint, tmp_path, seed) if seed else embedded_bundle()
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    same_texts(host, load(folder, device="cpu", threads=1), 2, 25, seed)
