"""What a caller wants of the form of an answer: one of a few choices, a pattern, or a JSON schema.

It checks that this is one of the three. It knows no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmada_lite.calls import text_of
from mmada_lite.decoding.settings import MOST_CHOICES
from mmada_lite.errors import Error, shown

Schema = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of the three is there, the others are not. schema: as JSON."""

    choices: tuple[str, ...] | None = None
    pattern: str | None = None
    schema: str | None = None

    @classmethod
    def of(cls, choices: Sequence[str] | None, pattern: str | None, schema: Schema | None) -> "Wanted | None":
        """What is wanted, None where nothing is. Raises Error for more than one of them, and for choices that are none, empty,
        given twice, or no texts."""
        given = [name for name, value in (("choices", choices), ("pattern", pattern), ("schema", schema)) if value is not None]
        if len(given) > 1:
            raise Error(f"{given[0]} and {given[1]} both say what the answer must be; give one of them")
        if pattern is not None:
            return cls(pattern=text_of(pattern, "pattern"))
        if schema is not None:
            return cls(schema=_as_json(schema))
        return None if choices is None else cls(choices=_checked(choices))


def _as_json(schema: Any) -> str:
    if isinstance(schema, str):
        return text_of(schema, "schema")
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as fault:
        raise Error(f"the schema cannot be written as JSON: {str(fault)[:80]}") from None


def _checked(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise Error(f"the choices are {shown(choices)}; give a list of texts")
    if not 1 <= len(choices) <= MOST_CHOICES:
        raise Error(f"there are {len(choices)} choices; give 1 to {MOST_CHOICES}")
    for number, choice in enumerate(choices):
        if not text_of(choice, f"choice {number + 1}").strip():
            raise Error(f"choice {number + 1} is empty; write something, or leave it out")
        if choice in choices[:number]:
            raise Error(f"the choice {shown(choice)} stands twice; leave one out")
    return tuple(choices)
