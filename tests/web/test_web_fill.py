"""The modules of the page, in node: they write what is open in an answer, and choose among a few, as Python does."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fill_cases import Fills
from line_host import Host

MODULES = Path(__file__).parents[2] / "examples" / "web" / "node_modules"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if shutil.which("node") is None or not (MODULES / "onnxruntime-web").is_dir():
        pytest.skip("needs node and onnxruntime-web: npm ci --prefix examples/web")
    running = Host("node", Path(__file__).parent / "host.mjs")
    yield running
    assert running.close() == 0


class TestWeb(Fills):
    unit = 2
