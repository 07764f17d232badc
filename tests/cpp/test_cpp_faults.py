"""The same fault gives the same line in C++ and in Python: broken bundles, impossible settings, empty prompts."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import with_file
from cpp_host import Host, build, picture_json
from PIL import Image

import mmada_lite
from mmada_lite import Error, ImageSettings, TextSettings
from mmada_lite.model import Model

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def host(tiny_bundle: Path) -> Iterator[Host]:
    running = Host(build(Path(__file__).parent / "host.cpp"))
    assert "error" not in running.call("load", folder=str(tiny_bundle), threads=1)
    yield running
    assert running.close() == 0


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)


def same_line(host: Host, folder: Path, **more: Any) -> str:
    """What Python says when it loads a folder, which must be what C++ says."""
    with pytest.raises(Error) as fault:
        mmada_lite.load(folder, device="cpu", **{"verify": "full"} if more else {})
    found = host.call("load", folder=str(folder), **more)
    assert found == {"error": str(fault.value)}
    return str(fault.value)


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return content


def put(*path: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop(*path: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


CHANGES: dict[str, Change] = {
    "newer": put("format_version", value=2),
    "another format": put("format", value="zip"),
    "version of the wrong kind": put("format_version", value="1"),
    "unknown key": put("quantisation", value={}),
    "unknown key like none": put("xyz", value={}),
    "missing key": drop("graphs"),
    "missing graphs of settings": drop("defaults", "image"),
    "defaults are a list": put("defaults", value=[1, "two", None, True, 2.5]),
    "architecture lacks": drop("architecture", "n_layers"),
    "architecture negative": put("architecture", "n_layers", value=-1),
    "architecture text": put("architecture", "d_model", value='it\'s "wide"\n'),
    "architecture zero float": put("architecture", "rope_theta", value=0),
    "vocabulary without special": drop("vocabulary", "special"),
    "vocabulary key": put("vocabulary", "extra", value=1),
    "vocabulary not whole": put("vocabulary", "size", value=1.5),
    "vocabulary too small": put("vocabulary", "size", value=3),
    "special unknown": put("vocabulary", "special", "zos", value=3),
    "special lacks": drop("vocabulary", "special", "mask"),
    "special outside": put("vocabulary", "special", "eot", value=10**6),
    "special negative": put("vocabulary", "special", "eot", value=-1),
    "image of text": put("image", value="none"),
    "image key": put("image", "downsampling", value=4),
    "group": put("quantization", "backbone", "formt", value="fp16"),
    "group symmetric": put("quantization", "backbone", "symmetric", value=1),
    "unknown text setting": put("defaults", "text", "answer_lenght", value=3),
    "unknown image setting": put("defaults", "image", "zzz", value=3),
    "steps none": put("defaults", "text", "steps", value=None),
    "steps zero": put("defaults", "text", "steps", value=0),
    "steps true": put("defaults", "image", "steps", value=True),
    "steps too many": put("defaults", "text", "steps", value=10**6),
    "guidance negative": put("defaults", "image", "guidance", value=-2),
    "temperature text": put("defaults", "text", "temperature", value="warm"),
    "cache": put("defaults", "text", "cache", value="both"),
    "threshold": put("defaults", "text", "threshold", value=1.5),
    "schedule": put("defaults", "image", "schedule", value="pow-1"),
    "graph outputs": put("graphs", "backbone", "outputs", value=[1]),
    "graph file unlisted": put("graphs", "backbone", "file", value="elsewhere.onnx"),
    "file outside": put("files", "../secret", value={"size": 1, "sha256": ""}),
    "file absolute": put("files", "/secret", value={"size": 1, "sha256": ""}),
    "file missing": put("files", "more.bin", value={"size": 1, "sha256": ""}),
    "file size": put("files", "weights.bin", "size", value=10**9),
    "file larger": put("files", "tokenizer.json", "size", value=1),
    "file hash": put("files", "weights.bin", "sha256", value="0" * 64),
    "provenance": put("provenance", "versions", value={"onnx": 1}),
    "target": put("target", value=3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_manifest(host: Host, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder)
    CHANGES[name](content)
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    same_line(host, folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2",
        '{"a": }',
        '{"a" 1}',
        "{'a': 1}",
        '{"a": 1} x',
        '{"a": "b',
        '{"a": "\t"}',
        '{"é": "\\q"}',
        "[1 2]",
        "\n\n nul",
        "-",
    ],
)
def test_a_damaged_manifest(host: Host, tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    assert "is damaged (" in same_line(host, folder)


def test_folders_that_are_no_bundle(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert "no such bundle folder" in same_line(host, tmp_path / "nowhere")
    assert "is a checkpoint and not a bundle" in same_line(host, tmp_path / "checkpoint")
    assert "holds no bundle.json" in same_line(host, tmp_path / "empty")
    assert "error" in host.call("load", folder=f"{tmp_path}//./nowhere/")
    assert host.call("load", folder=f"{tmp_path}//./nowhere/") == host.call("load", folder=str(tmp_path / "nowhere"))


def test_damaged_files(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    weights = folder / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "truncated" in same_line(host, folder)
    weights.write_bytes(whole + b"x")
    assert "altered" in same_line(host, folder)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its sha256 is not the one" in same_line(host, folder)
    assert "its sha256 is not the one" in same_line(host, folder, verify_all=True)
    weights.unlink()
    assert "missing" in same_line(host, folder)


def test_a_graph_that_does_not_load(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = with_file(tiny_bundle, tmp_path / "bundle", "backbone.onnx", b"this is no graph")
    assert "onnxruntime cannot load" in same_line(host, folder)


def test_a_tokenizer_that_is_none(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = with_file(tiny_bundle, tmp_path / "bundle", "tokenizer.json", b"{]")
    with pytest.raises(Error, match=r"tokenizer\.json is not a tokenizer\.json: "):
        mmada_lite.load(folder, device="cpu")
    assert f"{folder}/tokenizer.json is not a tokenizer.json: " in host.call("load", folder=str(folder))["error"]


def test_after_every_refusal_the_loaded_model_still_works(host: Host, tmp_path: Path) -> None:
    assert "error" in host.call("load", folder=str(tmp_path))
    assert "ids" in host.call(
        "chat", messages=[{"role": "user", "content": "hello"}], settings={"answer_length": 2, "steps": 1}
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"answer_length": 0},
        {"steps": -3},
        {"block_length": 0},
        {"temperature": -0.5},
        {"guidance": -1.0},
        {"order": "left"},
        {"cache": "all"},
        {"law": "none"},
        {"threshold": 0.0},
        {"threshold": -0.25},
        {"threshold": 1.0000000000000002},
        {"answer_length": 8, "steps": 9},
        {"answer_length": 80, "steps": 2, "block_length": 10},
        {"answer_length": 9, "steps": 4, "block_length": 4, "law": "reference"},
        {"answer_length": 8, "steps": 2, "block_length": 4, "law": "reference", "cache": "dual"},
        {"answer_length": 300, "steps": 30},
    ],
)
def test_impossible_text_settings(host: Host, model: Model, settings: dict[str, Any]) -> None:
    with pytest.raises(Error) as fault:
        model.chat("hello", TextSettings(**settings))
    found = host.call("chat", messages=[{"role": "user", "content": "hello"}], settings=settings)
    assert found == {"error": str(fault.value)}


def test_a_cache_of_the_python_runtime_alone_is_refused(host: Host) -> None:
    found = host.call("chat", messages=[{"role": "user", "content": "hello"}], settings={"cache": "prompt"})
    assert found == {"error": "the C++ host does not decode with the cache 'prompt'; use dual, or the Python runtime"}


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("a", {"steps": 0}),
        ("a", {"guidance": -1e-5}),
        ("a", {"temperature": -1e300}),
        ("a", {"sampling_temperature": -123456789012345680.0}),
        ("a", {"law": "it's"}),
        ("a", {"schedule": "cosinus"}),
        ("a", {"schedule": "pow0"}),
        ("a", {"schedule": "pownan"}),
        ("a", {"steps": 17}),
        ("", None),
        (" \n\u2003", None),
        ("word " * 300, None),
    ],
)
def test_impossible_drawings(host: Host, model: Model, prompt: str, settings: dict[str, Any] | None) -> None:
    with pytest.raises(Error) as fault:
        model.paint(prompt, None if settings is None else ImageSettings(**settings))
    assert host.call("paint", prompt=prompt, settings=settings) == {"error": str(fault.value)}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": "  "}],
        [{"role": "robot", "content": "hello"}],
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}],
        [{"role": "user", "content": "long " * 100}],
    ],
)
def test_impossible_conversations(host: Host, model: Model, messages: list[dict[str, str]]) -> None:
    with pytest.raises(Error) as fault:
        model.chat(messages)
    assert host.call("chat", messages=messages) == {"error": str(fault.value)}


def test_impossible_pictures(host: Host, model: Model) -> None:
    image, mask = Image.new("RGB", (16, 20), "red"), Image.new("L", (16, 16))
    edge = Image.new("L", (16, 40))
    edge.putpixel((3, 0), 255)
    tall = Image.new("RGB", (16, 40), "blue")
    for given, shade in ((image, mask), (image, Image.new("L", (16, 20))), (tall, edge)):
        with pytest.raises(Error) as fault:
            model.inpaint(given, shade, "a cat")
        job = {"picture": picture_json(given), "mask": picture_json(shade), "prompt": "a cat"}
        assert host.call("inpaint", **job) == {"error": str(fault.value)}
    for amount in (0.0, -1.0, 4.5, 0.01):
        with pytest.raises(Error) as fault:
            model.extend(image, "a cat", amount=amount)
        job = {"picture": picture_json(image), "side": 1, "amount": amount, "prompt": "a cat"}
        assert host.call("extend", **job) == {"error": str(fault.value)}
    short = {"width": 4, "height": 4, "bytes": [0] * 47}
    assert "holds 47 bytes" in host.call("ask", picture=short, question="what?")["error"]


def test_a_bundle_without_pictures_or_words(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blind"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder)
    for graph in ("image_encoder", "image_decoder"):
        del content["graphs"][graph]
    del content["files"]["tokenizer.json"]
    (folder / "bundle.json").write_text(json.dumps({**content, "image": None}), encoding="utf-8")
    model = mmada_lite.load(folder, device="cpu")
    assert "error" not in host.call("load", folder=str(folder))
    with pytest.raises(Error) as blind:
        model.paint("a cat")
    assert host.call("paint", prompt="a cat") == {"error": str(blind.value)}
    with pytest.raises(Error) as mute:
        model.chat("hello")
    assert host.call("chat", messages=[{"role": "user", "content": "hello"}]) == {"error": str(mute.value)}
    host.call("load", folder=str(tiny_bundle), threads=1)


def test_ids_and_codes_that_the_model_lacks(host: Host, model: Model) -> None:
    assert "the id 99999 is none" in host.call("complete", prompt=[99999])["error"]
    assert "the id -1 is none" in host.call("complete", prompt=[-1])["error"]
    grid = {"rows": 1, "columns": 2, "words": [5]}
    assert "the code 16 is none" in host.call("draw", codes=[0, 16], unknown=[0, 1], **grid)["error"]
    assert "holds 1" in host.call("draw", codes=[0], unknown=[1], **grid)["error"]
    assert "3 flags" in host.call("draw", codes=[0, 1], unknown=[1, 0, 0], **grid)["error"]
    assert "no code is unknown" in host.call("draw", codes=[0, 1], unknown=[0, 0], **grid)["error"]
    assert "ids" in host.call("complete", prompt=[], settings={"answer_length": 2, "steps": 1})


def test_devices(host: Host, tiny_bundle: Path) -> None:
    assert "no device is called 'tpu'" in host.call("load", folder=str(tiny_bundle), device="tpu")["error"]
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "no CUDA provider" in host.call("load", folder=str(tiny_bundle), device="cuda")["error"]


def test_a_bundle_that_changes_on_disk_while_it_is_loaded(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    """What was opened goes on; what is opened later is what was checked, or a clear line."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    assert "error" not in host.call("load", folder=str(folder), threads=1)
    messages = [{"role": "user", "content": "hello"}]
    before = host.call("chat", messages=messages, settings={"answer_length": 4, "steps": 2})
    (folder / "image_decoder.onnx").write_bytes(b"something else")
    assert (
        "was changed on disk while the model was in use; load the bundle again" in host.call("paint", prompt="a cat")["error"]
    )
    assert host.call("chat", messages=messages, settings={"answer_length": 4, "steps": 2}) == before
    host.call("load", folder=str(tiny_bundle), threads=1)


