"""What a caller hands to a public function, read by the types that the function declares: numpy's numbers become Python's, and
whatever cannot be read is an Error that names the parameter.

It knows no function and no model. Pictures, ids and codes are read where they are used.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from mmada_lite.errors import Error, did_you_mean, shown

Call = TypeVar("Call", bound=Callable[..., Any])
_RANGES: Mapping[str, tuple[int, int]] = MappingProxyType({"seed": (0, 2**64 - 1), "threads": (1, 2**31 - 1)})
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
    signature = inspect.signature(call)

    @wraps(call)
    def read_and_call(*given: Any, **named: Any) -> Any:
        bound = bind(signature, call.__name__, given, named)
        for name, value in bound.arguments.items():
            bound.arguments[name] = read(name, value, signature.parameters[name].annotation)
        return call(*bound.args, **bound.kwargs)

    return read_and_call  # type: ignore[return-value]


def bind(signature: inspect.Signature, called: str, given: Sequence[Any], named: Mapping[str, Any]) -> inspect.BoundArguments:
    """The arguments by their names. Raises Error, and no TypeError, where there are too many, too few, or others."""
    try:
        return signature.bind(*given, **named)
    except TypeError as fault:
        known = [name for name in signature.parameters if name != "self"]
        unknown = next((name for name in named if name not in known), "")
        hint = did_you_mean(unknown, known) or f"it takes {', '.join(known) or 'nothing'}"
        raise Error(f"{called}: {fault}; {hint}") from None


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
    """An argument as a parameter declares it; one that is declared as something else than Python's own is left alone."""
    words = get_args(declared) if get_origin(declared) is Literal else ()
    kinds = {str} if words else set(get_args(declared) or (declared,))
    value, (least, most) = plain(value), _RANGES.get(name, (0, 2**63 - 1))
    if value is None and NoneType in kinds:
        return None
    kinds -= {NoneType}
    if kinds == {bool}:
        fits, wanted = isinstance(value, bool), "True or False"
    elif kinds == {bool, str}:
        fits, wanted = isinstance(value, (bool, str)), "True, False or a text"
    elif kinds == {int}:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits, wanted = whole and least <= value <= most, f"a whole number from {least} to {most}"
    elif kinds == {float}:
        fits, wanted = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300, "a number"
    elif kinds == {str, Path}:
        fits, wanted = isinstance(value, (str, os.PathLike)) and "\0" not in str(value), "a path, a str or a pathlib.Path"
    elif kinds == {str}:
        fits, wanted = (
            isinstance(value, str) and (not words or value in words),
            f"one of {', '.join(words)}" if words else "a text",
        )
    elif (kind := getattr(declared if len(kinds) != 1 else next(iter(kinds)), "__name__", "")) in _MENDING:
        fits, wanted = kind in {each.__name__ for each in type(value).__mro__}, _MENDING[kind]
    else:
        return value
    if not fits:
        raise Error(f"{name} is {shown(value)}{', out of range' if kinds == {int} else ''}; use {wanted}")
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
        if not isinstance(part, Mapping) or kind not in ("text", "image") or kind not in part:
            forms = '{"type": "text", "text": ...} and {"type": "image", "image": picture}'
            raise Error(f"{where} holds {shown(part)}; its parts are {forms}")
        if kind == "text":
            texts.append(text_of(part["text"], where))
        else:
            pictures.append(part["image"])
    return "\n".join(texts), pictures
