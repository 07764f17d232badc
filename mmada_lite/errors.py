"""The one exception that a user can cause, and the hint at the nearest word that its message may end with.

It knows nothing of how an error is shown: the command line prints one line.
"""

import re
from collections.abc import Callable, Iterable

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Error(ValueError):
    """A fault in what the caller gave: its message says what is wrong, where, and how to mend it, in one line."""

    def __init__(self, said: object = "") -> None:
        line = printable(str(said), keep="")
        super().__init__(line if len(line) <= 1000 else f"{line[:480]} ... {line[-480:]}")


def did_you_mean(
    word: str, known: Iterable[str], otherwise: str = "", *, spell: Callable[[str], str] = repr, likeness: float = 0.6
) -> str:
    """`did you mean 'near'?` with the known word that is nearest to a wrong one; `otherwise` where none is near.

    `spell` writes the known word; `likeness`, 0 to 1, is what makes it near (difflib's ratio).
    """
    import difflib  # a command without a fault starts sooner without

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f"did you mean {spell(near[0])}?" if near else otherwise


def shown(value: object) -> str:
    """A value that is wrong, short enough for a line, whatever it is."""
    try:
        shape = getattr(value, "shape", ())  # an array is not said: one of many axes takes minutes
        text = f"an array {shape} of {value.dtype}" if shape else repr(value).replace("\n", " ")  # type: ignore[attr-defined]
    except Exception:  # a whole number of too many digits, an object that cannot say itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str, keep: str = "\n\t") -> str:
    """A text that a terminal shows and does not obey: controls, but those to keep, and overrides of direction are escaped."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)
