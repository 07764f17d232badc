"""Laws of the settings: two layers that change as one, old names refused with the new ones, and how a bundle says them."""

import json
import math
import shutil
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from mmada_lite import Error, ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
from mmada_lite.bundle import Bundle
from mmada_lite.decoding import format_1
from mmada_lite.decoding.format_1 import RENAMED
from mmada_lite.decoding.setting_fields import settings_of
from mmada_lite.decoding.settings import from_plain, plain, with_changes
from mmada_lite.export.bundle import defaults_of, export_checkpoint, open_checkpoint
from mmada_lite.export.checkpoint import SIDECAR

LAYERS = ((TextSettings, TextAcceleration), (ImageSettings, ImageAcceleration))


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
    with pytest.raises(Error, match=r"use settings.replace\(cache=...\), or acceleration=TextAcceleration\(cache=...\)$"):
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


def test_what_is_written_is_read_and_names_what_is_in_use() -> None:
    for chosen in (TextSettings(), TextSettings().replace(cache="dual", threshold=0.5), ImageSettings().replace(refresh=2)):
        said = json.loads(json.dumps(plain(chosen)))
        assert from_plain(type(chosen), said) == chosen
        assert set(said) == {each.name for each in settings_of(type(chosen))} | {"acceleration"}
        assert said["acceleration"] == {
            name: value for name, value in chosen.flat().items() if name not in said and value != type(chosen)().flat()[name]
        }
        assert from_plain(type(chosen), {}) == type(chosen)()


def test_what_a_bundle_cannot_say_is_refused_with_the_right_name() -> None:
    for content, line in {
        '{"law": "sensible"}': "'law' is called 'mode' now",
        '{"acceleration": {"reach": 2}}': "'reach' is called 'lookahead' now",
        '{"cache": "dual"}': "'cache' stands in 'acceleration' and not beside it",
        '{"acceleration": {"steps": 3}}': "unknown setting 'steps'; the settings are cache, ",
        '{"step": 3}': "unknown setting 'step'; did you mean 'steps'",
        '{"acceleration": 3}': "acceleration is 3 where an object is needed",
    }.items():
        with pytest.raises(Error) as fault:
            from_plain(TextSettings, json.loads(content))
        assert str(fault.value).startswith(line)


def test_format_1_has_a_key_for_every_setting() -> None:
    for (cls, layer), keys in zip(LAYERS, (format_1.TEXT, format_1.IMAGE), strict=True):
        paths = {each.name for each in settings_of(cls)} | {f"acceleration.{each.name}" for each in settings_of(layer)}
        assert set(keys.values()) == paths
        assert {each.name for each in fields(cls)} - {"acceleration"} == {each.name for each in settings_of(cls)}


def test_an_export_writes_what_the_sidecar_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    said: dict[str, Any] = {"text": {"block_length": 8, "acceleration": {"cache": "dual"}}, "image": {"steps": 5}}
    (folder / SIDECAR).write_text(json.dumps({"name": "x", "knows": {"sums": "to 20"}, "defaults": said}), encoding="utf-8")
    bundle = Bundle.open(export_checkpoint(folder, tmp_path / "bundle"))
    assert (bundle.text_defaults.block_length, bundle.text_defaults.acceleration.cache) == (8, "dual")
    assert (bundle.image_defaults.steps, bundle.knows) == (5, {"sums": "to 20"})
    (folder / SIDECAR).write_text(json.dumps({"defaults": {"text": {"settle": 2}}}), encoding="utf-8")
    with pytest.raises(Error, match=r"defaults.text: 'settle' is called 'kv_commit_every' now"):
        defaults_of(open_checkpoint(folder))


