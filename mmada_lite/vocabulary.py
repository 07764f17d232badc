"""Which integer means what: special tokens, text ids and image codes, and the way between text and ids.

It knows the tags around a thought and where image codes begin, and holds the templates of the rows that a task begins with; it
knows nothing of models, canvases or decoding.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from mmada_lite.contracts import read_json
from mmada_lite.errors import Error, shown
from mmada_lite.families import FAMILIES, Rows
from mmada_lite.files import require_readable
from mmada_lite.knowledge import in_lower_case

# Spelling in a tokenizer file and the id that the published 8B model uses where its tokenizer file lacks the token.
_SPELLINGS: dict[str, tuple[str, int]] = {
    "bos": ("<|startoftext|>", 126080),
    "eos": ("<|endoftext|>", 126081),
    "soi": ("<|soi|>", 126084),
    "eoi": ("<|eoi|>", 126085),
    "t2i": ("<|t2i|>", 126088),
    "mmu": ("<|mmu|>", 126089),
    "ipad": ("[iPAD]", 126093),
    "r2i": ("<|r2i|>", 126094),
    "mask": ("<|mdm_mask|>", 126336),
    "start_header": ("<|start_header_id|>", 126346),
    "end_header": ("<|end_header_id|>", 126347),
    "eot": ("<|eot_id|>", 126348),
}
_NUMBERS = ("special", "image_code_offset", "codebook_size", "size")  # in the file's order
_HEADERS = ("start_header", "end_header", "eot")
ROLES = ("system", "user", "assistant")
OPEN, CLOSE = "<think>", "</think>"  # around a thought
_TRIAL = "A 1 é\n"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that are not text: sequence ends, picture brackets, task marks, the mask, chat headers."""

    bos: int
    eos: int
    soi: int
    eoi: int
    t2i: int
    mmu: int
    ipad: int
    r2i: int
    mask: int
    start_header: int
    end_header: int
    eot: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The id space of one model: image code c is token `image_code_offset + c`; `size` counts the embedding's rows.

    The offset is the length of the tokenizer (126349 for the published model), not `llm_vocab_size`. rows: the templates of the
    rows that a task begins with.
    """

    special: SpecialTokens
    image_code_offset: int
    codebook_size: int
    size: int
    rows: Rows = field(default=FAMILIES["mmada"], compare=False)

    def __post_init__(self) -> None:
        if self.image_code_offset < 1 or self.codebook_size < 1:
            raise Error("vocabulary: image_code_offset and codebook_size are at least 1")
        end = self.image_code_offset + self.codebook_size
        if end > self.size:
            raise Error(
                f"vocabulary: image codes end at {end} but the embedding has {self.size} rows; "
                "check image_code_offset (the tokenizer's length) and codebook_size"
            )
        for name, value in asdict(self.special).items():
            if not 0 <= value < self.size:
                raise Error(f"vocabulary: special token {name!r} is {shown(value)}, outside the embedding's {self.size} rows")

    def to_json(self) -> dict[str, Any]:
        """The ids and sizes. The rows stand beside them in bundle.json, and not in them."""
        return {name: asdict(self.special) if name == "special" else getattr(self, name) for name in _NUMBERS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], rows: Rows = FAMILIES["mmada"]) -> "Vocabulary":
        """Read the form that `to_json` writes. Raises Error where a key is absent, unknown or not an integer."""
        special = data.get("special")
        if not isinstance(special, Mapping):
            raise Error("vocabulary: the key 'special' is missing; write the bundle again with `mmada-lite export`")
        numbers = {key: value for key, value in data.items() if key != "special"}
        ids = SpecialTokens(**_plain_integers([each.name for each in fields(SpecialTokens)], special))
        return cls(special=ids, rows=rows, **_plain_integers(_NUMBERS[1:], numbers))

    @classmethod
    def from_tokenizer(
        cls, tokenizer: "Tokenizer", *, codebook_size: int, size: int, mask_id: int | None = None
    ) -> "Vocabulary":
        """Find the special tokens by their spelling; those that the tokenizer lacks take the published model's ids."""
        ids = {name: tokenizer.find(spelling, fixed) for name, (spelling, fixed) in _SPELLINGS.items()}
        if mask_id is not None:
            ids["mask"] = mask_id
        return cls(SpecialTokens(**ids), image_code_offset=len(tokenizer), codebook_size=codebook_size, size=size)

    def check_tokenizer(self, tokenizer: "Tokenizer") -> None:
        """Raise Error where a tokenizer gives a special token another id, or has another length than picture codes begin at."""
        for name, (spelling, _) in _SPELLINGS.items():
            wanted = getattr(self.special, name)
            if (own := tokenizer.find(spelling, wanted)) != wanted:
                raise Error(f"vocabulary: special token {name!r} is {wanted}, and {spelling} of tokenizer.json is {own}")
        if len(tokenizer) != self.image_code_offset:
            raise Error(
                f"vocabulary: image_code_offset is {self.image_code_offset}, and tokenizer.json has {len(tokenizer)} tokens"
            )


