"""The JSON Schema of bundle.json says what the program checks: bundles that open fit it, what it refuses does not open."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mmada_lite import Error, ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.setting_fields import settings_of
from mmada_lite.export.bundle_schema import bundle_schema, setting_schema
from mmada_lite.model import embedded_bundle

LAYERS = ((TextSettings, TextAcceleration), (ImageSettings, ImageAcceleration))
FITS = Draft202012Validator(bundle_schema())


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return content


def test_bundles_that_open_fit(tiny_bundle: Path) -> None:
    Draft202012Validator.check_schema(bundle_schema())
    for folder in (embedded_bundle(), tiny_bundle):
        assert [error.message for error in FITS.iter_errors(manifest_of(folder))] == []


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "family": lambda c: c.update(family="lumina"),
    "need": lambda c: c.update(needs=["two guidances"]),
    "key": lambda c: c.update(graph={}),
    "missing": lambda c: c.pop("rows"),
    "knows": lambda c: c.update(knows=[]),
    "row": lambda c: c["rows"].update(pint=[]),
    "no unconditional": lambda c: c["rows"].pop("unconditional"),
    "element": lambda c: c["rows"]["chat"].insert(0, "boss"),
    "old setting": lambda c: c["defaults"]["text"].update(law="sensible"),
    "flat setting": lambda c: c["defaults"]["text"].update(cache="dual"),
    "layer": lambda c: c["defaults"]["image"].update(acceleration=3),
    "architecture": lambda c: c["architecture"].update(n_heads="4"),
    "image": lambda c: c["image"].pop("downsample"),
    "special": lambda c: c["vocabulary"]["special"].pop("mask"),
    "file": lambda c: c["files"].update(x={"size": 1}),
    "group": lambda c: c["quantization"]["backbone"].update(bits="4"),
    "target": lambda c: c.update(target="gpu"),
    "number": lambda c: c["architecture"].update(n_layers=10**12),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_does_not_open(tiny_bundle: Path, tmp_path: Path, fault: str) -> None:
    content = manifest_of(tiny_bundle)
    FAULTS[fault](content)
    assert not FITS.is_valid(content)
    (tmp_path / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(Error, match=r"bundle\.json"):
        Bundle.open(tmp_path)


def test_a_setting_takes_what_its_schema_says() -> None:
    """Its default and its limits; every wrong kind and what lies just outside is refused by both."""
    values: list[Any] = [None, True, 0, 1, -1, 2, 0.0, 0.5, 1.0, 1.5, -0.5, "none", "cosine", "dual", "random"]
    for classes in LAYERS:
        for cls in classes:
            for each in settings_of(cls):
                schema = setting_schema(each)
                assert (each.help in schema["description"], each.source in schema["description"]) == (True, True)
                assert Draft202012Validator(schema).is_valid(schema["default"]) or each.default is None
                for value in [*values, *each.choices]:
                    if each.kind != "word" and not (each.kind == "whole" and isinstance(value, float)):
                        assert accepts(each, value) == Draft202012Validator(schema).is_valid(value), (each.name, value)


def accepts(setting: Any, value: Any) -> bool:
    try:
        setting.accept(copy.copy(value))
    except Error:
        return False
    return True
