"""What numbers and words of a file may be, and JSON that is read within bounds. It knows no file by its meaning."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from mmada_lite.errors import Error, printable, shown
from mmada_lite.files import require_readable

TARGETS = ("cpu", "cuda", "tensorrt", "openvino")  # the kinds of device that graphs are written for
IN_FLOAT32 = ("cpu", "openvino")  # of these, those whose graphs are in float32, however weights are stored
ATTENTION_FORMS = ("joined", "attention", "mha", "plain")  # the operators by which a graph for CUDA may attend
BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}  # of a weight in each family of formats
# A number by its name, wherever a file says it: the least and the most that a model may have.
_RANGES: tuple[tuple[float, float, str], ...] = (
    *((1, 1 << 6, "ch_mult num_res_blocks bits"), (1, 1 << 10, "n_layers n_heads n_kv_heads downsample")),
    *((1, 24, "z_channels"), (1, 1 << 12, "group_norm_groups"), (2, 1 << 12, "head_dim"), (1, 1 << 13, "ch")),
    *((1, 1 << 14, "resolution"), (1, 1 << 16, "d_model"), (1, 1 << 20, "mlp_hidden_size block")),
    (1, 1 << 24, "max_sequence_length vocab_size llm_vocab_size codebook_size num_vq_tokens"),
    *((1, 1e12, "rope_theta"), (1e-12, 1, "rms_norm_eps group_norm_eps"), (0, 1 << 53, "bytes size")),
)
BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {name: (least, most) for least, most, names in _RANGES for name in names.split()}
)
WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType({"target": TARGETS, "format": tuple(BITS), "scale": ("fp16", "fp32")})
_DEEPEST = 32  # levels of what a file may hold
_LONGEST = 48 << 20  # bytes of JSON; a tokenizer of 126,349 tokens has some 10 million


def read_json(path: Path) -> Any:
    """What a file of JSON says. Raises OSError, and ValueError as `json_of` does, or as `require_readable`."""
    require_readable(path)
    if path.stat().st_size > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST:,} bytes")
    return json_of(path.read_text(encoding="utf-8"))


def json_of(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for one that is none, too deep, and for NaN and a key twice."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("its brackets nest too deeply") from None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return content


def check_value(name: str, value: object, where: str) -> None:
    """Raise Error when a number or a word of this name is none that there can be."""
    if name in BOUNDS and isinstance(value, (int, float)):
        least, most = BOUNDS[name]
        if not least <= value <= most:  # true of NaN too
            raise Error(f"{where} is {shown(value)}; it can be {least:g} to {most:.15g}")
    if name in WORDS and value is not None and value not in WORDS[name]:
        raise Error(f"{where} is {shown(value)}; it can be {', '.join(WORDS[name])}")


def check_words(content: Any, where: str, keep: str = "") -> None:
    """Raise Error where a text, a key or a value, holds what a terminal would obey, but for `keep`, or nests too deeply."""
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        for text in (item for item in level if isinstance(item, str) and not item.isprintable()):
            if text != printable(text, keep):
                raise Error(f"{where}: {shown(text)} holds a control character; fetch the file again")
        level = [part for item in level if not isinstance(item, str) for part in _parts(item)]
    if level:
        raise Error(f"{where}: it nests deeper than {_DEEPEST} levels; fetch the file again")


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.keys()
        yield from item.values()
    elif isinstance(item, (list, tuple)):
        yield from item