class Tokenizer:
    """A `tokenizers` file. The three chat-header tokens are added where the file lacks them, as the reference does. What
    training cuts, pads, drops and puts around a text is left undone. lower_case: A to Z of a text are read as a to z, for a
    model that was taught no capitals. Raises Error where ids do not count from 0 without a gap."""

    def __init__(self, inner: tokenizers.Tokenizer, *, lower_case: bool = False) -> None:
        self._inner, self._lower_case = inner, lower_case
        inner.no_truncation()
        inner.no_padding()
        inner.post_processor = tokenizers.processors.Sequence([])  # a template may double a text, or leave it out
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None
        missing = [_SPELLINGS[name][0] for name in _HEADERS if inner.token_to_id(_SPELLINGS[name][0]) is None]
        if missing:
            inner.add_special_tokens(missing)
        ids: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        holders = dict[int, str]()
        for spelling, token in ids.items():
            if (other := holders.setdefault(token, spelling)) != spelling or token >= len(ids):
                taken = f", the id of {shown(other)}" if other != spelling else ""
                raise Error(f"{shown(spelling)} has the id {token}{taken}, and ids count from 0 to {len(ids) - 1}")

    @classmethod
    def from_file(cls, path: Path, *, lower_case: bool = False) -> "Tokenizer":
        """Raises Error when the file is absent or is not a tokenizer.json."""
        try:
            require_readable(path)
        except FileNotFoundError:
            raise Error(f"no tokenizer at {path}; a checkpoint or bundle that chats needs its tokenizer.json") from None
        try:
            content = read_json(path)
            with _silent():  # where the library panics, it also prints
                tokenizer = _asked(lambda: cls(tokenizers.Tokenizer.from_file(str(path)), lower_case=lower_case))
                tokenizer.decode(tokenizer.encode(_TRIAL))
            tokenizer._check_added(content.get("added_tokens") or [])
            return tokenizer
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Error(f"{path} is not a tokenizer.json that can be used: {str(error)[:200]}") from error

    def _check_added(self, added: Iterable[Mapping[str, Any]]) -> None:
        """Raise Error where the library gives an added token another id than the file: other readers honour the file's."""
        for token in added:
            if (used := self._inner.token_to_id(token["content"])) != token["id"]:
                named = f"added_tokens has {shown(token['content'])} with the id {shown(token['id'])}"
                raise Error(f"{named}, and the tokenizers library gives it {used}; write the file again with ids without a gap")

    def __len__(self) -> int:
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def find(self, spelling: str, otherwise: int) -> int:
        token = self._inner.token_to_id(spelling)
        return otherwise if token is None else int(token)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text. With `special` false, `<|eot_id|>` typed by a user is text and not the end of a turn."""
        self._inner.encode_special_tokens = not special
        if self._lower_case and not special:
            text = in_lower_case(text)
        return list(_asked(lambda: self._inner.encode(text, add_special_tokens=False)).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens and ids beyond the tokenizer (image codes) are left out."""
        known = [int(i) for i in ids if 0 <= int(i) < len(self)]
        return str(_asked(lambda: self._inner.decode(known, skip_special_tokens=True)))

    def spellings(self) -> list[bytes | None]:
        """The bytes that each id writes; None for special tokens, which write nothing. Raises Error for a tokenizer whose
        tokens are not bytes in GPT-2's letters (the decoder ByteLevel)."""
        decoder = json.loads(self._inner.to_str()).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            raise Error(
                f"the tokenizer's decoder is {shown(decoder.get('type'))}; only tokens of bytes (ByteLevel) can be searched"
            )
        special = {token for token, added in self._inner.get_added_tokens_decoder().items() if added.special}
        letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
        spelled: list[bytes | None] = [None] * len(self)
        for word, token in self._inner.get_vocab(with_added_tokens=True).items():
            if token not in special:
                known = all(letter in letters for letter in word)
                spelled[token] = bytes(letters[letter] for letter in word) if known else word.encode()
        return spelled


def _byte_letters() -> list[str]:
    """The letter by which GPT-2's tokenizer writes each byte: itself where it is printable, else the next one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _asked(call: Callable[[], Result]) -> Result:
    """Something of the tokenizers library, which raises bare Exception, and panics beside it. Raises Error."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, (Error, MemoryError)) or not (isinstance(error, Exception) or "Panic" in type(error).__name__):
            raise
        raise Error(f"the tokenizers library fails: {str(error)[:200]}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing that is written to the standard error stream, by whatever language, is seen."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no such stream
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _plain_integers(names: Sequence[str], data: Mapping[str, Any]) -> dict[str, int]:
    for name in names:
        if not isinstance(data.get(name), int) or isinstance(data.get(name), bool):
            raise Error(f"vocabulary: the key {name!r} is missing or not an integer")
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise Error(f"vocabulary: unknown key {unknown[0]!r}; the keys are {', '.join(names)}")
    return {name: int(data[name]) for name in names}


def special_spellings() -> list[str]:
    """How the special tokens are spelled in a tokenizer's file."""
    return [spelling for spelling, _ in _SPELLINGS.values()]


def closing_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tag that ends a thought: its token, or its pieces as they are when it stands alone."""
    known = tokenizer.find(CLOSE, -1)
    return [known] if known >= 0 else tokenizer.encode(CLOSE)


def with_tags(thought: str) -> str:
    """A thought that somebody gives, as the model would write it. Raises Error when it is empty or holds a tag."""
    text = thought.strip()
    if not text:
        raise Error("the thought is empty; write it, or let the model think")
    for tag in (OPEN, CLOSE):
        if tag in text:
            raise Error(f"the thought holds {tag}; give its words alone, the tags are put around them")
    return f"{OPEN} {text} {CLOSE}"


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
