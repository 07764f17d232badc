"""The rows of ids that a task begins with: the templates of a model's family, filled with words, codes and messages.

It fills templates. It knows nothing of how what is masked is written.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmada_lite.errors import Error, shown
from mmada_lite.families import Encoded, Slot, Special, Text
from mmada_lite.vocabulary import ROLES, Tokenizer, Vocabulary

Encode = Callable[[str], Sequence[int]]
_CONTENT = "{content}"


def picture_prompt(codes: ArrayLike, vocabulary: Vocabulary) -> list[int]:
    """How a picture stands before a conversation about it. Codes [N] are 0..codebook_size-1."""
    tokens = (vocabulary.image_code_offset + np.asarray(codes, dtype=np.int64).reshape(-1)).tolist()
    return _around("ask", "chat", vocabulary, {"codes": tokens})[0]


def paint_prompt(text: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """All that stands before the codes of a picture that is drawn from a sentence."""
    return _around("paint", "codes", vocabulary, {"prompt": text})[0]


def unconditional_prompt(vocabulary: Vocabulary) -> list[int]:
    """All that stands before the codes in the row that guidance compares with."""
    return _around("unconditional", "codes", vocabulary, {})[0]


def thinking_prompt(text: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """What a thought about a picture follows."""
    return _around("think", "masks", vocabulary, {"prompt": text})[0]


def thought_prompt(text: Sequence[int], thought: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """All that stands before the codes of a picture that is drawn from a thought. The thought's ids have its tags."""
    return _around("paint_thought", "codes", vocabulary, {"prompt": text, "thought": thought})[0]


def picture_end(vocabulary: Vocabulary) -> list[int]:
    """What stands behind the codes of a picture that is drawn."""
    return _around("unconditional", "codes", vocabulary, {})[1]


def picture_part(codes: ArrayLike, unknown: NDArray[np.bool_], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """N codes and their end, int64 [B, N + E]: what stands behind a prompt to draw. unknown [B, N]: where a mask stands in
    place of the code."""
    given = np.asarray(codes, dtype=np.int64).reshape(len(unknown), -1)
    body = np.where(unknown, vocabulary.special.mask, vocabulary.image_code_offset + given)
    end = np.tile(np.asarray(picture_end(vocabulary), dtype=np.int64), (len(unknown), 1))
    return np.concatenate([body, end], axis=1)


def chat_ids(tokenizer: Tokenizer, vocabulary: Vocabulary, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a conversation up to where the assistant's answer begins. Special spellings inside a message stay text.

    Raises Error for an empty conversation, an unknown role or an empty message.
    """
    if not messages:
        raise Error("the conversation is empty; give at least one user message")
    ids: list[int] = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise Error(f"message {number} has the role {shown(role)}; use one of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise Error(f"message {number} ({role}) is empty; write something")
        ids += _around("message", "", vocabulary, {}, _worded(tokenizer, {"role": role, "content": content.strip()}))[0]
    return _around("chat", "masks", vocabulary, {"messages": ids}, tokenizer.encode)[0]


def text_prompt(tokenizer: Tokenizer, vocabulary: Vocabulary) -> list[int]:
    """What a text that answers nothing follows: the row of a conversation in which nothing was said."""
    return _around("chat", "masks", vocabulary, {"messages": []}, tokenizer.encode)[0]


def turn_end(tokenizer: Tokenizer, vocabulary: Vocabulary) -> list[int]:
    """What stands behind the content of what the assistant says."""
    ids, said = list[int](), _worded(tokenizer, {"role": "assistant"})
    for element in vocabulary.rows["message"]:
        if isinstance(element, Special):
            ids.append(getattr(vocabulary.special, element.name))
        elif isinstance(element, Encoded):
            ids += element.ids
        elif isinstance(element, Text):
            before, inside, behind = element.text.partition(_CONTENT)
            ids = [*said(behind)] if inside else [*ids, *said(before)]
    return ids


def _around(
    row: str, open_slot: str, vocabulary: Vocabulary, filled: Mapping[str, Sequence[int]], encode: Encode | None = None
) -> tuple[list[int], list[int]]:
    """The ids before and behind a slot. Where a prompt begins with bos and bos stands right before it, it stands once."""
    ids: list[int] = []
    before: list[int] | None = None
    for element in vocabulary.rows[row]:
        if isinstance(element, Special):
            ids.append(getattr(vocabulary.special, element.name))
        elif isinstance(element, Encoded):
            ids += element.ids
        elif not isinstance(element, Slot):
            if encode is None:
                raise Error(f"the row {row!r} holds a text, and this bundle has no tokenizer.json that reads it")
            ids += encode(element.text)
        elif element.name == open_slot:
            before, ids = ids, []
        else:
            given = list(filled[element.name])
            twice = element.name == "prompt" and ids[-1:] == given[:1] == [vocabulary.special.bos]
            ids += given[1:] if twice else given
    return (ids, []) if before is None else (before, ids)


def _worded(tokenizer: Tokenizer, words: Mapping[str, str]) -> Encode:
    """Encodes a text once its {role} and {content} are filled in; what is filled in is taken as it is."""
    return lambda text: tokenizer.encode(re.sub(r"\{(\w+)\}", lambda slot: words[slot[1]], text))
