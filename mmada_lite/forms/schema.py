"""A JSON schema made ready for outlines-core, which leaves out in silence what it does not build: here that is refused, so that
what is written always satisfies the schema.

References are put in place, formats become patterns, and a pattern is put in parentheses. It knows nothing of automata.
"""

import json
import re
from collections.abc import Container, Mapping
from typing import Any

from mmada_lite.errors import Error, did_you_mean, shown
from mmada_lite.forms.letters import without_anchors

# The keywords that are built, by what they are about; another one is refused.
_SAID = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly"}
_KEPT = {"$defs", "definitions"}
_OWN: dict[str, set[str]] = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set(),
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_ALONE = ("$ref", "anyOf", "enum", "const")  # each says all there is to say, but for a type beside enum and const
_FORMATS = {
    "date": r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "time": r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_FORMATS["date-time"] = f"{_FORMATS['date']}T{_FORMATS['time']}"
_SPELLED_ANEW = re.compile(r'["\\\x00-\x1f\x7f-\x9f]')  # what a JSON string spells otherwise, or the library does not write
_DEEPEST = 32
_MOST = 1 << 20  # of a count: outlines-core takes one as 0 that 64 bits do not hold (findings/outlines-core-large-counts.sh)
_NONE = object()


def ready(text: str) -> tuple[str, list[str]]:
    """A schema for outlines-core, and the patterns in it, whose texts must not have what a JSON string spells otherwise.

    Raises Error for what is no schema, for a keyword that is not built, and for one that contradicts another.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Error(f"the schema is no JSON: {str(fault)[:120]}") from None
    patterns: list[str] = []
    return json.dumps(_ready(schema, schema, "the schema", patterns, ())), patterns


def _ready(schema: Any, whole: Any, at: str, patterns: list[str], within: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise Error(f'{at} is {shown(schema)}; a schema is an object, such as {{"type": "integer"}}')
    if len(within) > _DEEPEST:
        raise Error(f"{at} lies too deep; at most {_DEEPEST} schemas lie in one another")
    said = {key: value for key, value in schema.items() if key not in _SAID | _KEPT}
    known = {*_ALONE, "type", *(key for own in _OWN.values() for key in own)}
    if (unknown := next((key for key in said if key not in known), None)) is not None:
        raise Error(f"{at} has {shown(unknown)}, which is not built; {did_you_mean(unknown, known, 'leave it out')}")
    if alone := next((key for key in _ALONE if key in said), None):
        beside = [key for key in said if key != alone and not (key == "type" and alone in ("enum", "const"))]
        if beside:
            raise Error(f"{at} has {shown(beside[0])} beside {alone!r}, which is not built; leave one of them out")
        return _alone(alone, said, whole, at, patterns, within)
    kinds = said.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(_named(kind, _OWN) for kind in kinds):
        raise Error(f"{at} has the type {shown(said['type'])}; use one of {', '.join(_OWN)}")
    if not kinds:  # what only some kinds have says which is meant
        kinds = [kind for kind, own in _OWN.items() if own & said.keys()]
    if len(kinds) != 1:
        if rest := next((key for key in said if key != "type"), None):
            raise Error(f"{at} has {rest!r} and more than one type; give each type a schema of its own in 'anyOf'")
        if not kinds:
            raise Error(f"{at} says nothing of what it wants; give it a type, of {', '.join(_OWN)}")
        kinds = [_plain(kind, at) for kind in kinds]
        return {"anyOf": [{"type": kind} for kind in kinds]}
    if foreign := next((key for key in said if key != "type" and key not in _OWN[kinds[0]]), None):
        raise Error(f"{at} is {kinds[0]} and has {foreign!r}; leave it out")
    build = {"string": _string, "array": _array, "object": _object}.get(kinds[0])
    return {"type": kinds[0], **(build(said, whole, at, patterns, (*within, "")) if build else {})}


def _alone(
    key: str, said: Mapping[str, Any], whole: Any, at: str, patterns: list[str], within: tuple[str, ...]
) -> dict[str, Any]:
    value = said[key]
    if key == "$ref":
        if value in within:
            raise Error(f"{at} refers to {shown(value)}, in which it lies itself; a text of it may never end")
        return _ready(_referred(value, whole, at), whole, f"{at} > {value}", patterns, (*within, value))
    if key == "const":
        value = [value]
    if not isinstance(value, list) or not value:
        raise Error(f"{at} has {key!r} without anything in it; give a list")
    if key == "anyOf":
        return {"anyOf": [_ready(each, whole, f"{at} > {n}", patterns, (*within, "")) for n, each in enumerate(value)]}
    kinds = said.get("type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    fitting = [each for each in value if kinds is None or any(_is(each, kind) for kind in listed)]
    if not fitting:
        raise Error(f"{at} has no value that is of its type {shown(kinds)}")
    if odd := next((each for each in fitting if _SPELLED_ANEW.search(_text_in(each))), None):
        raise Error(f"{at} has the value {shown(odd)}, with a quote, a backslash or a control in it; leave it out")
    return {"enum": fitting}


def _plain(kind: str, at: str) -> str:
    """A type that says all by its name."""
    if kind in ("array", "object"):
        raise Error(f"{at} has the type {kind!r} among others; give it a schema of its own in 'anyOf'")
    return kind


def _string(said: Mapping[str, Any], whole: Any, at: str, patterns: list[str], within: tuple[str, ...]) -> dict[str, Any]:
    if "format" in said and not _named(said["format"], _FORMATS):
        raise Error(f"{at} has the format {shown(said['format'])}; use one of {', '.join(_FORMATS)}, or a pattern")
    own = _FORMATS.get(said.get("format", ""), said.get("pattern"))
    if own is None:
        return _counts(said, "minLength", "maxLength", at)
    if len(said.keys() - {"type"}) > 1:
        raise Error(f"{at} has more than a pattern or a format, which is not built; say all of it in the pattern")
    if not isinstance(own, str):
        raise Error(f"{at} has the pattern {shown(own)}; a pattern is a text")
    if "pattern" in said:
        patterns.append(own)
    return {"pattern": f"^({without_anchors(own)})$"}  # pasted between quotes without them it would be torn apart at a |


def _array(said: Mapping[str, Any], whole: Any, at: str, patterns: list[str], within: tuple[str, ...]) -> dict[str, Any]:
    counts = _counts(said, "minItems", "maxItems", at)
    if "items" not in said:
        raise Error(f"{at} is an array without 'items'; say what they are")
    return {"items": _ready(said["items"], whole, f"{at} > items", patterns, within), **counts}


def _object(said: Mapping[str, Any], whole: Any, at: str, patterns: list[str], within: tuple[str, ...]) -> dict[str, Any]:
    properties, required = said.get("properties"), said.get("required", [])
    others = said.get("additionalProperties", True)
    if properties is None:
        if required or not isinstance(others, Mapping):
            raise Error(f"{at} is an object without 'properties'; say what they are")
        return {"additionalProperties": _ready(others, whole, f"{at} > others", patterns, within)}
    if not isinstance(properties, Mapping) or not properties or not isinstance(required, list):
        raise Error(
            f"{at} has properties or required ones that are none; 'properties' is an object, 'required' a list of names"
        )
    if (missing := next((name for name in required if not _named(name, properties)), _NONE)) is not _NONE:
        raise Error(f"{at} requires {shown(missing)}, which is none of its properties")
    if odd := next((name for name in properties if _SPELLED_ANEW.search(name)), None):
        raise Error(f"{at} has the property {shown(odd)}, with a quote, a backslash or a control in it; rename it")
    if others not in (True, False):
        raise Error(f"{at} has 'properties' and a schema of others, which is not built; leave 'additionalProperties' out")
    own = {name: _ready(each, whole, f"{at} > {name}", patterns, within) for name, each in properties.items()}
    return {"properties": own, "required": required}


def _counts(said: Mapping[str, Any], least: str, most: str, at: str) -> dict[str, int]:
    counts = {key: said[key] for key in (least, most) if key in said}
    for key, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST:
            raise Error(f"{at} has {key} {shown(count)}; use a whole number from 0 to {_MOST:,}")
    if least in counts and most in counts and counts[least] > counts[most]:
        raise Error(f"{at} has {least} {counts[least]} above {most} {counts[most]}")
    return counts


def _referred(name: Any, whole: Any, at: str) -> Any:
    if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
        raise Error(f"{at} refers to {shown(name)}; only what stands in the same schema, such as #/$defs/name, can be found")
    found = whole
    for part in name.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            raise Error(f"{at} refers to {shown(name)}, and there is no {shown(key)}")
        found = found[key]
    return found


def _is(value: Any, kind: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds: dict[str, bool] = {
        "string": isinstance(value, str),
        "integer": number and float(value).is_integer(),
        "number": number,
        "boolean": isinstance(value, bool),
        "null": value is None,
        "array": isinstance(value, list),
        "object": isinstance(value, Mapping),
    }
    return isinstance(kind, str) and kinds.get(kind, False)


def _named(name: Any, known: Container[str]) -> bool:
    return isinstance(name, str) and name in known


def _text_in(value: Any) -> str:
    """All texts of a value, names of properties too, one behind the other."""
    if isinstance(value, Mapping):
        return "".join(key + _text_in(each) for key, each in value.items())
    if isinstance(value, list):
        return "".join(map(_text_in, value))
    return value if isinstance(value, str) else ""
