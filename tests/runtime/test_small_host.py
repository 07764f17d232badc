"""docs/bundle.md is enough to write a host from: one that was, of less than 150 lines, gives the ids that the runtime gives."""

import json
import shutil
from pathlib import Path

import pytest
from small_host import Host

from mmada_lite import ImageSettings, Model, TextSettings, load
from mmada_lite.decoding.settings import plain
from mmada_lite.model import embedded_bundle

TEXTS = [
    TextSettings(answer_length=12, steps=12, block_length=4),
    TextSettings(answer_length=11, steps=5, block_length=4, temperature=0.7, guidance=1.5),
    TextSettings(answer_length=12, steps=7, block_length=6, order="random"),
    TextSettings(answer_length=12, steps=12, block_length=4).replace(cache="dual", threshold=0.02),
    TextSettings(answer_length=12, steps=6, block_length=4, guidance=0.5).replace(cache="prefix"),
    TextSettings(answer_length=12, steps=6, block_length=6, order="random").replace(cache="dual", threshold=0.5),
]
IMAGES = [
    ImageSettings(steps=5, guidance=2.0),
    ImageSettings(steps=16, guidance=0.0, schedule="linear", temperature=3.0),
    ImageSettings(steps=7, schedule="pow2", sampling_temperature=0.5),
    ImageSettings(steps=4, schedule="sigmoid", temperature=0.0, sampling_temperature=0.0),
]
MESSAGES = [{"role": "system", "content": "be short"}, {"role": "user", "content": " what is <|eot_id|>? "}]


@pytest.fixture(scope="module", params=["tiny", "packaged"])
def hosts(request: pytest.FixtureRequest, tiny_bundle: Path) -> tuple[Host, Model]:
    folder = tiny_bundle if request.param == "tiny" else embedded_bundle()
    return Host(folder), load(folder, device="cpu")


def test_it_is_small() -> None:
    lines = (Path(__file__).parent / "small_host.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    modules = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert modules == {"json", "math", "re", "pathlib", "numpy", "onnxruntime", "tokenizers"}


@pytest.mark.parametrize("settings", TEXTS)
def test_it_answers_alike(hosts: tuple[Host, Model], settings: TextSettings) -> None:
    host, model = hosts
    for seed in (0, 2**63 + 5):
        assert host.chat(MESSAGES, plain(settings), seed) == model.chat(MESSAGES, settings, seed=seed).result().ids.tolist()


@pytest.mark.parametrize("settings", IMAGES)
def test_it_draws_and_looks_alike(hosts: tuple[Host, Model], settings: ImageSettings) -> None:
    host, model = hosts
    for seed in (0, 3):
        drawing = model.paint("a red heart", settings, seed=seed).result()
        assert host.paint("a red heart", plain(settings), seed).tolist() == drawing.codes.tolist()
    codes = model.codes_of(drawing.picture)
    assert host.ask(codes, MESSAGES) == model.ask(drawing.picture, MESSAGES).result().ids.tolist()


def test_it_refuses_what_it_cannot_read(tiny_bundle: Path, tmp_path: Path) -> None:
    for key, value in {"family": "lumina", "needs": ["two guidances"], "format_version": 3}.items():
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / key))
        content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        (folder / "bundle.json").write_text(json.dumps(content | {key: value}), encoding="utf-8")
        with pytest.raises(ValueError, match=key):
            Host(folder)
