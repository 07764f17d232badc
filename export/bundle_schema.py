"""The JSON Schema of bundle.json, made from what the program itself checks with: `python -m mmada_lite.export.bundle_schema`
prints what stands in docs/bundle.schema.json.

What ties two values together, such as steps and answer_length, a schema cannot say; the program checks it all the same.
"""

import json
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any, get_args, get_origin

from mmada_lite import bundle
from mmada_lite.contracts import BOUNDS, WORDS
from mmada_lite.decoding.setting_fields import Setting, layer_of, settings_of
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.families import FAMILIES, SLOTS
from mmada_lite.knowledge import CASES, MOST, Knowledge
from mmada_lite.vocabulary import SpecialTokens

Schema = dict[str, Any]
_NAMES = {"type": "array", "items": {"type": "string"}}
_KINDS: dict[Any, Schema] = {
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number", "exclusiveMinimum": 0},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    tuple[str, ...]: _NAMES,
    dict[str, str]: {"type": "object", "additionalProperties": {"type": "string"}},
}


def bundle_schema() -> Schema:
    """JSON Schema, draft 2020-12, of bundle.json in the newest format."""
    special = {each.name: _KINDS[int] for each in fields(SpecialTokens)}
    counts = dict.fromkeys(("image_code_offset", "codebook_size", "size"), _KINDS[int])
    keys: dict[str, Schema] = {
        "format": {"const": bundle.FORMAT},
        "format_version": {"const": bundle.FORMAT_VERSION},
        "name": _KINDS[str],
        "family": {"enum": list(FAMILIES)},
        "needs": {"type": "array", "items": {"enum": list(bundle.NEEDS)}} if bundle.NEEDS else {"type": "array", "maxItems": 0},
        "knows": _knows(),
        "architecture": _record(bundle.Architecture),
        "vocabulary": _object({"special": _object(special), **counts}),
        "rows": _rows(),
        "image": {"anyOf": [{"type": "null"}, _record(bundle.ImageInfo)]},
        "quantization": _map(_record(bundle.WeightGroup)),
        "tensors": _map(_KINDS[dict[str, str]]),
        "target": _kind("target", str),
        "defaults": _object({"text": _settings(TextSettings), "image": _settings(ImageSettings)}),
        "graphs": _map(_record(bundle.GraphInfo)),
        "files": _map(_record(bundle.FileInfo)),
        "provenance": _record(bundle.Provenance),
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "bundle.json of mmada-lite"}
    return head | _object(keys)


def _knows() -> Schema:
    """What this program reads of it; whatever else stands there is the maker's own."""
    number = {"type": "integer", "minimum": 1, "maximum": MOST}
    kinds = {each.name: number if int in get_args(each.type) else _NAMES for each in fields(Knowledge)}
    return {"type": "object", "properties": kinds | {"case": {"enum": list(CASES)}}, "additionalProperties": True}


def setting_schema(setting: Setting) -> Schema:
    """What one setting takes, with its help, its default and where it comes from."""
    about = {"description": f"{setting.help} ({setting.source})", "default": setting.default}
    if setting.kind == "choice":
        return about | {"enum": list(setting.choices)}
    kind = {"whole": "integer", "number": "number", "probability": "number", "word": "string", "flag": "boolean"}[setting.kind]
    taken: Schema = {"type": [kind, "null"] if setting.optional else kind}
    if setting.kind in ("whole", "number", "probability"):
        numbers = {"minimum": setting.smallest or setting.least, "maximum": setting.most}
        taken |= {"anyOf": [{"const": 0}, numbers]} if setting.smallest else numbers
    elif setting.kind == "word":
        taken |= {"examples": list(setting.choices)}
    return about | taken


def _settings(cls: Any) -> Schema:
    layer = {each.name: setting_schema(each) for each in settings_of(layer_of(cls))}
    own = {each.name: setting_schema(each) for each in settings_of(cls)}
    return _object(own | {"acceleration": _object(layer, required=())}, required=())


def _rows() -> Schema:
    slots = sorted({f"{{{slot}}}" for names in SLOTS.values() for slot in names})
    element = {"anyOf": [{"enum": [each.name for each in fields(SpecialTokens)] + slots}, _object({"text": _KINDS[str]})]}
    rows = _object({name: {"type": "array", "items": element} for name in SLOTS}, required=("message", "chat"))
    return rows | {"dependentRequired": {"paint": ["unconditional"]}}


def _record(cls: Any) -> Schema:
    required = tuple(each.name for each in fields(cls) if each.default is MISSING)
    return _object({each.name: _kind(each.name, each.type) for each in fields(cls)}, required)


def _kind(name: str, declared: Any) -> Schema:
    if NoneType in get_args(declared) and get_origin(declared) is not tuple:
        (kind,) = (each for each in get_args(declared) if each is not NoneType)
        return {"anyOf": [{"type": "null"}, _kind(name, kind)]}
    if declared in (int, float) and name in BOUNDS:
        least, most = BOUNDS[name]
        return {"type": _KINDS[declared]["type"], "minimum": least, "maximum": most}
    return {"enum": list(WORDS[name])} if declared is str and name in WORDS else _KINDS[declared]


def _object(properties: dict[str, Schema], required: tuple[str, ...] | None = None) -> Schema:
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def as_text() -> str:
    return json.dumps(bundle_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(as_text(), end="")
