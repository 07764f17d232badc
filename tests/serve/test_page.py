"""What docs/serve.md shows, run against the packaged model."""

import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from serving import ROOT, Server

from mmada_lite import load

PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("packaged"), "--speed", "fast") as running:
        yield running


def blocks(language: str, server: Server) -> list[str]:
    """The blocks of a language, at the address of a server that runs."""
    found = [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S) if name == language]
    return [textwrap.dedent(text).replace("http://127.0.0.1:8080", server.url) for text in found]


def test_curl(packaged: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (block,) = (text for text in blocks("", packaged) if "curl" in text)
    done = subprocess.run(
        ["bash", "-ec", block.replace("curl ", "curl -sS ")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert '"role": "assistant"' in done.stdout
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")


def test_python(packaged: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("python", packaged)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    first, *steps = capsys.readouterr().out.splitlines()
    assert first.strip()
    assert "░" in steps[0]
    assert "░" not in steps[-1]
    assert names["wide"].size == "96x64"  # type: ignore[attr-defined]


def test_a_thought_is_reasoning(packaged: Server) -> None:
    """In one piece and as a stream."""
    model = load(device="cpu", speed="fast")
    expected = model.chat("what is 47 + 85?", seed=1).result()
    assert expected.thought
    client = openai.OpenAI(base_url=f"{packaged.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "what is 47 + 85?"}]
    message = client.chat.completions.create(model="emoji", messages=messages, seed=1).choices[0].message
    assert (message.reasoning_content, message.content) == (expected.thought, expected.answer)
    deltas = [c.choices[0].delta for c in client.chat.completions.create(model="emoji", messages=messages, seed=1, stream=True)]
    assert "".join(getattr(each, "reasoning_content", None) or "" for each in deltas) == expected.thought
    assert "".join(each.content or "" for each in deltas) == expected.answer


def test_the_page_has_its_routes() -> None:
    routes = set(re.findall(r'Route\("([^"{]+)"', (ROOT / "mmada_lite" / "serve" / "app.py").read_text(encoding="utf-8")))
    assert {each for each in routes if each != "/v1/models/"} <= set(re.findall(r"`(/[\w/]+)`", PAGE))
