"""Settings of the C++ host: what Python refuses is refused there too, what Python alone decodes with is refused by name, and
both sides have the same names and defaults.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpp_host import Host, both_name, build

import mmada_lite
from mmada_lite import Error, ImageSettings, TextSettings
from mmada_lite.decoding.format_1 import always_written
from mmada_lite.decoding.settings import FORMAT_1, from_plain, plain
from mmada_lite.model import Model


@pytest.fixture(scope="module")
def host(tiny_bundle: Path) -> Iterator[Host]:
    running = Host(build(Path(__file__).parent / "host.cpp"))
    assert "error" not in running.call("load", folder=str(tiny_bundle), threads=1)
    yield running
    assert running.close() == 0


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"answer_length": 0}, "answer_length is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"block_length": 0}, "block_length is 0"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"order": "left"}, "left"),
        ({"cache": "all"}, "all"),
        ({"law": "none"}, "none"),
        ({"threshold": 0.0}, "threshold 0"),
        ({"threshold": -0.25}, "threshold -0.25"),
        ({"threshold": 1.0000000000000002}, "threshold 1.0000000000000002"),
        ({"answer_length": 8, "steps": 9}, "9 steps for 8 tokens"),
        ({"answer_length": 80, "steps": 2, "block_length": 10}, "2 steps cannot fill 8 blocks"),
        ({"answer_length": 300, "steps": 30}, "shorten it"),
    ],
)
def test_impossible_text_settings(host: Host, model: Model, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(Error) as fault:
        model.chat("hello", from_plain(TextSettings, settings, "settings"))
    found = host.call("chat", messages=[{"role": "user", "content": "hello"}], settings=settings)
    both_name(found, fault, names)


def test_a_cache_of_the_python_runtime_alone_is_refused(host: Host) -> None:
    found = host.call("chat", messages=[{"role": "user", "content": "hello"}], settings={"cache": "prompt"})
    assert found == {"error": "the C++ host does not decode with the cache prompt; use dual, or the Python runtime"}


def test_the_law_of_the_reference_is_refused_and_the_way_out_named(host: Host, tiny_bundle: Path, tmp_path: Path) -> None:
    line = "the C++ host does not decode with the law reference; use sensible, or the Python runtime"
    chat = host.call("chat", messages=[{"role": "user", "content": "hello"}], settings={"law": "reference"})
    assert chat == host.call("paint", prompt="a cat", settings={"law": "reference"}) == {"error": line}
    for what in ("text", "image"):
        folder = tmp_path / what
        shutil.copytree(tiny_bundle, folder)
        content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        content["defaults"][what]["law"] = "reference"
        (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
        assert mmada_lite.load(folder, device="cpu")
        assert host.call("load", folder=str(folder)) == {"error": f"{folder}/bundle.json: defaults.{what}: {line}"}


def test_a_mode_that_a_program_sets_is_checked_too(host: Host) -> None:
    reference = "the C++ host does not decode with the mode reference; use default, or the Python runtime"
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
    for op, job in (("chat", chat), ("paint", {"prompt": "a cat"})):
        assert host.call(op, settings={}, mode="reference", **job) == {"error": reference}
        line = host.call(op, settings={}, mode="sensible", **job)["error"]
        assert line == 'mode is "sensible"; use one of default'


@pytest.mark.parametrize(
    ("op", "name", "older"),
    [
        ("chat", "mode", "law"),
        ("chat", "lookahead", "reach"),
        ("chat", "refresh_drift", "drift"),
        ("chat", "suffix_window", "suffix"),
        ("chat", "speculative_steps", "draft"),
        ("chat", "kv_commit_every", "settle"),
        ("paint", "mode", "law"),
        ("paint", "candidate_ratio", "shortlist"),
    ],
)
def test_a_name_of_today_in_format_1_is_refused_and_its_key_named(host: Host, op: str, name: str, older: str) -> None:
    job: dict[str, Any] = {"prompt": "a cat"} if op == "paint" else {"messages": [{"role": "user", "content": "hello"}]}
    refusal = host.call(op, settings={name: 1}, **job)["error"]
    known = list(plain(ImageSettings() if op == "paint" else TextSettings()))
    begin, end = refusal.split("the settings are ")
    assert begin == f'settings: unknown setting "{name}"; in format 1 it is called "{older}"; '
    assert sorted(end.split(", ")) == sorted(known)
    nested = host.call(op, settings={"acceleration": {}}, **job)["error"]
    assert nested.startswith('settings: unknown setting "acceleration"; the settings are ')


def test_the_longest_block_is_one_block(host: Host, model: Model) -> None:
    settings = TextSettings(answer_length=6, steps=3, block_length=2**63 - 1)
    expected = model.chat("hello", settings).result().ids.tolist()
    messages = [{"role": "user", "content": "hello"}]
    assert host.call("chat", messages=messages, settings=plain(settings))["ids"] == expected
    longest = {**plain(settings), "answer_length": 2**63 - 1}
    assert f"{2**63 - 1} tokens" in host.call("chat", messages=messages, settings=longest)["error"]


@pytest.mark.parametrize(
    ("prompt", "settings", "names"),
    [
        ("a", {"steps": 0}, "steps is 0"),
        ("a", {"guidance": -1e-5}, "guidance is -1e-05"),
        ("a", {"temperature": -1e300}, "temperature is -1e+300"),
        ("a", {"sampling_temperature": -0.125}, "sampling_temperature is -0.125"),
        ("a", {"law": "it's"}, "it's"),
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
        model.paint(prompt, None if settings is None else from_plain(ImageSettings, settings, "settings"))
    both_name(host.call("paint", prompt=prompt, settings=settings), fault, names)


def test_later_settings_are_refused_here(host: Host) -> None:
    """Not one is left out: the C++ host says so, and never decodes as if it were not there."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
    for cls, op, job in ((TextSettings, "chat", chat), (ImageSettings, "paint", {"prompt": "a cat"})):
        for name in set(FORMAT_1[cls]) - set(always_written(FORMAT_1[cls])):
            refusal = host.call(op, settings={name: 1}, **job)["error"]
            assert f'the C++ host does not decode with "{name}"' in refusal


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
    """The structs in the header against what Python writes: a setting added to one side alone shows here."""
    header = (Path(mmada_lite.__file__).parent / "cpp" / "mmada_lite.hpp").read_text()
    for settings in (TextSettings(), ImageSettings()):
        members = members_of(header, type(settings).__name__)
        assert members.pop("mode") == "default"
        assert members | {"law": "sensible"} == plain(settings)
