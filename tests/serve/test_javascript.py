"""The routes through the openai client of JavaScript."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import ROOT, Server

from mmada_lite import load

PACKAGES = ROOT / "examples" / "web"


def test_every_answer_is_the_librarys(server: Server, tiny_bundle: Path) -> None:
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "openai").is_dir():
        pytest.skip("needs Node and its packages: npm ci --prefix examples/web")
    model = load(tiny_bundle, device="cpu", threads=1)
    command = [node, str(Path(__file__).with_name("client.mjs")), str(PACKAGES), f"{server.url}/v1", model.bundle.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    answer = model.chat("hello", model.text_defaults.replace(answer_length=24, steps=12), seed=11)
    expected = answer.result()
    assert said["models"] == [model.bundle.name]
    assert said["answer"] == said["streamed"]["text"] == expected.answer
    assert said["usage"]["prompt_tokens"] == answer.prompt_length
    written = {int(place): token for place, token in said["streamed"]["tokens"].items()}
    assert [written.get(place, model.vocabulary.special.mask) for place in range(24)] == expected.ids.tolist()
    settings = model.text_defaults.replace(answer_length=24, steps=12)
    assert said["chosen"] == model.chat("hello", settings, choices=["yes", "no"], seed=11).text
    assert said["filled"] == model.fill("it [mask:3] z", seed=11).text
    assert said["codes"] == model.paint("a cat", model.image_defaults.replace(steps=4), seed=7).result().codes.tolist()
    assert said["kinds"] == ["image_generation.partial_image", "image_generation.completed"]
    assert said["size"] == "24x16"
    assert said["refused"]["status"] == 404
    assert "no model is called" in said["refused"]["message"]
