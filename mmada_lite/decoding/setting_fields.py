"""How a setting is declared, once: a dataclass field with its help, range and source beside its type and default, and what
reads that: the checker of values, and the two layers that change together. Which settings there are is none of its business.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from dataclasses import replace as replace_fields
from functools import cache, wraps
from types import NoneType
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

from mmada_lite.calls import bind, checked, plain
from mmada_lite.decoding.format_1 import RENAMED
from mmada_lite.errors import Error, did_you_mean, shown

Kind = Literal["whole", "number", "probability", "choice", "word", "flag"]
Class = TypeVar("Class")
_LAYER = "acceleration"  # the field that holds the second layer
_KINDS: Mapping[type, Kind] = {bool: "flag", int: "whole", float: "number", str: "word"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. optional: None does without; unit: what its value is called in --help; least, most: the numbers it
    takes; smallest: the least of them above 0, where `least` does not say it; choices: the words it takes, or how they look;
    check: raises Error for a word that is none."""

    name: str
    kind: Kind
    optional: bool
    default: Any
    help: str
    source: str
    unit: str
    least: float
    most: float
    smallest: float
    choices: tuple[str, ...]
    check: Callable[[str], object] | None

    @property
    def range(self) -> str:
        """The values it takes, for --help and documents."""
        none = ", or none" if self.optional else ""
        if self.kind in ("choice", "word"):
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        if self.kind == "flag":
            return "yes or no"
        return f"{'0, or ' if self.smallest else ''}{self.smallest or self.least:g} to {_whole(self.most)}{none}"

    @property
    def default_in_words(self) -> str:
        """The default, for --help and documents."""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        return "none" if self.default is None else f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def accept(self, value: object) -> Any:
        """The value, a number of numpy's as Python's. Raises Error for one out of range."""
        value = plain(value)
        if value is None and self.optional:
            return None
        if not self._takes(value):
            if self.kind == "probability":
                raise Error(f"{self.name} {shown(value)} is not a probability; use {self._wanted()}")
            raise Error(f"{self.name} is {shown(value)}; use {self._wanted()}")
        if self.check:
            self.check(str(value))
        return value

    def _takes(self, value: Any) -> bool:
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind in ("choice", "word"):
            return isinstance(value, str) and (self.check is not None or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "whole" else (int, float)):
            return False
        return value == self.least or max(self.least, self.smallest) <= value <= self.most

    def _wanted(self) -> str:
        if self.kind == "flag":
            return "true or false"
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        nothing = "0, or " if self.smallest else ""
        kind = "whole number" if self.kind == "whole" else "number"
        return f"{nothing}a {kind} of at least {self.smallest or self.least:g} and at most {_whole(self.most)}"


def _whole(number: float) -> str:
    """1000000, and not 1e+06."""
    return f"{number:g}" if number < 1000 else f"{number:.0f}"


def spelled(name: str) -> str:
    """The option of a setting."""
    return f"--{name.replace('_', '-')}"


def renamed_option(option: str) -> str | None:
    """What an option that has the old name of a setting is called now; None for any other."""
    name = option.removeprefix("--").replace("-", "_")
    return spelled(RENAMED[name]) if option.startswith("--") and name in RENAMED else None


def setting(
    default: Any,
    help: str,
    *,
    source: str = "ours",
    unit: str = "",
    least: float = 0,
    most: float = 1_000_000,
    smallest: float = 0,
    probability: bool = False,
    choices: tuple[str, ...] = (),
    check: Callable[[str], object] | None = None,
) -> Any:
    """A field that is a setting."""
    if probability:
        least, most = 1e-6, 1
    numbers = {"least": least, "most": most, "smallest": smallest}
    about = {"help": help, "source": source, "unit": unit, "choices": choices, "check": check, **numbers}
    return field(default=default, metadata={"setting": about, "probability": probability})


def settings_of(cls: Any) -> tuple[Setting, ...]:
    """The settings that a class declares, in order."""
    return _settings_of(cls)


