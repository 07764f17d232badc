"""How a thought is written, `<think> thought </think> answer`, and how a text is split into the two.

Works on text, so that it is the same whether a tokenizer has the tags as single tokens or spells them out in pieces; only
`closing_ids` asks one. It knows nothing of what is thought, or of who reads it.
"""

from mmada_lite.errors import Error
from mmada_lite.vocabulary import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


def closing_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tag that ends a thought: its token, or its pieces as they are when it stands alone."""
    known = tokenizer.find(CLOSE, -1)
    return [known] if known >= 0 else tokenizer.encode(CLOSE)


def with_tags(thought: str) -> str:
    """A thought that somebody gives, as the model would write it. Raises Error when it is empty or holds a tag."""
    words = thought.strip()
    if not words:
        raise Error("the thought is empty; write it, or let the model think")
    for tag in (OPEN, CLOSE):
        if tag in words:
            raise Error(f"the thought holds {tag}; give its words alone, the tags are put around them")
    return f"{OPEN} {words} {CLOSE}"


def split_thought(text: str) -> tuple[str | None, str]:
    """(thought, answer), without the space around them. A text that does not begin with a thought, that never ends it, or in
    which a tag comes twice, has none and is all answer."""
    begun, opened, rest = text.partition(OPEN)
    thought, closed, answer = rest.partition(CLOSE)
    if begun.strip() or not opened or not closed or any(tag in part for tag in (OPEN, CLOSE) for part in (thought, answer)):
        return None, text.strip()
    return thought.strip(), answer.strip()


def fault_of(text: str) -> str | None:
    """Why a picture cannot be drawn from this text as from a thought; None when it can."""
    thought, _ = split_thought(text)
    if thought:
        return None
    if thought is not None or not text.strip():
        return "the thought is empty"
    if OPEN not in text:
        return f"the thought has no {OPEN}"
    if CLOSE not in text:
        return f"the thought is not ended by {CLOSE}"
    return f"the thought does not read {OPEN} thought {CLOSE}"


def unfinished(text: str) -> str:
    """What stands between the tags of a text that is still being written: all of it while they are not there yet."""
    _, opened, rest = text.partition(OPEN)
    return (rest if opened else text).partition(CLOSE)[0].strip()
