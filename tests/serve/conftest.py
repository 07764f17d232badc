"""A server on the tiny bundle that the tests of this folder share, and a client of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import openai
    from serving import Server

for needed in ("starlette", "uvicorn", "prometheus_client", "python_multipart", "openai"):
    pytest.importorskip(needed, reason='the server needs pip install "mmada-lite[serve]", its tests openai too')


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    from serving import Server

    words = ("--threads", "1", "--batch", "1", "--max-body", "2")
    with Server(tmp_path_factory.mktemp("server"), "-m", tiny_bundle, *words) as running:
        yield running


@pytest.fixture(scope="session")
def batching(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """One that does four requests at once."""
    from serving import Server

    with Server(
        tmp_path_factory.mktemp("batching"), "-m", tiny_bundle, "--threads", "1", "--max-body", "2", "--batch", "4"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: "Server") -> "openai.OpenAI":
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
