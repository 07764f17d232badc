"""A bundle with keys and values in half precision: C++ decodes with every cache as Python does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cpp_host import Host, build, settings_json

import mmada_lite
from mmada_lite import ImageSettings, TextSettings
from mmada_lite.bundle import MANIFEST
from mmada_lite.export.bundle import export_checkpoint

TEXT = TextSettings(answer_length=12, steps=6, block_length=4)


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    return export_checkpoint(tiny_checkpoint, folder, precision="fp32", cache_precision="fp16")


@pytest.fixture(scope="module")
def half_host(half_bundle: Path) -> Iterator[Host]:
    running = Host(build(Path(__file__).parent / "host.cpp"))
    assert "error" not in running.call("load", folder=str(half_bundle), threads=1)
    yield running
    assert running.close() == 0


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_answers_are_the_same(half_host: Host, half_bundle: Path, cache: str, guidance: float) -> None:
    model = mmada_lite.load(half_bundle, device="cpu", threads=1)
    settings = TEXT.replace(cache=cache, guidance=guidance)
    for number, prompt in enumerate(("a b c", "red cat 3 + 4", "x")):
        found = half_host.call(
            "chat", messages=[{"role": "user", "content": prompt}], settings=settings_json(settings), seed=str(number)
        )
        assert found["ids"] == model.chat(prompt, settings, seed=number).result().ids.tolist()


def test_drawings_are_the_same(half_host: Host, half_bundle: Path) -> None:
    settings = ImageSettings(steps=8, guidance=2.5)
    drawing = mmada_lite.load(half_bundle, device="cpu", threads=1).paint("a cat", settings, seed=5)
    found = half_host.call("paint", prompt="a cat", settings=settings_json(settings), seed="5")
    assert found["codes"] == drawing.result().codes.ravel().tolist()


def test_what_the_graph_does_not_have_is_refused(half_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    host = Host(build(Path(__file__).parent / "host.cpp"))
    changes = (
        (half_bundle, {"needs": []}, "past_key_0 has another type"),
        (tiny_bundle, {"needs": ["float16_caches"]}, "past_key_0 has another type"),
        (half_bundle, {"target": "cuda"}, "needs float16_caches, which is for cpu"),
        (half_bundle, {"needs": ["float16_caches", "wings"]}, 'the model needs "wings"'),
    )
    for number, (source, change, says) in enumerate(changes):
        folder = Path(shutil.copytree(source, tmp_path / str(number)))
        content = json.loads((folder / MANIFEST).read_text()) | change
        (folder / MANIFEST).write_text(json.dumps(content))
        assert says in host.call("load", folder=str(folder), threads=1)["error"]
    assert host.close() == 0
