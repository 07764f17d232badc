"""The same faults are refused in C++ and in Python: broken bundles, impossible settings, empty prompts.

The words are each side's own; both are one line and name the same file, key and value.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import with_file
from cpp_host import Host, both_name, picture_json
from PIL import Image

import mmada_lite
from mmada_lite import Error
from mmada_lite.model import Model

Change = Callable[[dict[str, Any]], Any]


def refused(host: Host, folder: Path, *names: str, **more: Any) -> None:
    """Neither side loads a folder, and both say why."""
    with pytest.raises(Error) as fault:
        mmada_lite.load(folder, device="cpu", **{"verify": "full"} if more else {})
    both_name(host.call("load", folder=str(folder), **more), fault, str(folder), *names)


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


def add(row: str, at: int, element: Any) -> Change:
    return lambda content: content["rows"][row].insert(at, element)


CHANGES: dict[str, tuple[Any, ...]] = {  # what is done to a manifest, and what either line must name
    "newer": (put("format_version", value=3), "newer mmada-lite", "format 3"),
    "another format": (put("format", value="zip"), "bundle.json"),
    "version of the wrong kind": (put("format_version", value="1"), "bundle.json"),
    "unknown key": (put("quantisation", value={}), "quantisation"),
    "unknown key like none": (put("xyz", value={}), "xyz"),
    "missing key": (drop("graphs"), "graphs"),
    "missing graphs of settings": (drop("defaults", "image"), "defaults", "image"),
    "defaults are a list": (put("defaults", value=[1, "two", None, True, 2.5]), "defaults", "two"),
    "architecture lacks": (drop("architecture", "n_layers"), "architecture", "n_layers"),
    "architecture negative": (put("architecture", "n_layers", value=-1), "architecture.n_layers", "-1"),
    "architecture text": (put("architecture", "d_model", value='it\'s "wide"'), "architecture.d_model", "wide"),
    "architecture zero float": (put("architecture", "rope_theta", value=0), "architecture.rope_theta is 0"),
    "vocabulary without special": (drop("vocabulary", "special"), "vocabulary", "special"),
    "vocabulary key": (put("vocabulary", "extra", value=1), "vocabulary", "extra"),
    "vocabulary not whole": (put("vocabulary", "size", value=1.5), "vocabulary", "size"),
    "vocabulary too small": (put("vocabulary", "size", value=3), "vocabulary", "embedding has 3 rows"),
    "special unknown": (put("vocabulary", "special", "zos", value=3), "vocabulary", "zos"),
    "special lacks": (drop("vocabulary", "special", "mask"), "vocabulary", "mask"),
    "special outside": (put("vocabulary", "special", "eot", value=10**6), "eot", "1000000"),
    "special negative": (put("vocabulary", "special", "eot", value=-1), "eot", "-1"),
    "image of text": (put("image", value="none"), ": image", "none"),
    "image key": (put("image", "downsampling", value=4), ": image", "downsampling"),
    "group": (put("quantization", "backbone", "formt", value="fp16"), "quantization.backbone", "formt"),
    "group symmetric": (put("quantization", "backbone", "symmetric", value=1), "quantization.backbone.symmetric", " 1,"),
    "unknown text setting": (put("defaults", "text", "answer_lenght", value=3), "defaults.text", "answer_lenght"),
    "unknown image setting": (put("defaults", "image", "zzz", value=3), "defaults.image", "zzz"),
    "setting by its name of format 1": (put("defaults", "text", "law", value="sensible"), "defaults.text: ", "law", "mode"),
    "setting outside its layer": (put("defaults", "text", "cache", value="dual"), "cache", "stands in", "acceleration"),
    "acceleration of text": (put("defaults", "image", "acceleration", value="all"), "acceleration is", "all"),
    "unknown acceleration": (put("defaults", "text", "acceleration", "cash", value="dual"), "defaults.text", "cash"),
    "steps none": (put("defaults", "text", "steps", value=None), "defaults.text", "steps"),
    "steps zero": (put("defaults", "text", "steps", value=0), "defaults.text", "steps is 0"),
    "steps true": (put("defaults", "image", "steps", value=True), "defaults.image", "steps"),
    "steps too many": (put("defaults", "text", "steps", value=10**6), "defaults.text", "1000000 steps"),
    "guidance negative": (put("defaults", "image", "guidance", value=-2), "defaults.image", "guidance is -2"),
    "temperature text": (put("defaults", "text", "temperature", value="warm"), "defaults.text", "temperature", "warm"),
    "cache": (put("defaults", "text", "acceleration", "cache", value="both"), "defaults.text", "cache", "both"),
    "threshold": (put("defaults", "text", "acceleration", "threshold", value=1.5), "defaults.text", "threshold", "1.5"),
    "schedule": (put("defaults", "image", "schedule", value="pow-1"), "defaults.image", "pow-1"),
    "graph outputs": (put("graphs", "backbone", "outputs", value=[1]), "graphs.backbone.outputs", "[1]"),
    "graph file unlisted": (put("graphs", "backbone", "file", value="elsewhere.onnx"), "elsewhere.onnx", "backbone"),
    "file outside": (put("files", "../secret", value={"size": 1, "sha256": ""}), "../secret"),
    "file absolute": (put("files", "/secret", value={"size": 1, "sha256": ""}), "/secret"),
    "file missing": (put("files", "more.bin", value={"size": 1, "sha256": ""}), "more.bin"),
    "file size": (put("files", "weights.bin", "size", value=10**9), "weights.bin", "1000000000"),
    "file larger": (put("files", "tokenizer.json", "size", value=1), "tokenizer.json"),
    "file hash": (put("files", "weights.bin", "sha256", value="0" * 64), "weights.bin", "sha256"),
    "provenance": (put("provenance", "versions", value={"onnx": 1}), "provenance.versions", "onnx"),
    "target": (put("target", value=3), "target is 3"),
    "target missing": (drop("target"), "target"),
    "tensors missing": (drop("tensors"), "tensors"),
    "family": (put("family", value="lumina"), "family is", "lumina", "mmada", "pip install -U"),
    "family of the wrong kind": (put("family", value=None), "family is", "mmada"),
    "family missing": (drop("family"), "family"),
    "need": (put("needs", value=["two guidances"]), "the model needs", "two guidances", "pip install -U"),
    "needs of the wrong kind": (put("needs", value="none"), "needs is", "none"),
    "needs missing": (drop("needs"), "needs"),
    "knows a list": (put("knows", value=[]), "knows is []"),
    "knows missing": (drop("knows"), "knows"),
    "rows missing": (drop("rows"), "rows"),
    "rows a list": (put("rows", value=[]), "rows is []"),
    "row unknown": (put("rows", "pint", value=[]), "unknown row", "pint"),
    "row missing": (drop("rows", "chat"), "the row", "chat", "is missing"),
    "row of a message missing": (drop("rows", "message"), "the row", "message", "is missing"),
    "row of guidance missing": (drop("rows", "unconditional"), "the row", "unconditional", "is missing"),
    "row no list": (put("rows", "think", value="bos"), "the row", "think", "a list of elements"),
    "row's special id": (add("chat", 0, "boss"), "chat", "unknown special id", "boss"),
    "row's element": (add("ask", 0, 7), "ask", "has an element 7"),
    "row's two keys": (add("ask", 0, {"text": "a", "id": "bos"}), "ask", "has an element"),
    "row's text of the wrong kind": (add("ask", 0, {"text": 3}), "ask", "has an element"),
    "row lacks a slot": (put("rows", "unconditional", value=["eos"]), "unconditional", "must hold {codes}", "holds none"),
    "row's slot twice": (add("chat", 0, "{masks}"), "chat", "must hold {messages}, {masks}, each once"),
    "row's slot of another": (add("paint", 0, "{thought}"), "paint", "must hold {prompt}, {codes}, each once", "thought"),
    "row's slot in a text": (add("ask", 0, {"text": "see {codes}:"}), "ask", "must hold {codes}, {chat}, each once"),
    "message's slot": (add("message", 0, {"text": "{rôle}"}), "message", "must hold {role}, {content}, each once", "rôle"),
    "row goes on behind masks": (add("chat", 7, "eos"), "chat", "must end with {masks}"),
    "row goes on behind the chat": (add("ask", 5, "eos"), "ask", "must end with {chat}"),
    "rows end differently": (add("paint", 7, "eos"), "paint, paint_thought, unconditional end differently"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_manifest(host: Host, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder)
    change, *names = CHANGES[name]
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    refused(host, folder, *names)


@pytest.mark.parametrize(
    ("need", "said"),
    [
        ("packed_for_cuda", "packed for cuda, which is not for C++; export it without --packed"),
        ("fp8_weights", "in fp8, which is not for C++; export it with --precision int8"),
    ],
)
def test_what_runs_on_cards_alone_is_told_its_mend(host: Host, tiny_bundle: Path, tmp_path: Path, need: str, said: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder) | {"needs": [need]}
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    assert said in host.call("load", folder=str(folder))["error"]


def test_a_bundle_for_openvino_is_pythons_alone(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder) | {"target": "openvino"}
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    said = host.call("load", folder=str(folder))["error"]
    assert "target is" in said
    assert "openvino" in said


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
    refused(host, folder, "is damaged (")


def test_folders_that_are_no_bundle(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    refused(host, tmp_path / "nowhere", "no such bundle folder")
    refused(host, tmp_path / "checkpoint", "is a checkpoint and not a bundle")
    refused(host, tmp_path / "empty", "holds no bundle.json")
    assert "no such bundle folder" in host.call("load", folder=f"{tmp_path}//./nowhere/")["error"]


def test_damaged_files(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    weights = folder / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused(host, folder, "truncated")
    weights.write_bytes(whole + b"x")
    refused(host, folder, "altered")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(host, folder, "its sha256 is not the one")
    refused(host, folder, "its sha256 is not the one", verify_all=True)
    weights.unlink()
    refused(host, folder, "missing")


def test_a_graph_that_does_not_load(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = with_file(tiny_bundle, tmp_path / "bundle", "backbone.onnx", b"this is no graph")
    refused(host, folder, "onnxruntime cannot load")


def test_a_tokenizer_that_is_none(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = with_file(tiny_bundle, tmp_path / "bundle", "tokenizer.json", b"{]")
    refused(host, folder, f"{folder}/tokenizer.json is not a tokenizer.json")


def test_after_every_refusal_the_loaded_model_still_works(host: Host, tmp_path: Path) -> None:
    assert "error" in host.call("load", folder=str(tmp_path))
    assert "ids" in host.call(
        "chat", messages=[{"role": "user", "content": "hello"}], settings={"answer_length": 2, "steps": 1}
    )


@pytest.mark.parametrize(
    ("messages", "names"),
    [
        ([], "conversation is empty"),
        ([{"role": "user", "content": "  "}], "message 1 (user) is empty"),
        ([{"role": "robot", "content": "hello"}], "robot"),
        ([{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}], "message 2 (assistant) is empty"),
        ([{"role": "user", "content": "long " * 100}], "shorten it"),
    ],
)
def test_impossible_conversations(host: Host, model: Model, messages: list[dict[str, str]], names: str) -> None:
    with pytest.raises(Error) as fault:
        model.chat(messages)
    both_name(host.call("chat", messages=messages), fault, names)


def test_impossible_pictures(host: Host, model: Model) -> None:
    image, mask = Image.new("RGB", (16, 20), "red"), Image.new("L", (16, 16))
    edge = Image.new("L", (16, 40))
    edge.putpixel((3, 0), 255)
    tall = Image.new("RGB", (16, 40), "blue")
    for given, shade, names in (
        (image, mask, "the mask is 16 x 16 pixels"),
        (image, Image.new("L", (16, 20)), "covers nothing"),
        (tall, edge, "central square"),
    ):
        with pytest.raises(Error) as fault:
            model.inpaint(given, shade, "a cat")
        job = {"picture": picture_json(given), "mask": picture_json(shade), "prompt": "a cat"}
        both_name(host.call("inpaint", **job), fault, names)
    for amount in (0.0, -1.0, 4.5, 0.01):
        with pytest.raises(Error) as fault:
            model.extend(image, "a cat", amount=amount)
        job = {"picture": picture_json(image), "side": 1, "amount": amount, "prompt": "a cat"}
        both_name(host.call("extend", **job), fault, f"cannot extend by {amount:g}")
    short = {"width": 4, "height": 4, "bytes": [0] * 47}
    assert "holds 47 bytes" in host.call("ask", picture=short, question="what?")["error"]


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        (("image", "downsample"), 0, "image.downsample is 0"),
        (("image", "downsample"), 3, "image.downsample 3"),
        (("image", "resolution"), 2**40, f"image.resolution is {2**40}"),
        (("vocabulary", "image_code_offset"), 2**63 - 1, f"begin at {2**63 - 1}"),
        (("architecture", "n_layers"), 2**63 - 1, f"n_layers is {2**63 - 1}; it can be 1 to 1024"),
    ],
)
def test_numbers_that_no_model_has_are_refused_and_stop_nothing(
    host: Host, tiny_bundle: Path, tmp_path: Path, path: tuple[str, ...], value: int, names: str
) -> None:
    """Division by zero, sums beyond 64 bits and endless memory: each is a line, and the program goes on."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder)
    put(*path, value=value)(content)
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    assert names in host.call("load", folder=str(folder), threads=1)["error"]


def test_a_bundle_without_pictures_or_words(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blind"
    shutil.copytree(tiny_bundle, folder)
    content = manifest_of(folder)
    for graph in ("image_encoder", "image_decoder"):
        del content["graphs"][graph], content["tensors"][graph]
    del content["files"]["tokenizer.json"], content["quantization"]["codec"]
    (folder / "bundle.json").write_text(json.dumps({**content, "image": None}), encoding="utf-8")
    model = mmada_lite.load(folder, device="cpu")
    assert "error" not in host.call("load", folder=str(folder))
    with pytest.raises(Error) as blind:
        model.paint("a cat")
    both_name(host.call("paint", prompt="a cat"), blind, str(folder), "image tokenizer")
    with pytest.raises(Error) as mute:
        model.chat("hello")
    both_name(host.call("chat", messages=[{"role": "user", "content": "hello"}]), mute, str(folder), "tokenizer.json")
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
    assert "no device is called" in host.call("load", folder=str(tiny_bundle), device="tpu")["error"]
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
