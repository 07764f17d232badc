"""Settings of the C++ host: what Python refuses is refused there too, what Python alone decodes with is refused by name, and
both sides have the same names and defaults.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import in_format_1
from cpp_host import Host, both_name

import mmada_lite
from mmada_lite import Error, ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
from mmada_lite.bundle import Bundle
from mmada_lite.decoding import format_1
from mmada_lite.decoding.format_1 import RENAMED
from mmada_lite.decoding.setting_fields import settings_of
from mmada_lite.decoding.settings import from_plain, plain
from mmada_lite.model import Model

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
KINDS: tuple[tuple[Any, Any, str, dict[str, Any]], ...] = (
    (TextSettings, TextAcceleration, "chat", CHAT),
    (ImageSettings, ImageAcceleration, "paint", {"prompt": "a cat"}),
)
DECODED = {"chat": {"cache", "threshold"}, "paint": set[str]()}  # of the acceleration, by this host


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"answer_length": 0}, "answer_length is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"block_length": 0}, "block_length is 0"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"order": "left"}, "left"),
        ({"acceleration": {"cache": "all"}}, "all"),
        ({"mode": "none"}, "none"),
        ({"mode": None}, "mode is"),
        ({"acceleration": {"cache": None}}, "cache is"),
        ({"acceleration": None}, "acceleration is"),
        ({"acceleration": [1]}, "acceleration is [1]"),
        ({"acceleration": {"threshold": 0.0}}, "threshold 0"),
        ({"acceleration": {"threshold": -0.25}}, "threshold -0.25"),
        ({"acceleration": {"threshold": 1.0000000000000002}}, "threshold 1.0000000000000002"),
        ({"answer_length": 8, "steps": 9}, "9 steps for 8 tokens"),
        ({"answer_length": 80, "steps": 2, "block_length": 10}, "2 steps cannot fill 8 blocks"),
        ({"answer_length": 300, "steps": 30}, "shorten it"),
    ],
)
def test_impossible_text_settings(host: Host, model: Model, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(Error) as fault:
        model.chat("hello", from_plain(TextSettings, settings))
    found = host.call("chat", settings=settings, **CHAT)
    both_name(found, fault, names)


def test_a_cache_of_the_python_runtime_alone_is_refused(host: Host) -> None:
    found = host.call("chat", settings={"acceleration": {"cache": "prompt"}}, **CHAT)
    assert found == {"error": "the C++ host does not decode with the cache prompt; use dual, or the Python runtime"}


def changed(bundle: Path, what: str, settings: dict[str, Any]) -> Path:
    """The bundle itself, with some of its default settings replaced."""
    content = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    content["defaults"][what] |= settings
    (bundle / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    return bundle


def test_the_mode_of_the_reference_is_refused_and_the_way_out_named(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    """In settings, set by a program, and in a bundle's defaults."""
    line = "the C++ host does not decode with the mode reference; use default, or the Python runtime"
    for cls, _, op, job in KINDS:
        assert host.call(op, settings={"mode": "reference"}, **job) == {"error": line}
        assert host.call(op, settings={}, mode="reference", **job) == {"error": line}
        assert host.call(op, settings={}, mode="sensible", **job) == {"error": 'mode is "sensible"; use one of default'}
        what = "text" if cls is TextSettings else "image"
        folder = tmp_path / what
        changed(Path(shutil.copytree(tiny_bundle, folder)), what, {"mode": "reference"})
        assert Bundle.open(folder)
        assert host.call("load", folder=str(folder)) == {"error": f"{folder}/bundle.json: defaults.{what}: {line}"}


def test_every_acceleration_that_this_host_lacks_is_refused_by_name(host: Host) -> None:
    """Not one is left out: the C++ host says so, and never decodes as if it were not there."""
    for _, layer, op, job in KINDS:
        lacking = {each.name for each in settings_of(layer)} - DECODED[op]
        assert lacking
        for name in lacking:
            refusal = host.call(op, settings={"acceleration": {name: 1}}, **job)["error"]
            assert refusal == f'the C++ host does not decode with "{name}"; leave it out, or use the Python runtime'


@pytest.mark.parametrize("old", RENAMED)
def test_a_name_of_format_1_is_refused_and_the_right_one_named(host: Host, old: str) -> None:
    """Wherever it stands, in the words of either side."""
    for cls, _, op, job in KINDS:
        for settings in ({old: 1}, {"acceleration": {old: 1}}):
            with pytest.raises(Error) as fault:
                from_plain(cls, settings)
            both_name(host.call(op, settings=settings, **job), fault, old, "is called", RENAMED[old])


def test_a_setting_in_the_wrong_layer_is_refused_and_the_right_one_named(host: Host) -> None:
    for cls, layer, op, job in KINDS:
        for name in (each.name for each in settings_of(layer)):
            with pytest.raises(Error) as fault:
                from_plain(cls, {name: 1})
            both_name(host.call(op, settings={name: 1}, **job), fault, name, "stands in", "acceleration")
        for name in (each.name for each in settings_of(cls)):
            if name in (each.name for each in settings_of(layer)):
                continue
            with pytest.raises(Error) as fault:
                from_plain(cls, {"acceleration": {name: 1}})
            both_name(host.call(op, settings={"acceleration": {name: 1}}, **job), fault, "unknown setting", name)


