"""What a caller hands to a public function, read by the types that the function declares: numpy's numbers become Python's, and
whatever cannot be read is an Error that names the parameter.

It knows no function and no model. Pictures, ids and codes are read where they are used.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from mmada_lite.errors import Error, shown

Call = TypeVar("Call", bound=Callable[..., Any])
_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType({"seed": (0, 2**64 - 1), "threads": (1, 2**31 - 1)})
_LARGEST = sys.float_info.max
# How an object that a caller cannot write down is come by.
_MENDING: Mapping[str, str] = MappingProxyType(
    {
        "TextSettings": "TextSettings, or model.text_defaults.replace(steps=...) to change some of the model's own",
        "ImageSettings": "ImageSettings, or model.image_defaults.replace(steps=...) to change some of the model's own",
        "OpenBundle": "mmada_lite.load(path), which makes a model",
    }
)


def checked(call: Call) -> Call:
    """A decorator of a public function: its arguments are what it declares when it runs, and else raise Error."""

    @wraps(call)
    def read_and_call(*given: Any, **named: Any) -> Any:
        signature = _signature(call)
        bound = bind(signature, call.__name__, given, named)
        for name, value in bound.arguments.items():
            bound.arguments[name] = read(name, value, signature.parameters[name].annotation)
        return call(*bound.args, **bound.kwargs)

    return read_and_call  # type: ignore[return-value]


_signature = cache(inspect.signature)  # at the first call: to read it takes longer than the rest of an import


def bind(signature: inspect.Signature, called: str, given: Sequence[Any], named: Mapping[str, Any]) -> inspect.BoundArguments:
    """The arguments by their names. Raises Error, and no TypeError, where there are too many, too few, or others."""
    try:
        return signature.bind(*given, **named)
    except TypeError as fault:
        known = [name for name in signature.parameters if name != "self"]
        raise Error(f"{called}: {fault}; it takes {', '.join(known) or 'nothing'}") from None


def plain(value: Any) -> Any:
    """A number, flag or word of numpy's as Python's; anything else as it is."""
    return value.item() if hasattr(type(value), "dtype") and getattr(value, "shape", None) == () else value


def text_of(value: Any, name: str) -> str:
    """A text that can be written down. Raises Error for lone surrogates, which stand for no character."""
    if not isinstance(value, str):
        raise Error(f"{name} is {shown(value)}; use a text")
    try:
        value.encode()
    except UnicodeEncodeError as fault:
        half = f"{shown(value[fault.start])} at {fault.start}, half of a character"
        raise Error(f"{name} holds {half}; decode the text anew, as UTF-8 with errors='replace'") from None
    return value


def read(name: str, value: Any, declared: Any) -> Any:
    """An argument as its parameter declares it; what is declared as neither Python's own nor a class of ours is left alone."""
    value, kinds = plain(value), set(get_args(declared) if isinstance(declared, UnionType) else (declared,))
    if value is None and NoneType in kinds:
        return None
    kinds -= {NoneType}
    kind: Any = next(iter(kinds)) if len(kinds) == 1 else None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        least, most = _RANGES.get(name, (0, 2**63 - 1))
        fits = number and isinstance(value, int) and least <= value <= most
        wanted = f"a whole number from {least} to {most}"
    elif kind is float:
        fits, wanted = number and not abs(value) > _LARGEST, "a number"
    elif get_origin(kind) is Literal:
        fits, wanted = isinstance(value, str) and value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    elif kinds == {str, Path}:
        fits, wanted = isinstance(value, (str, Path)) and "\0" not in str(value), "a path, a str or a pathlib.Path"
    elif kinds <= {bool, str}:
        fits = isinstance(value, tuple(kinds))
        wanted = " or ".join(word for each, word in ((bool, "True or False"), (str, "a text")) if each in kinds)
    elif getattr(kind, "__name__", "") in _MENDING:
        fits, wanted = isinstance(value, kind), _MENDING[kind.__name__]
    else:
        return value
    if not fits:
        raise Error(f"{name} is {shown(value)}; use {wanted}")
    return text_of(value, name) if isinstance(value, str) and Path not in kinds else value


def conversation(messages: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages of texts, and the pictures that stand in them. A text is a message of the user's, a mapping is one message, and
    a list of parts is content: {"type": "text", "text": ...} and {"type": "image", "image": picture}. Raises Error for
    anything else; roles and emptiness are the template's to judge."""
    if isinstance(messages, (str, Mapping)):
        messages = [messages if isinstance(messages, Mapping) else {"role": "user", "content": messages}]
    if not isinstance(messages, Sequence):
        raise Error(f'the message is {shown(messages)}; give a text, or a list of {{"role": "user", "content": ...}}')
    read: list[dict[str, Any]] = []
    pictures: list[Any] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise Error(f'message {number} is {shown(message)}; give {{"role": "user", "content": ...}}')
        content, where = message.get("content"), f"the content of message {number}"
        if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
            content, seen = _joined(content, where)
            pictures += seen
        read.append({"role": message.get("role"), "content": text_of(content, where)})
    return read, pictures


def _joined(parts: Sequence[Any], where: str) -> tuple[str, list[Any]]:
    """The texts of a content's parts, a line each, and its pictures."""
    texts, pictures = list[str](), []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind == "text" and kind in part:
            texts.append(text_of(part["text"], where))
        elif isinstance(kind, str) and kind == "image" and kind in part:
            pictures.append(part["image"])
        else:
            forms = '{"type": "text", "text": ...} and {"type": "image", "image": picture}'
            raise Error(f"{where} holds {shown(part)}; its parts are {forms}")
    return "\n".join(texts), pictures
