"""The C++ host and the Python model of the tiny bundle, for tests that ask both."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cpp_host import Host, build

import mmada_lite
from mmada_lite import Model


@pytest.fixture(scope="module")
def host(tiny_bundle: Path) -> Iterator[Host]:
    running = Host(build(Path(__file__).parent / "host.cpp"))
    assert "error" not in running.call("load", folder=str(tiny_bundle), threads=1)
    yield running
    assert running.close() == 0


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)
