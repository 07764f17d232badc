"""Laws of the settings: two layers that change as one, old names refused with the new ones, and format 1 of a bundle, whose
bytes stay as they were."""

import json
import math
import shutil
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from mmada_lite import Error, ImageAcceleration, ImageSettings, TextAcceleration, TextSettings, load
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.format_1 import RENAMED
from mmada_lite.decoding.setting_fields import settings_of
from mmada_lite.decoding.settings import FORMAT_1, from_plain, plain
from mmada_lite.export.bundle import defaults_of, open_checkpoint
from mmada_lite.export.checkpoint import SIDECAR

LAYERS = ((TextSettings, TextAcceleration), (ImageSettings, ImageAcceleration))
OLD_TEXT = {  # format 1, key by key as it was written when these were the settings' names
    "answer_length": 9,
    "steps": 9,
    "block_length": 3,
    "temperature": 0.0,
    "guidance": 0.5,
    "order": "low_confidence",
    "cache": "dual",
    "threshold": 0.5,
    "law": "sensible",
    "select": "margin",
    "early_stop": 1.0,
    "reach": 2,
    "refresh": 4,
    "drift": 0.25,
    "suffix": 0,
    "settle": 3,
    "thought_first": True,
}
OLD_IMAGE = {
    "steps": 8,
    "guidance": 2.0,
    "schedule": "pow2",
    "temperature": 1.5,
    "sampling_temperature": 0.5,
    "law": "reference",
    "refresh": 3,
    "shortlist": 1.5,
    "guidance_from": 0.1,
    "guidance_to": 0.9,
    "unconditional_every": 2,
}


def test_either_layer_changes_in_one_call_and_the_rest_stays() -> None:
    base = TextSettings(answer_length=9, steps=9, block_length=3).replace(threshold=0.5)
    changed = base.replace(steps=8, cache="dual", lookahead=2)
    assert changed == TextSettings(9, 8, 3, acceleration=TextAcceleration("dual", 0.5, lookahead=2))
    assert base.replace() == base
    assert changed.replace(acceleration=TextAcceleration(), cache="prefix").acceleration == TextAcceleration("prefix")
    with pytest.raises(FrozenInstanceError):
        changed.steps = 7  # type: ignore[misc]
    with pytest.raises(Error, match="at most 9 steps"):
        base.replace(steps=10, cache="dual")


def test_a_flat_view_names_every_setting_of_both_layers() -> None:
    for cls, layer in LAYERS:
        flat = cls().flat()
        assert list(flat) == [each.name for each in (*settings_of(cls), *settings_of(layer))]
        assert cls().replace(**flat) == cls()
        assert "acceleration" not in flat


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one_wherever_it_stands(old: str) -> None:
    line = f"'{old}' is called '{RENAMED[old]}' now"
    for cls in (TextSettings, TextAcceleration, ImageSettings, ImageAcceleration):
        with pytest.raises(Error, match=line):
            cls(**{old: 1})
    for settings in (TextSettings(), ImageSettings()):
        with pytest.raises(Error, match=line):
            settings.replace(**{old: 1})


def test_a_name_of_the_other_layer_or_of_none_says_what_to_write() -> None:
    with pytest.raises(Error, match=r"a setting of TextAcceleration; use settings.replace\(cache=...\)"):
        TextSettings(cache="dual")  # type: ignore[call-arg]
    with pytest.raises(Error, match="did you mean 'candidate_ratio'"):
        ImageSettings().replace(candidate_ration=2.0)
    with pytest.raises(Error, match=r"acceleration is 'dual'; use mmada_lite.TextAcceleration\(...\)"):
        TextSettings(acceleration="dual")  # type: ignore[arg-type]


def test_every_setting_refuses_what_is_out_of_its_range() -> None:
    wrong: dict[str, list[Any]] = {
        "whole": [1.5, True, "1", -1],
        "number": [-0.5, math.nan, math.inf, True, "1"],
        "probability": [0, 1.5, math.nan, "1"],
        "choice": ["none of them", 1],
        "word": ["none of them", 1],
        "flag": [1, "yes"],
    }
    for cls, layer in LAYERS:
        for each in (*settings_of(cls), *settings_of(layer)):
            for value in [*wrong[each.kind], *([] if each.optional else [None])]:
                with pytest.raises(Error, match=r"; use "):
                    cls().replace(**{each.name: value})


def test_format_1_is_read_and_written_to_the_byte() -> None:
    for cls, old in ((TextSettings, OLD_TEXT), (ImageSettings, OLD_IMAGE)):
        assert json.dumps(plain(from_plain(cls, old, "here"))) == json.dumps(old)
        assert from_plain(cls, {}, "here") == cls()
    assert json.dumps(plain(TextSettings())) == (
        '{"answer_length": 128, "steps": 64, "block_length": 32, "temperature": 0.0, "guidance": 0.0, '
        '"order": "low_confidence", "cache": "none", "threshold": null, "law": "sensible"}'
    )
    assert json.dumps(plain(ImageSettings())) == (
        '{"steps": 15, "guidance": 3.5, "schedule": "cosine", "temperature": 1.0, "sampling_temperature": 1.0, '
        '"law": "sensible"}'
    )
    drafting = from_plain(TextSettings, {"draft": 3, "entropy_bound": 0.5}, "here")
    assert drafting == TextSettings().replace(speculative_steps=3, entropy_bound=0.5)
    assert {"draft": 3, "entropy_bound": 0.5}.items() <= plain(drafting).items()


def test_format_1_has_a_key_for_every_setting() -> None:
    for cls, layer in LAYERS:
        paths = {each.name for each in settings_of(cls)} | {f"acceleration.{each.name}" for each in settings_of(layer)}
        assert set(FORMAT_1[cls].values()) == paths
        assert {each.name for each in fields(cls)} - {"acceleration"} == {each.name for each in settings_of(cls)}


def test_a_bundle_of_format_1_opens_and_its_faults_name_the_key(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = folder / "bundle.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["defaults"] = {"text": OLD_TEXT, "image": OLD_IMAGE}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    model = load(folder, device="cpu")
    assert model.text_defaults.acceleration.kv_commit_every == 3
    assert (model.image_defaults.mode, model.image_defaults.acceleration.candidate_ratio) == ("reference", 1.5)
    faults = {
        ("reech", 2): "unknown setting 'reech'; did you mean 'reach'",
        ("lookahead", 2): "unknown setting 'lookahead'; it is 'reach' in format 1",
        ("law", "default"): "law is 'default'; use one of sensible, reference",
    }
    for (key, value), line in faults.items():
        content["defaults"]["text"] = {key: value}
        manifest.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(Error) as fault:
            Bundle.open(folder)
        assert str(fault.value).startswith(f"{manifest}: defaults.text: {line}")


def test_an_export_writes_the_keys_that_it_wrote(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The sidecar's format-1 keys come through as they are, in the order of before."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    said = {"name": "x", "defaults": {"text": {"block_length": 8, "cache": "dual", "settle": 2}, "image": {"shortlist": 2.0}}}
    (folder / SIDECAR).write_text(json.dumps(said), encoding="utf-8")
    written = defaults_of(open_checkpoint(folder))
    assert list(written["text"]) == ["answer_length", "steps", "block_length", "cache", "settle"]
    assert list(written["image"]) == ["steps", "guidance", "temperature", "schedule", "shortlist"]
    assert (written["text"]["settle"], written["image"]["shortlist"]) == (2, 2.0)