@pytest.fixture
def old_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return in_format_1(tiny_bundle, tmp_path / "old")


@pytest.mark.parametrize(
    ("what", "settings", "names"),
    [
        ("text", {"reech": 2}, ("unknown setting", "reech")),
        ("image", {"zzz": 2}, ("unknown setting", "zzz")),
        ("text", {"law": "default"}, ("law is", "default", "sensible")),
        ("image", {"law": 3}, ("law is 3", "sensible")),
        ("text", {"acceleration": {"cache": "dual"}}, ("unknown setting", "acceleration")),
        ("text", {"cache": "both"}, ("cache is", "both")),
        ("text", {"threshold": 1.5}, ("threshold 1.5",)),
        *(("text", {new: 2}, (f"{new}", "it is", old, "in format 1")) for old, new in RENAMED.items() if old in format_1.TEXT),
        *(
            ("image", {new: 2}, (f"{new}", "it is", old, "in format 1"))
            for old, new in RENAMED.items()
            if old in format_1.IMAGE
        ),
    ],
)
def test_a_wrong_setting_of_format_1(
    host: Host, old_bundle: Path, what: str, settings: dict[str, Any], names: tuple[str, ...]
) -> None:
    changed(old_bundle, what, settings)
    with pytest.raises(Error) as fault:
        Bundle.open(old_bundle)
    both_name(host.call("load", folder=str(old_bundle)), fault, f"{old_bundle}/bundle.json: defaults.{what}: ", *names)


def test_what_this_host_lacks_is_refused_by_its_key_in_format_1(host: Host, old_bundle: Path) -> None:
    whole = (old_bundle / "bundle.json").read_text(encoding="utf-8")
    for (_, _, op, _), keys in zip(KINDS, (format_1.TEXT, format_1.IMAGE), strict=True):
        what = "text" if op == "chat" else "image"
        where = f"{old_bundle}/bundle.json: defaults.{what}: the C++ host does not decode with"
        for key in (key for key, path in keys.items() if "." in path and key not in DECODED[op]):
            changed(old_bundle, what, {key: 1})
            line = f'{where} "{key}"; leave it out, or use the Python runtime'
            assert host.call("load", folder=str(old_bundle)) == {"error": line}
            (old_bundle / "bundle.json").write_text(whole, encoding="utf-8")
        changed(old_bundle, what, {"law": "reference"})
        line = f"{where} the law reference; use sensible, or the Python runtime"
        assert host.call("load", folder=str(old_bundle)) == {"error": line}
        (old_bundle / "bundle.json").write_text(whole, encoding="utf-8")


def test_the_longest_block_is_one_block(host: Host, model: Model) -> None:
    settings = TextSettings(answer_length=6, steps=3, block_length=1_000_000)
    expected = model.chat("hello", settings).result().ids.tolist()
    assert host.call("chat", settings=plain(settings), **CHAT)["ids"] == expected
    longest = {**plain(settings), "answer_length": 2**63 - 1}
    assert f"answer_length is {2**63 - 1}" in host.call("chat", settings=longest, **CHAT)["error"]


@pytest.mark.parametrize(
    ("prompt", "settings", "names"),
    [
        ("a", {"steps": 0}, "steps is 0"),
        ("a", {"guidance": -1e-5}, "guidance is -1e-05"),
        ("a", {"temperature": -1e300}, "temperature is -1e+300"),
        ("a", {"sampling_temperature": -0.125}, "sampling_temperature is -0.125"),
        ("a", {"mode": "it's"}, "it's"),
        ("a", {"schedule": "cosinus"}, "cosinus"),
        ("a", {"schedule": "pow0"}, "pow0"),
        ("a", {"schedule": "pownan"}, "pownan"),
        ("a", {"steps": 17}, "17 steps for 16 codes"),
        ("", None, "prompt is empty"),
        (" \n\u2003", None, "prompt is empty"),
        ("word " * 300, None, "shorten it"),
    ],
)
def test_impossible_drawings(host: Host, model: Model, prompt: str, settings: dict[str, Any] | None, names: str) -> None:
    with pytest.raises(Error) as fault:
        model.paint(prompt, None if settings is None else from_plain(ImageSettings, settings))
    both_name(host.call("paint", prompt=prompt, settings=settings), fault, names)


def members_of(header: str, struct: str) -> dict[str, Any]:
    """Names and defaults of a struct in the header, with those of a struct inside it in its place."""
    members: dict[str, Any] = {}
    for line in header.split(f"struct {struct} {{")[1].split("};")[0].splitlines():
        kind, name, *rest = line.split("//")[0].strip().rstrip(";").split(maxsplit=2) or ("", "")
        if kind.endswith("Acceleration"):
            members |= members_of(header, kind)
        elif name:
            members[name] = json.loads(rest[0].removeprefix("= ")) if rest else None
    return members


def test_the_settings_of_both_sides_have_the_same_names_and_defaults() -> None:
    """The structs in the header against Python's classes: a setting added to one side alone shows here."""
    header = (Path(mmada_lite.__file__).parent / "cpp" / "mmada_lite.hpp").read_text()
    for cls in (TextSettings, ImageSettings):
        settings = cls()
        decoded = plain(settings) | {
            name: settings.flat()[name] for name in DECODED["chat" if cls is TextSettings else "paint"]
        }
        del decoded["acceleration"]
        assert members_of(header, cls.__name__) == decoded
