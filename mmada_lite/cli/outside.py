"""What a request holds that the model was not taught, said in a line before it is answered or drawn. It refuses nothing.

What a model was taught is `mmada_lite.knowledge`; nothing here is said of a model whose bundle does not say it.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmada_lite.bundle import Bundle

_SHOWN = 3  # words that are named


def of_texts(bundle: "Bundle", *texts: str | bool | None) -> Iterator[str]:
    """The line about words. What is no text is passed over."""
    known = bundle.knowledge
    outside = list(dict.fromkeys(word for text in texts if isinstance(text, str) for word in known.words_outside(text)))
    if outside:
        named = _named(outside)
        none = "is none of them" if len(outside) == 1 else "are none of them"
        yield (
            f"mmada-lite: this model knows {len(known.things)} things in {len(known.words)} words, and {named} {none}: "
            "the result is a guess (info --json lists them)"
        )


def of_picture(bundle: "Bundle", size: tuple[int, int]) -> Iterator[str]:
    """The line about a picture of another size than the model's, of so many pixels across and down."""
    side = bundle.knowledge.picture_size
    if side is not None and size != (side, side):
        yield (
            f"mmada-lite: this model knows {side} x {side} drawings of {len(bundle.knowledge.things)} things, and this picture "
            f"is {size[0]} x {size[1]}: it is made of that size, and a photo gets the name of one of these things"
        )


def _named(words: Iterable[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    shown, left = quoted[:_SHOWN], len(quoted) - _SHOWN
    if left > 0:
        return f"{', '.join(shown)} and {left} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
