"""The modules of the page, in node: they write what is open in an answer, and choose among a few, as Python does."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import WEB
from fill_cases import same_everywhere, same_notation
from line_host import Host


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
