"""What a bundle says that its model was taught: turns, case, things, words, languages, the size of its pictures.

It reads `knows` of bundle.json and says what lies outside. Nothing is refused for it; what is not said is not known, and
whatever else stands there is the maker's own. It knows no tokenizer and no model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from mmada_lite.errors import Error, shown

_WORD = re.compile(r"[^\W\d_]+")
CASES = ("lower",)
MOST = 1_000_000  # turns, and pixels of a side


@dataclass(frozen=True, slots=True)
class Knowledge:
    """turns: questions of a conversation that the model minds, the present one counted; case: "lower" where it was taught no
    capitals; things: what it draws and names; words: every word that it was taught, in lower case, those of things too;
    languages: their codes (BCP 47), such as "en"; picture_size: pixels a side of the pictures that it was taught.
    """

    turns: int | None = None
    case: str | None = None
    things: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    picture_size: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Knowledge":
        """Of all keys those that are here. Raises Error for one that is not what it should be."""
        if not isinstance(content, Mapping):
            raise Error(f"knows is {shown(content)}; give an object")
        return cls(
            **{each.name: _value(each.name, each.type, content[each.name]) for each in fields(cls) if each.name in content}
        )

    def words_outside(self, text: str) -> list[str]:
        """The words of a text that the model was not taught, each once; numbers are no words. [] where it is not said which it
        was taught."""
        if not self.words:
            return []
        known = {word.casefold() for word in self.words}
        return list(dict.fromkeys(word for word in _WORD.findall(text) if word.casefold() not in known))


def in_lower_case(text: str) -> str:
    """A to Z as a to z, and every other character as it is: what every host does alike for a model of lower case."""
    return re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), text)


def _value(name: str, declared: Any, value: Any) -> Any:
    where = f"knows.{name} is {shown(value)}"
    if name == "case":
        if value not in CASES:
            raise Error(f"{where}; it can be {', '.join(CASES)}")
        return value
    if int in get_args(declared):
        if type(value) is not int or not 1 <= value <= MOST:
            raise Error(f"{where}; it can be 1 to {MOST}")
        return value
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise Error(f"{where}; give a list of words")
    return tuple(value)
