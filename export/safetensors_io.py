"""Weights on disk: reads one safetensors file or a set of shards tensor by tensor, and writes them atomically.

Only the bytes of the tensor (or of the rows) asked for are read, so that a 16 GB checkpoint costs the memory of its largest
tensor. bfloat16 is widened here without torch. This file knows nothing of what the tensors mean: the names and shapes to
expect come from `checkpoint`.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from mmada_lite import contracts
from mmada_lite.errors import Error
from mmada_lite.export.formats import narrow_bfloat16
from mmada_lite.files import require_readable

_NUMPY_OF = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_CODE_OF = {np.dtype(spelling): code for code, spelling in _NUMPY_OF.items() if code != "BF16"}
_FLOAT_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_SINGLE_FILES = ("model.safetensors", "pytorch_model.safetensors")
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
_MISMATCH = "config.json and the weights do not belong together, fetch both again"
_CONVERT = (
    "python -c \"import torch, safetensors.torch as s; w = torch.load('{bin}', map_location='cpu', weights_only=True); "
    "s.save_file({{k: v.contiguous() for k, v in w.items()}}, 'model.safetensors')\""
)


class Tensors(Protocol):
    """What most readers need of a checkpoint: shapes, and rows of a tensor."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, rows: slice | None = None) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies: from byte `begin` of the file up to `end`, not included."""

    path: Path
    begin: int
    end: int
    code: str
    shape: tuple[int, ...]


