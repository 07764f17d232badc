"""What docs/clients.md shows, run against the packaged model as its reader would."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from serving import ROOT, Server

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S))
SUM = "132"  # what 47 + 85 is


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("packaged")) as running:
        yield running


def block(language: str, server: Server) -> str:
    return BLOCKS[language].replace("http://127.0.0.1:8080", server.url)


def ran(command: list[str], folder: Path) -> list[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_javascript(packaged: Server, tmp_path: Path) -> None:
    node, packages = shutil.which("node"), ROOT / "examples" / "web" / "node_modules"
    if node is None or not (packages / "openai").is_dir():
        pytest.skip("needs Node and its packages: npm ci --prefix examples/web")
    (tmp_path / "node_modules").symlink_to(packages.resolve())
    (tmp_path / "client.mjs").write_text(block("js", packaged))
    said, length = ran([node, "client.mjs"], tmp_path)
    assert said == SUM
    assert int(length) > 1000


@pytest.mark.manual
def test_langchain(packaged: Server, tmp_path: Path) -> None:
    """In an environment of its own, which pip fills as the page says."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (install,) = re.findall(r"`pip (install langchain[^`]*)`", PAGE)
    subprocess.run([python, "-m", "pip", "-q", *shlex.split(install)], check=True, capture_output=True)
    assert ran([python, "-c", block("python", packaged)], tmp_path) == [SUM, SUM]


def test_what_open_webui_sends(packaged: Server) -> None:
    """Its settings name this server and this model's size; what it then sends is answered: models, a chat, a picture."""
    settings = dict(line.split("=", 1) for line in block("ini", packaged).split())
    base = settings["OPENAI_API_BASE_URL"].removeprefix(packaged.url)
    key = {"authorization": f"Bearer {settings['OPENAI_API_KEY']}"}
    (model,) = packaged.ask("GET", f"{base}/models", headers=key).json["data"]
    assert model["id"] == settings["IMAGE_GENERATION_MODEL"]
    assert settings["IMAGE_SIZE"] == f"{model['resolution']}x{model['resolution']}"
    messages = [{"role": "user", "content": "what is 47 + 85?"}]
    chat = {"stream": True, "model": model["id"], "messages": messages, "stream_options": {"include_usage": True}}
    *events, last, _ = packaged.post(f"{base}/chat/completions", chat, **key).body.decode().split("\n\n")
    assert last == "data: [DONE]"
    chunks = [json.loads(each.removeprefix("data: ")) for each in events]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == SUM
    assert any("reasoning_content" in delta for delta in deltas)
    assert chunks[-1]["usage"]["total_tokens"] > 0
    base = settings["IMAGES_OPENAI_API_BASE_URL"].removeprefix(packaged.url)
    asked = {"model": model["id"], "prompt": "a cat", "n": 1, "size": settings["IMAGE_SIZE"], "response_format": "b64_json"}
    picture = packaged.post(f"{base}/images/generations", asked, **key).json["data"][0]["b64_json"]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (64, 64)
    data = "data:image/png;base64," + picture
    seen = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": data}}]
    asked = {"stream": False, "model": model["id"], "messages": [{"role": "user", "content": seen}]}
    assert packaged.post(f"{base}/chat/completions", asked, **key).json["choices"][0]["message"]["content"]


def test_a_file_of_requests(tmp_path: Path) -> None:
    ours = f'mmada-lite() {{ {shlex.quote(sys.executable)} -m mmada_lite "$@"; }}\n'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = ["bash", "-ec", ours + BLOCKS[""]]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (0, "results.jsonl\n"), done.stderr
    first, second = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first["response"]["body"]["choices"][0]["message"]["content"] == SUM
    assert Image.open(tmp_path / second["response"]["body"]["data"][0]["file"]).size == (64, 64)
