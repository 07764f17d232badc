"""What differs between model families, as data: the rows of ids that a task begins with. A bundle says its own in `rows`;
checkpoints and bundles of format 1, which do not, have those of MMaDA.

It reads and checks templates. It knows no ids and no tokenizer; `mmada_lite.decoding.rows` fills templates.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mmada_lite.errors import Error, did_you_mean

# Row -> what is filled in, each once. `masks` and `chat` stand at the end: what is written, and the row of that name.
SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "message": ("role", "content"),
        "chat": ("messages", "masks"),
        "ask": ("codes", "chat"),
        "think": ("prompt", "masks"),
        "paint": ("prompt", "codes"),
        "paint_thought": ("prompt", "thought", "codes"),
        "unconditional": ("codes",),
    }
)
_DRAWN = ("paint", "paint_thought", "unconditional")
_FILLED = re.compile(r"\{(\w+)\}")
_LAST = ("masks", "chat")


@dataclass(frozen=True, slots=True)
class Special:
    """A special id by its name in the vocabulary."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is encoded as one piece, once its {role} and {content} are filled in."""

    text: str


@dataclass(frozen=True, slots=True)
class Slot:
    """Where ids are filled in."""

    name: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text that was encoded once for all, since nothing is filled in."""

    ids: tuple[int, ...]


Element = Special | Text | Slot | Encoded


@dataclass(frozen=True, slots=True)
class Rows:
    """The templates of a model by the name of their row. As bundle.json has them they go to JSON and back; `encoded` ones do
    not."""

    templates: Mapping[str, tuple[Element, ...]]

    def __getitem__(self, name: str) -> tuple[Element, ...]:
        """A template. Raises Error where the model has none."""
        if name not in self.templates:
            raise Error(f"this model has no row {name!r}, so it cannot do this; it has {', '.join(self.templates)}")
        return self.templates[name]

    def encoded(self, encode: Callable[[str], Sequence[int]]) -> "Rows":
        """The same with every text encoded in which nothing is filled in."""
        rows = {
            name: tuple(
                Encoded(tuple(encode(each.text))) if isinstance(each, Text) and not _FILLED.search(each.text) else each
                for each in row
            )
            for name, row in self.templates.items()
        }
        return Rows(MappingProxyType(rows))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], specials: Sequence[str]) -> "Rows":
        """Read the form of bundle.json: lists of a special id's name, "{slot}", or {"text": ...}.

        specials: the names that the vocabulary has. Raises Error for anything else, and for a slot that is missing, comes
        twice or stands where it cannot.
        """
        for name in content:
            if name not in SLOTS:
                raise Error(f"unknown row {name!r}; {did_you_mean(name, SLOTS, 'the rows are ' + ', '.join(SLOTS))}")
        for name in ("message", "chat"):
            if name not in content:
                raise Error(f"the row {name!r} is missing; every model has it")
        if "paint" in content and "unconditional" not in content:
            raise Error("the row 'unconditional' is missing; a model that paints is guided against it")
        rows = {name: _template(name, elements, specials) for name, elements in content.items()}
        ends = {name: row[row.index(Slot("codes")) + 1 :] for name, row in rows.items() if name in _DRAWN}
        if len(set(ends.values())) > 1:
            raise Error(f"the rows {', '.join(ends)} end differently behind their codes; they must end alike")
        return cls(MappingProxyType(rows))

    def to_json(self) -> dict[str, list[str | dict[str, str]]]:
        """The form that `from_json` reads."""
        return {name: [_plain(element) for element in row] for name, row in self.templates.items()}


def _template(name: str, elements: Any, specials: Sequence[str]) -> tuple[Element, ...]:
    if not isinstance(elements, list):
        raise Error(f"the row {name!r} is {elements!r}; a list of elements is needed")
    row = tuple(_element(name, element, specials) for element in elements)
    slots = [element.name for element in row if isinstance(element, Slot)]
    inside = [slot for element in row if isinstance(element, Text) for slot in _FILLED.findall(element.text)]
    filled, empty, where = (inside, slots, "inside") if name == "message" else (slots, inside, "outside")
    if empty or sorted(filled) != sorted(SLOTS[name]):
        needed = ", ".join(f"{{{slot}}}" for slot in SLOTS[name])
        held = ", ".join([*slots, *inside]) or "none"
        raise Error(f"the row {name!r} must hold {needed}, each once, {where} its texts; it holds {held}")
    if any(last in slots and row[-1] != Slot(last) for last in _LAST):
        raise Error(f"the row {name!r} must end with {{{SLOTS[name][-1]}}}")
    return row


def _element(name: str, element: Any, specials: Sequence[str]) -> Element:
    if isinstance(element, dict) and list(element) == ["text"] and isinstance(element["text"], str):
        return Text(element["text"])
    if isinstance(element, str):
        if slot := _FILLED.fullmatch(element):
            return Slot(slot[1])
        if element in specials:
            return Special(element)
        hint = did_you_mean(element, specials, f"the special ids are {', '.join(specials)}")
        raise Error(f"the row {name!r} has an unknown special id {element!r}; {hint}")
    raise Error(f"the row {name!r} has an element {element!r}; use a special id's name, a slot or a text")


def _plain(element: Element) -> str | dict[str, str]:
    assert not isinstance(element, Encoded), "what a tokenizer made of a text says no more what the text was"
    if isinstance(element, Text):
        return {"text": element.text}
    return element.name if isinstance(element, Special) else f"{{{element.name}}}"


_MMADA: Mapping[str, list[str | dict[str, str]]] = MappingProxyType(
    {
        "message": ["start_header", {"text": "{role}"}, "end_header", {"text": "\n{content}"}, "eot"],
        "chat": ["bos", "{messages}", "start_header", {"text": "assistant"}, "end_header", {"text": "\n"}, "{masks}"],
        "ask": ["mmu", "soi", "{codes}", "eoi", "{chat}"],
        "think": ["r2i", "bos", "{prompt}", "{masks}"],
        "paint": ["t2i", "bos", "{prompt}", "eos", "soi", "{codes}", "eoi"],
        "paint_thought": ["r2i", "bos", "{prompt}", "{thought}", "eos", "soi", "{codes}", "eoi"],
        "unconditional": ["t2i", "bos", "eos", "soi", "{codes}", "eoi"],
    }
)
FAMILIES: Mapping[str, Rows] = MappingProxyType(
    {"mmada": Rows.from_json(_MMADA, ("bos", "eos", "soi", "eoi", "t2i", "mmu", "r2i", "start_header", "end_header", "eot"))}
)