class TensorSource:
    """The tensors of one checkpoint folder, read one at a time. Open it with `TensorSource.open(folder)`."""

    def __init__(self, folder: Path, entries: Mapping[str, _Entry]) -> None:
        self.folder = folder
        self._entries = dict(entries)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the headers of a folder's weights. Raises Error when a file is absent, truncated or not safetensors."""
        folder = Path(folder)
        if not folder.is_dir():
            raise Error(f"{folder}: no such folder; give the one that holds config.json and model.safetensors")
        for name in _SINGLE_FILES:
            if (folder / name).exists():
                return cls(folder, _read_header(folder / name))
            if (folder / f"{name}.index.json").exists():
                return cls(folder, _read_index(folder / f"{name}.index.json"))
        raise Error(_no_weights(folder))

    @property
    def names(self) -> list[str]:
        return sorted(self._entries)

    @property
    def files(self) -> list[Path]:
        """The weight files, each once, in order of name."""
        return sorted({entry.path for entry in self._entries.values()})

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """How the tensor is stored: F32, F16, BF16, I64, ..."""
        return self._entry(name).code

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """One tensor, or contiguous rows of it. bfloat16 comes back as float32, every other type as it is stored."""
        entry = self._entry(name)
        shape, begin = entry.shape, entry.begin
        stored = np.dtype(_NUMPY_OF[entry.code])
        if rows is not None:
            first, last, step = rows.indices(shape[0])
            assert step == 1, "only contiguous rows can be read"
            begin += first * math.prod(shape[1:]) * stored.itemsize
            shape = (max(last - first, 0), *shape[1:])
        raw = _read_at(entry.path, begin, math.prod(shape), stored).reshape(shape)
        return _widen_bfloat16(raw) if entry.code == "BF16" else raw

    def verify(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise an Error that names missing, unexpected and misshapen tensors, if there is any."""
        faults = []
        if missing := [name for name in expected if name not in self._entries]:
            faults.append(f"missing {_few(missing)}")
        if extra := [name for name in self._entries if name not in expected]:
            faults.append(f"unexpected {_few(extra)}")
        if wrong := [
            f"{name} is {list(self.shape(name))} and should be {list(shape)}"
            for name, shape in expected.items()
            if name in self._entries and self.shape(name) != tuple(shape)
        ]:
            faults.append(f"misshapen: {_few(wrong)}")
        if faults:
            raise Error(f"{self.folder}: {'; '.join(faults)}; {_MISMATCH}")
        for name in expected:
            if name.endswith((".weight", ".bias")) and "F" not in (code := self.dtype(name)):
                whole = f"{name} is {code}, whole numbers without a scale"
                raise Error(f"{self.folder}: {whole}; give the weights as F32, F16 or BF16")

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise Error(f"{self.folder}: no tensor named {name}; {_MISMATCH}")
        return self._entries[name]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from disk; Error when the file is absent, is no JSON or holds something else than an object."""
    try:
        require_readable(path)
    except FileNotFoundError:
        raise Error(f"{path}: no such file; a checkpoint folder needs it") from None
    try:
        content = contracts.read_json(path)
    except (OSError, ValueError) as fault:
        raise Error(f"{path}: cannot be read as JSON ({fault}); fetch the file again") from None
    if not isinstance(content, dict):
        raise Error(f"{path}: holds a JSON {type(content).__name__} where an object is needed; fetch the file again")
    return content


def save_tensors(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
    config: Mapping[str, Any],
    dtype: str = "float32",
    max_shard_size: int | None = None,
) -> None:
    """Write config.json and the weights: one model.safetensors, or shards of `max_shard_size` bytes at most and an index.

    Floating tensors are stored as `dtype` (float32, float16 or bfloat16), integers as they are. An iterator of pairs is
    consumed lazily: no more than one shard is held. Everything is first written under temporary names and then renamed, so
    that a failure leaves the old files.
    """
    if dtype not in _FLOAT_CODES:
        raise Error(f"dtype {dtype!r} cannot be stored; choose one of {', '.join(_FLOAT_CODES)}")
    folder = Path(folder)
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    written: dict[Path, str] = {}  # temporary path -> final name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        groups = enumerate(_shards(pairs, dtype, max_shard_size))
        shards = [_write_shard(folder, number, group, written) for number, group in groups]
        _name_shards(folder, shards, written)
        _write_json(folder, "config.json", dict(config), written)
        for temporary, final in written.items():
            os.replace(temporary, folder / final)
        _remove_stale(folder, keep=set(written.values()))
    except OSError as fault:
        why = fault.strerror or fault
        raise Error(f"{folder}: cannot write the checkpoint ({why}); free space or choose another folder") from fault
    finally:
        for temporary in folder.glob(".*.partial"):
            temporary.unlink(missing_ok=True)


def _read_header(path: Path) -> dict[str, _Entry]:
    """The tensors of one safetensors file: 8 bytes little-endian length, a JSON header, then the data."""
    require_readable(path)
    broken = f"{path}: not a readable safetensors file ({{}}); fetch the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise ValueError("truncated, or no safetensors at all")
            header = contracts.json_of(stream.read(length))
        header.pop("__metadata__", None)
        entries = {}
        for name, item in header.items():
            begin, end = (8 + length + int(offset) for offset in item["data_offsets"])
            entries[name] = _Entry(path, begin, end, item["dtype"], tuple(int(n) for n in item["shape"]))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as fault:
        raise Error(broken.format(f"{fault}")) from None
    for name, entry in entries.items():
        if entry.code not in _NUMPY_OF:
            raise Error(f"{path}: {name} is stored as {entry.code}, which is not supported; store it as F32, F16 or BF16")
        size_of_one = np.dtype(_NUMPY_OF[entry.code]).itemsize
        if entry.begin < 8 + length or entry.end - entry.begin != math.prod(entry.shape) * size_of_one:
            raise Error(broken.format(f"the byte range of {name} does not fit its shape"))
    needed = max((entry.end for entry in entries.values()), default=8 + length)
    if needed != size:
        raise Error(broken.format(f"truncated or altered: {size} bytes where the header promises {needed}"))
    return entries


def _read_index(path: Path) -> dict[str, _Entry]:
    """The tensors of all shards that an index names. What a shard holds beyond it is kept, so that `verify` names it."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise Error(f"{path}: has no weight_map from tensor names to file names; fetch the file again")
    entries: dict[str, _Entry] = {}
    for name in sorted(set(weight_map.values())):
        shard = path.parent / name
        if Path(name).name != name:
            raise Error(f"{path}: names the shard {name!r}, which is no plain file name; fetch the file again")
        if not shard.exists():
            raise Error(f"{shard}: this shard is absent although {path.name} names it; fetch the missing file")
        entries_of_shard = _read_header(shard)
        if absent := [tensor for tensor, home in weight_map.items() if home == name and tensor not in entries_of_shard]:
            raise Error(f"{shard}: lacks {_few(absent)}, which {path.name} promises; fetch the folder again")
        entries.update({tensor: entry for tensor, entry in entries_of_shard.items() if weight_map.get(tensor, name) == name})
    return entries


def _read_at(path: Path, begin: int, count: int, stored: np.dtype) -> np.ndarray:
    with path.open("rb") as stream:
        stream.seek(begin)
        values = np.fromfile(stream, stored, count)
    if values.size != count:
        raise Error(f"{path}: became shorter while it was read; fetch the file again")
    return values


def _widen_bfloat16(raw: np.ndarray) -> np.ndarray:
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        how = _CONVERT.format(bin=pickles[0])
        return f"{folder}: holds {pickles[0]}, a pickle that is not loaded; convert it once, inside the folder: {how}"
    return f"{folder}: holds neither model.safetensors nor an index of shards; give the folder with the weights"


def _few(items: list[str]) -> str:
    return ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


_Encoded = tuple[str, str, tuple[int, ...], np.ndarray]  # name, dtype code, shape, array of the stored bytes
_Written = tuple[Path, list[str], int]  # temporary path, names in it, bytes of data


def _encode(name: str, values: np.ndarray, dtype: str) -> _Encoded:
    code = _FLOAT_CODES[dtype] if values.dtype.kind == "f" else _CODE_OF[values.dtype]
    shape = tuple(values.shape)
    stored = narrow_bfloat16(values) if code == "BF16" else np.ascontiguousarray(values, _NUMPY_OF[code])
    return name, code, shape, stored


def _shards(pairs: Iterable[tuple[str, np.ndarray]], dtype: str, limit: int | None) -> Iterator[list[_Encoded]]:
    shard: list[_Encoded] = []
    size = 0
    for name, values in pairs:
        encoded = _encode(name, values, dtype)
        if shard and limit is not None and size + encoded[3].nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(encoded)
        size += encoded[3].nbytes
    yield shard


def _write_shard(folder: Path, number: int, shard: list[_Encoded], written: dict[Path, str]) -> _Written:
    """Write one shard under a temporary name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, code, shape, stored in shard:
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + stored.nbytes]}
        end += stored.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = folder / f".weights-{number}.partial"
    with temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, _, _, stored in shard:
            stream.write(stored.reshape(-1).view(np.uint8).data)  # tofile does not say why a disk takes no more
    written[temporary] = ""
    return temporary, [name for name, *_ in shard], end


def _name_shards(folder: Path, shards: list[_Written], written: dict[Path, str]) -> None:
    if len(shards) == 1:
        written[shards[0][0]] = "model.safetensors"
        return
    weight_map = {}
    for number, (temporary, names, _) in enumerate(shards, start=1):
        written[temporary] = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(names, written[temporary]))
    index = {"metadata": {"total_size": sum(size for *_, size in shards)}, "weight_map": weight_map}
    _write_json(folder, "model.safetensors.index.json", index, written)


def _write_json(folder: Path, name: str, content: Mapping[str, Any], written: dict[Path, str]) -> None:
    temporary = folder / f".{name}.partial"
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    written[temporary] = name


def _remove_stale(folder: Path, keep: set[str]) -> None:
    """Weights of an earlier save under other names would shadow or outlive the new ones."""
    for pattern in ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink()
