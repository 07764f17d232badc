"""A model of random weights in a known shape: as large and as slow as a real one, and meaning nothing.

    python -m mmada_lite.export.synthetic FOLDER          # a checkpoint in the published layout, 16 GB with an image tokenizer

One source of numbers serves both ways of making one: a checkpoint on disk, from which everything can be tried before anything
is downloaded, and a bundle straight through the exporter. Numbers are drawn as they are asked for, some megabytes at a time,
each piece of a tensor from its own seed, so that no two tensors are equal (equal ones would be stored once, and memory and
speed would be fiction). The tokenizer is a stand-in of bytes. It knows layouts; it measures nothing.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bundle import MANIFEST, Architecture, Bundle
from mmada_lite.errors import Error
from mmada_lite.export import bundle as exporting
from mmada_lite.export import codec, formats, fused, graph, heads, lowering, precision, transformer
from mmada_lite.export.checkpoint import TransformerConfig, VQConfig
from mmada_lite.export.formats import Format, Quantized, quantize
from mmada_lite.files import AtomicFolder, size_in_words
from mmada_lite.memory_plan import PUBLISHED
from mmada_lite.ort import attention_forms
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

_log = logging.getLogger("mmada_lite")
SHARD = 4_000_000_000  # bytes of a file of weights at most
_PIECE = 4 << 20  # numbers drawn at once
_RANDOM = "random numbers"  # where such a bundle says it comes from
_LEAST = 12  # ids of the special tokens, where they come first
_WORDS, _GAP = 126349, 126464  # entries of the published tokenizer, and the id behind them where picture codes begin
_SPECIAL = SpecialTokens(126080, 126081, 126084, 126085, 126088, 126089, 126093, 126094, 126336, 126346, 126347, 126348)
_TEXTS = (  # of the special tokens, in the order of SpecialTokens
    *("<|startoftext|>", "<|endoftext|>", "<|soi|>", "<|eoi|>", "<|t2i|>", "<|mmu|>", "[iPAD]", "<|r2i|>"),
    *("<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """A transformer and its task: codes of a picture, tokens of an answer."""

    architecture: Architecture
    codes: int  # of the codebook
    grid: int  # codes along a side of a picture
    answer: int
    block: int

    @property
    def vocabulary(self) -> Vocabulary:
        special = SpecialTokens(*range(_LEAST))
        return Vocabulary(special, self.architecture.vocab_size - self.codes, self.codes, self.architecture.vocab_size)


_LARGE = PUBLISHED["8b"].architecture


def _published_like(d_model: int, layers: int, heads: int, mlp: int) -> Size:
    """The published model's vocabulary, positions and constants in a smaller body."""
    shape = {"n_heads": heads, "n_kv_heads": heads, "head_dim": d_model // heads, "mlp_hidden_size": mlp}
    architecture = replace(_LARGE, d_model=d_model, n_layers=layers, **shape)
    return Size(architecture, codes=PUBLISHED["8b"].codes, grid=32, answer=128, block=32)


SIZES: Mapping[str, Size] = {
    "s": _published_like(1024, 16, 16, 3072),
    "1b": _published_like(2048, 16, 16, 5632),
    "8b": _published_like(_LARGE.d_model, _LARGE.n_layers, _LARGE.n_heads, _LARGE.mlp_hidden_size),
    "tiny": Size(Architecture(64, 2, 4, 4, 16, 192, 192, 10000.0, 1e-5, 256), codes=64, grid=4, answer=8, block=4),
}


@dataclass(frozen=True, slots=True)
class RandomTensors:
    """Normal numbers in the shapes of a checkpoint, of deviation 0.02 (a convolution's by its inputs); ones for scales and
    zeros for biases. The same rows whenever and however they are asked for."""

    shapes: Mapping[str, tuple[int, ...]]
    seed: int = 0

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        shape = self.shapes[name]
        first, stop, _ = (rows or slice(None)).indices(shape[0])
        if len(shape) == 1:
            return np.full(stop - first, 0.0 if name.endswith(".bias") else 1.0, dtype=np.float32)
        step, values = self._step(shape), np.empty((stop - first, *shape[1:]), dtype=np.float32)
        deviation = 0.02 if len(shape) == 2 else 1 / math.sqrt(math.prod(shape[1:]))
        for piece in range(first // step, -(-stop // step)):
            start = piece * step
            random = np.random.default_rng([self.seed, *name.encode(), piece])
            drawn = random.standard_normal((min(step, shape[0] - start), *shape[1:]), dtype=np.float32)
            values[max(start - first, 0) : start + step - first] = drawn[max(first - start, 0) : stop - start]
        values *= np.float32(deviation)
        return values

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """All rows of a tensor, some megabytes at a time."""
        count, step = self.shapes[name][0], self._step(self.shapes[name])
        return (self.read(name, slice(start, min(start + step, count))) for start in range(0, count, step))

    @staticmethod
    def _step(shape: tuple[int, ...]) -> int:
        return max(1, _PIECE // math.prod(shape[1:]))


class AlikeTensors:
    """As RandomTensors, but that every layer has the numbers of the first, and a matrix beside the layers some rows again and
    again: quick to make at any size, and as long to multiply. Rows that are read again are not drawn again."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._tensors = RandomTensors(shapes)
        self._rows = cache(lambda name, first, stop: self._tensors.read(name, slice(first, stop)))
        self._codes = cache(lambda name, fmt, first, stop: quantize(self._rows(name, first, stop), fmt, name))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(name)

    @staticmethod
    def same(name: str) -> str:
        """The tensor whose numbers one has."""
        return re.sub(r"\bblocks\.\d+\.", "blocks.0.", name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        shape = self.shape(name)
        first, stop, _ = (rows or slice(None)).indices(shape[0])
        if ".blocks." in name or len(shape) == 1:
            return self._rows(self.same(name), first, stop)
        drawn = self._rows(name, 0, min(shape[0], RandomTensors._step(shape)))
        return np.take(drawn, np.arange(first, stop) % len(drawn), axis=0)

    def quantized(self, name: str, fmt: Format, rows: slice) -> Quantized:
        if ".blocks." in name:
            return self._codes(self.same(name), fmt, rows.start, rows.stop)
        return quantize(self.read(name, rows), fmt, name)


def size_named(name: str) -> Size:
    """A size of SIZES, in capitals or not. Raises Error for an unknown one."""
    if name.lower() not in SIZES:
        raise Error(f"no shape is called {name!r}; use one of {', '.join(SIZES)}")
    return SIZES[name.lower()]


def config_of(size: Size, vocabulary: Vocabulary | None = None) -> TransformerConfig:
    """The configuration of a size; its special tokens come first unless a vocabulary says otherwise."""
    shared = {name: getattr(size.architecture, name) for name in Architecture.__slots__ if name != "head_dim"}
    known = vocabulary or size.vocabulary
    return TransformerConfig(
        **shared,
        mask_token_id=known.special.mask,
        eos_token_id=known.special.eos,
        codebook_size=size.codes,
        llm_vocab_size=size.architecture.vocab_size - size.codes,
        num_vq_tokens=size.grid**2,
    )


def cached_bundle(name: str, form: str, work: Path, *, target: str = "cpu", alike: bool = False) -> Bundle:
    """The bundle of a size of SIZES in a precision, in the folder `work`: opened where it is there, else made, whole or not
    at all; one that another version of the exporter made is made anew, since it would be measured in place of this one.
    alike: of AlikeTensors, whose layers lie in the file once.

    Raises Error for an unknown size or precision, when the disk is too small, and when something else lies in its place.
    """
    size = size_named(name)
    folder = work / "-".join([name.lower(), form, *([] if target == "cpu" else [target]), *(["alike"] if alike else [])])
    if not (folder / MANIFEST).is_file():
        return write_bundle(size, folder, form, target, alike=alike)
    bundle = Bundle.open(folder)
    if (bundle.provenance.source, bundle.architecture) != (_RANDOM, size.architecture):
        raise Error(f"{folder} holds another model than the random one of size {name}; choose another folder for --work")
    if bundle.provenance.source_sha256 != exporter():
        _log.warning("%s is of another exporter: it is made anew", folder)
        shutil.rmtree(folder)
        return cached_bundle(name, form, work, target=target, alike=alike)
    return bundle


def write_bundle(
    size: Size,
    folder: Path,
    form: str,
    target: str,
    formats: Mapping[str, str] = MappingProxyType({}),
    *,
    alike: bool = False,
) -> Bundle:
    """Embedder, backbone and heads of a size, through the exporter as every model is; formats: of single groups. Returns the
    bundle, opened."""
    config = config_of(size)
    narrow = (
        {"backbone": "int4-b64", "text_head": "int4-b64"}
        if form == "int4" and config.d_model < 128 and target != "cuda"
        else {}
    )
    text = {"answer_length": size.answer, "steps": size.answer // 2, "block_length": size.block}
    checkpoint = exporting.Checkpoint(
        folder=Path(os.devnull),  # nothing lies beside these weights
        config=config,
        tensors=AlikeTensors(config.expected_tensors()) if alike else RandomTensors(config.expected_tensors()),
        vocabulary=size.vocabulary,
        codec=(),
        image={"resolution": size.grid * 16, "downsample": 16},
        sidecar={
            "name": "synthetic",
            "defaults": {"text": text | {"acceleration": {"cache": "dual"}}, "image": {"steps": 15 if size.grid > 4 else 5}},
        },
        origin=(_RANDOM, exporter()),
    )
    attention = attention_forms.fastest() if target == "cuda" else attention_forms.JOINED
    specs = precision.specs_for(form, target, narrow | dict(formats), attention)
    same = AlikeTensors.same if alike else str  # the name itself
    return Bundle.open(exporting.write_bundle(checkpoint, specs, folder, same=same))


def exporter() -> str:
    """A word for the code that makes graphs and weights of a bundle: it changes whenever that does."""
    modules = (codec, fused, graph, heads, lowering, precision, transformer, formats)
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).hexdigest()


def write_checkpoint(
    folder: str | Path,
    size: Size = SIZES["8b"],
    *,
    layers: int | None = None,
    pictures: bool = True,
    seed: int = 0,
    force: bool = False,
    shard: int = SHARD,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a size as the checkpoint `folder` in bfloat16, whole or not at all; returns its path. layers: fewer make a smaller
    one; pictures: whether a random image tokenizer of the published shape lies in its folder vq, where codes are as many as its
    own. Peak memory is far below 1 GB.

    Raises Error when the folder exists, or the disk is too small.
    """
    if layers is not None and layers < 1:
        raise Error(f"{layers} layers make no model; use 1 or more")
    architecture = replace(size.architecture, n_layers=layers or size.architecture.n_layers)
    vocabulary = _stand_in(size)
    config = config_of(replace(size, architecture=architecture), vocabulary)
    vq = VQConfig() if pictures and VQConfig().codebook_size == size.codes else None
    weights = RandomTensors(config.expected_tensors(), seed)
    needed = 2 * sum(map(math.prod, weights.shapes.values()))
    needed += 4 * sum(map(math.prod, vq.expected_tensors().values())) if vq else 0
    with AtomicFolder(Path(folder), marker="config.json", force=force, needed=needed + (16 << 20)) as writer:
        report(f"{size_in_words(needed)} to write")
        _write_weights(writer.folder, weights, "BF16", shard, report)
        _write_json(writer.folder / "config.json", config.to_json() | {"torch_dtype": "bfloat16"})
        _write_json(writer.folder / "tokenizer.json", _tokenizer(vocabulary))
        if vq:
            (writer.folder / "vq").mkdir()
            _write_weights(writer.folder / "vq", RandomTensors(vq.expected_tensors(), seed + 1), "F32", shard, report)
            _write_json(writer.folder / "vq" / "config.json", vq.to_json())
        return writer.commit()


def _write_weights(folder: Path, source: RandomTensors, code: str, limit: int, report: Callable[[str], None]) -> None:
    """safetensors in shards of `limit` bytes at most, and their index, piece by piece; one file has no index."""
    width = {"BF16": 2, "F32": 4}[code]
    shards: list[dict[str, int]] = [{}]  # tensor -> bytes
    for name, shape in source.shapes.items():
        taken = width * math.prod(shape)
        if shards[-1] and sum(shards[-1].values()) + taken > limit:
            shards.append({})
        shards[-1][name] = taken
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, taken in shard.items():
            header[name] = {"dtype": code, "shape": list(source.shape(name)), "data_offsets": [end, end + taken]}
            end += taken
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in shard:
                report(name)
                for piece in source.pieces(name):  # bfloat16 by cutting off: random numbers lose nothing by it
                    cut = (piece.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if code == "BF16" else piece
                    stream.write(np.ascontiguousarray(cut).reshape(-1).view(np.uint8).data)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(sum(shard.values()) for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _stand_in(size: Size) -> Vocabulary:
    """The published ids; in a vocabulary of another size they come last of the text."""
    first = size.architecture.vocab_size - size.codes
    if first == _GAP:
        return Vocabulary(_SPECIAL, _WORDS, size.codes, size.architecture.vocab_size)
    return Vocabulary(SpecialTokens(*range(first - _LEAST, first)), first, size.codes, size.architecture.vocab_size)


def _tokenizer(vocabulary: Vocabulary) -> dict[str, object]:
    """A tokenizer.json of bytes and filling words, with the special tokens where the vocabulary has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = vocabulary.special
    taken = dict(zip((getattr(special, name) for name in special.__slots__), _TEXTS, strict=True))
    letters = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    entries = {taken.get(n) or next(letters, None) or f"<{n}>": n for n in range(vocabulary.image_code_offset)}
    tokenizer = Tokenizer(models.BPE(entries, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_TEXTS))
    content: dict[str, object] = json.loads(tokenizer.to_str())
    return content


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Write a checkpoint. 0, 2 after a fault of the user, or 130 when it is interrupted."""
    return exit_code(lambda: _write(argv))


def _write(argv: list[str] | None) -> int:
    parser = Parser(prog="python -m mmada_lite.export.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", help="the folder to write")
    parser.add_argument("--shape", default="8b", help=f"one of {', '.join(SIZES)} (default: 8b)")
    parser.add_argument("--layers", type=int, metavar="N", help="fewer than the shape's, for a smaller one")
    parser.add_argument("--no-pictures", action="store_true", help="leave the image tokenizer out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same numbers (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace what is already there")
    given = parser.parse_args(argv)
    report = partial(print, file=sys.stderr) if sys.stderr.isatty() else lambda line: None
    shape = {"layers": given.layers, "pictures": not given.no_pictures, "seed": given.seed}
    print(write_checkpoint(given.folder, size_named(given.shape), force=given.force, report=report, **shape))
    return 0


if __name__ == "__main__":
    sys.exit(main())