@cache
def _settings_of(cls: Any) -> tuple[Setting, ...]:
    return tuple(_setting_of(each) for each in fields(cls) if each.name != _LAYER)


def _setting_of(declared: Any) -> Setting:
    types = [part for part in (get_args(declared.type) or (declared.type,)) if part is not NoneType]
    optional, about = NoneType in get_args(declared.type), dict(declared.metadata["setting"])
    if get_origin(declared.type) is Literal:
        return Setting(declared.name, "choice", False, declared.default, **about | {"choices": tuple(types)})
    kind: Kind = "probability" if declared.metadata["probability"] else _KINDS[types[0]]
    return Setting(declared.name, kind, optional, declared.default, **about)


def check_fields(settings: object) -> None:
    """Raises Error for the first setting whose value is out of its range; numbers of numpy's become Python's."""
    for each in settings_of(type(settings)):
        object.__setattr__(settings, each.name, each.accept(getattr(settings, each.name)))
    if layer := layer_of(type(settings)):
        _check_layer(getattr(settings, _LAYER), layer)


def _check_layer(value: object, layer: type[Any]) -> None:
    if not isinstance(value, layer):
        raise Error(f"{_LAYER} is {shown(value)}; use mmada_lite.{layer.__name__}(...)")


def known_names_only(cls: type[Class]) -> type[Class]:
    """A decorator of a dataclass: a keyword that it does not have is an Error that says the right one, not a TypeError."""
    construct = cls.__init__

    @wraps(construct)
    def refuse_or_construct(self: Any, *args: Any, **names: Any) -> None:
        check_names(names, [each.name for each in fields(cls)], layer_of(cls))  # type: ignore[arg-type]
        if args:  # names that are known do not fail
            bind(inspect.signature(construct), cls.__name__, (self, *args), names)
        construct(self, *args, **names)

    cls.__init__ = refuse_or_construct  # type: ignore[method-assign]
    return cls


def layer_of(cls: Any) -> type[Any] | None:
    """The class of the second layer, None where there is none."""
    layers: list[Any] = [each.type for each in fields(cls) if each.name == _LAYER]
    return layers[0] if layers else None


def check_names(names: Iterable[str], known: Collection[str], layer: type[Any] | None = None) -> None:
    """Raises Error for the first name that is not known, with the right or the nearest one. layer: the class of a second layer,
    whose names are not meant."""
    for name in names:
        if name in known:
            continue
        if name in RENAMED:
            raise Error(f"{name!r} is called {RENAMED[name]!r} now")
        if layer is not None and name in (each.name for each in settings_of(layer)):
            wrapped = f"acceleration={layer.__name__}({name}=...)"
            raise Error(f"{name!r} is a setting of {layer.__name__}; use settings.replace({name}=...), or {wrapped}")
        otherwise = f"the settings are {', '.join(known)}"
        raise Error(f"unknown setting {name!r}; {did_you_mean(name, known, otherwise)}")


@dataclass(frozen=True, slots=True)
class TwoLayers:
    """Settings with more of them in a field `acceleration`: both layers are changed, and looked at, as one."""

    @checked
    def replace(self, **changes: Any) -> Self:
        """The same settings with some changed, by the names of either layer. Raises Error for a name that is in neither, and
        where a change contradicts what is set."""
        cls: Any = type(self)
        nested_names = [each.name for each in settings_of(layer_of(cls))]
        known = [*(each.name for each in fields(cls)), *nested_names]
        check_names(changes, known)
        nested = {name: value for name, value in changes.items() if name in nested_names}
        changed = {name: value for name, value in changes.items() if name not in nested_names}
        if nested:
            layer = changed.get(_LAYER, getattr(self, _LAYER))
            _check_layer(layer, layer_of(cls))  # type: ignore[arg-type]
            changed[_LAYER] = replace_fields(layer, **nested)
        return replace_fields(self, **changed)

    @checked
    def flat(self) -> dict[str, Any]:
        """Every setting of both layers by its name."""
        layers = (self, getattr(self, _LAYER))
        return {each.name: getattr(layer, each.name) for layer in layers for each in settings_of(type(layer))}