def test_later_settings_of_texts_are_refused_here(host: Host) -> None:
    """Not one is left out: the C++ host says so, and never decodes as if it were not there."""
    names = [field.name for field in fields(TextSettings)]
    for name in names[names.index("law") + 1 :]:
        found = host.call("chat", messages=[{"role": "user", "content": "hello"}], settings={name: 1})
        assert f"the C++ host does not decode with '{name}'" in found["error"]


def test_later_settings_of_pictures_are_refused_here(host: Host) -> None:
    names = [field.name for field in fields(ImageSettings)]
    for name in names[names.index("law") + 1 :]:
        found = host.call("paint", prompt="a cat", settings={name: 1})
        assert f"the C++ host does not decode with '{name}'" in found["error"]


def test_the_settings_of_both_sides_have_the_same_names_and_defaults() -> None:
    """The structs in the header against the dataclasses: a setting added to one side alone shows here."""
    header = (Path(mmada_lite.__file__).parent / "cpp" / "mmada_lite.hpp").read_text()
    for cls in (TextSettings, ImageSettings):
        body = header.split(f"struct {cls.__name__} {{")[1].split("};")[0]
        found = [line.split("//")[0].split(";")[0].split() for line in body.splitlines() if ";" in line.split("//")[0]]
        names = [words[1] for words in found]
        first = fields(cls)[
            : [field.name for field in fields(cls)].index("law") + 1
        ]  # later ones are refused, not decoded with
        assert names == [field.name for field in first]
        for words, field in zip(found, first, strict=True):
            value = json.loads(words[3]) if len(words) > 3 else None
            assert value == field.default, field.name