def test_changes_of_defaults_take_along_what_follows_from_them() -> None:
    base = TextSettings(16, 8, 4).replace(cache="dual", refresh=2, threshold=0.5)
    bounded = with_changes(base, {"entropy_bound": 1.0}).acceleration
    assert (bounded.threshold, bounded.entropy_bound, bounded.refresh) == (None, 1.0, 2)
    back = with_changes(base.replace(threshold=None, entropy_bound=1.0), {"threshold": 0.5}).acceleration
    assert (back.threshold, back.entropy_bound) == (0.5, None)
    assert with_changes(base, {"guidance": 1.0}) == base.replace(guidance=1.0)
    plain_cache = with_changes(base.replace(refresh_drift=0.1), {"cache": "none"}).acceleration
    assert (plain_cache.cache, plain_cache.refresh, plain_cache.refresh_drift) == ("none", None, None)
    with pytest.raises(Error, match="both say how many tokens"):
        with_changes(base, {"threshold": 0.5, "entropy_bound": 1.0})
    dense = TextSettings(16, 8, 4)
    for given, steps in (
        ({}, 8),
        ({"answer_length": 32}, 16),
        ({"answer_length": 3}, 2),
        ({"answer_length": 1}, 1),
        ({"block_length": 1}, 16),
        ({"answer_length": 32, "steps": 9}, 9),
    ):
        assert with_changes(dense, given).steps == steps
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(Error, match="answer_length is"):
            with_changes(dense, {"answer_length": wrong})
        with pytest.raises(Error, match="block_length is"):
            with_changes(dense, {"block_length": wrong})


def test_what_contradicts_is_refused_at_its_edge() -> None:
    for fine in ({"temperature": 0.5}, {"order": "random"}, {"cache": "dual", "kv_commit_every": 2}):
        assert TextSettings().replace(**fine).flat().items() >= fine.items()
    with pytest.raises(Error, match="guides none of them"):
        ImageSettings().replace(guidance_from=0.5, guidance_to=0.5)
    with pytest.raises(Error, match="use it with cache dual or prompt"):
        TextSettings().replace(kv_commit_every=2, cache="prefix")
    for name in ("pow0", "pow<exponent>", "pow-1", "powinf"):
        with pytest.raises(Error, match="no schedule is called"):
            ImageSettings(schedule=name)


def test_a_cache_of_the_reference_needs_a_second_step_in_a_block() -> None:
    """Its first call of a block is never written from again."""
    one_a_block = TextSettings(8, 2, 4, mode="reference")
    with pytest.raises(Error, match="the reference cannot use a cache with one step per block; use more steps"):
        one_a_block.replace(cache="prefix")
    assert one_a_block.replace(cache="prefix", threshold=0.5).acceleration.threshold == 0.5
    assert one_a_block.replace(steps=4, cache="prefix").steps == 4


def test_what_a_setting_takes_is_said_in_its_own_terms() -> None:
    for settings, changes, line in (
        (
            TextSettings(),
            {"threshold": 1.5},
            "threshold 1.5 is not a probability; use a number of at least 1e-06 and at most 1",
        ),
        (TextSettings(), {"steps": 0}, "steps is 0; use a whole number of at least 1 and at most 1000000"),
        (TextSettings(), {"guidance": -1.0}, "guidance is -1.0; use a number of at least 0 and at most 1000"),
        (TextSettings(), {"temperature": 1e-5}, "temperature is 1e-05; use 0, or a number of at least 0.0001 and at most 1000"),
        (TextSettings(), {"thought_first": 1}, "thought_first is 1; use true or false"),
        (TextSettings(), {"order": "last"}, "order is 'last'; use one of low_confidence, random"),
    ):
        with pytest.raises(Error) as fault:
            settings.replace(**changes)
        assert str(fault.value) == line
    for name, value in (
        ("temperature", 0),
        ("temperature", 1e-4),
        ("temperature", 1000),
        ("threshold", 1e-6),
        ("threshold", 1),
    ):
        assert TextSettings().replace(**{name: value}).flat()[name] == value


def test_format_1_is_read_as_format_2_says_it() -> None:
    old = {"answer_length": 9, "law": "sensible", "reach": 2, "cache": "dual"}
    new = {"answer_length": 9, "mode": "default", "acceleration": {"lookahead": 2, "cache": "dual"}}
    assert format_1.read(format_1.TEXT, old, "here") == new
    assert format_1.read(format_1.IMAGE, {"law": "reference"}, "here") == {"mode": "reference", "acceleration": {}}
    for key, line in (
        ("mode", "here: unknown setting 'mode'; it is 'law' in format 1"),
        ("step", "here: unknown setting 'step'; did you mean 'steps'?"),
        ("xyz", f"here: unknown setting 'xyz'; the settings are {', '.join(format_1.IMAGE)}"),
    ):
        with pytest.raises(Error) as fault:
            format_1.read(format_1.IMAGE, {key: 1}, "here")
        assert str(fault.value) == line
    with pytest.raises(Error, match="here: law is 'default'; use one of sensible, reference"):
        format_1.read(format_1.IMAGE, {"law": "default"}, "here")