def test_numpy_reads_a_picture_that_was_written(host: Host, model: Model, tmp_path: Path) -> None:
    """PPM files go both ways between the two."""
    found = host.call(
        "ppm", file=str(tmp_path / "made.ppm"), picture={"width": 2, "height": 1, "bytes": [1, 2, 3, 250, 10, 13]}
    )
    assert found["bytes"] == [1, 2, 3, 250, 10, 13]
    assert np.asarray(Image.open(tmp_path / "made.ppm")).reshape(-1).tolist() == found["bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["made.ppm"]
    Image.new("RGB", (3, 2), (9, 8, 7)).save(tmp_path / "pillow.ppm")
    assert host.call("ppm", file=str(tmp_path / "pillow.ppm"))["bytes"] == [9, 8, 7] * 6
    for content, word in (
        (b"P5\n1 1\n255\n", "not a binary PPM"),
        (b"P6\n2 2\n255\nabc", "cut short"),
        (b"", "not a binary PPM"),
    ):
        (tmp_path / "bad.ppm").write_bytes(content)
        assert word in host.call("ppm", file=str(tmp_path / "bad.ppm"))["error"]
    assert "check the path" in host.call("ppm", file=str(tmp_path / "none.ppm"))["error"]
    made = {"width": 1, "height": 1, "bytes": [1, 2, 3]}
    assert "cannot be written" in host.call("ppm", file=str(tmp_path / "no" / "x.ppm"), picture=made)["error"]
