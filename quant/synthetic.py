"""A checkpoint of the published layout and size with distinct random weights, so that the whole path from checkpoint to
answers can be tried before anything is downloaded.

    python -m mmada_lite.quant.synthetic FOLDER

Names and shapes are those of the 8B model, the numbers those of its initialization, each tensor's its own; they are made
and written some megabytes at a time. The tokenizer is a stand-in of bytes whose special tokens have the published ids.
It means nothing and answers nonsense; it knows the layout and no model.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TransformerConfig, VQConfig
from mmada_lite.files import AtomicFolder, size_in_words

PUBLISHED = TransformerConfig(
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    mlp_hidden_size=12288,
    vocab_size=134656,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    mask_token_id=126336,
    eos_token_id=126081,
    max_sequence_length=4096,
    codebook_size=8192,
    llm_vocab_size=126464,
    num_vq_tokens=1024,
)
WORDS = 126349  # entries of the published tokenizer; picture codes follow
SHARD = 4_000_000_000  # bytes at most
_PIECE = 4 << 20  # numbers made at once
_SPECIAL = {
    "<|startoftext|>": 126080,
    "<|endoftext|>": 126081,
    "<|soi|>": 126084,
    "<|eoi|>": 126085,
    "<|t2i|>": 126088,
    "<|mmu|>": 126089,
    "[iPAD]": 126093,
    "<|r2i|>": 126094,
    "<|mdm_mask|>": 126336,
    "<|start_header_id|>": 126346,
    "<|end_header_id|>": 126347,
    "<|eot_id|>": 126348,
}
Report = Callable[[str], None]


def write_checkpoint(
    folder: str | Path,
    *,
    layers: int = PUBLISHED.n_layers,
    pictures: bool = True,
    seed: int = 0,
    force: bool = False,
    config: TransformerConfig = PUBLISHED,
    shard: int = SHARD,
    report: Report = lambda line: None,
) -> Path:
    """Write the checkpoint `folder` in bfloat16, whole or not at all; returns its path. layers: fewer make a smaller one;
    pictures: whether the image tokenizer (random too) lies in its folder vq. Peak memory is far below 1 GB.

    Raises Error when the folder exists, or the disk is too small.
    """
    if layers < 1:
        raise Error(f"{layers} layers make no model; use 1 or more")
    config = replace(config, n_layers=layers)
    vq = VQConfig() if pictures else None
    tensors = config.expected_tensors()
    needed = 2 * sum(map(math.prod, tensors.values())) + (4 * sum(map(math.prod, vq.expected_tensors().values())) if vq else 0)
    with AtomicFolder(Path(folder), marker="config.json", force=force, needed=needed + (16 << 20)) as writer:
        report(f"{size_in_words(needed)} to write")
        _write_shards(writer.folder, tensors, lambda name, n: _initial(name, n, layers), "BF16", shard, seed, report)
        _write_json(writer.folder / "config.json", config.to_json() | {"torch_dtype": "bfloat16"})
        _write_json(writer.folder / "tokenizer.json", _tokenizer(config))
        if vq:
            (writer.folder / "vq").mkdir()
            _write_shards(writer.folder / "vq", vq.expected_tensors(), _initial_vq, "F32", shard, seed + 1, report)
            _write_json(writer.folder / "vq" / "config.json", vq.to_json())
        return writer.commit()


def _initial(name: str, shape: tuple[int, ...], layers: int) -> float:
    """The deviation of a tensor's numbers, as the reference initializes; 0: all ones."""
    if len(shape) == 1:
        return 0.0
    return 0.02 / math.sqrt(2 * layers) if ".blocks." in name and name.endswith(("attn_out.weight", "ff_out.weight")) else 0.02


def _initial_vq(name: str, shape: tuple[int, ...]) -> float:
    return 0.0 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))


def _write_shards(
    folder: Path,
    tensors: dict[str, tuple[int, ...]],
    deviation: Callable[[str, tuple[int, ...]], float],
    code: str,
    limit: int,
    seed: int,
    report: Report,
) -> None:
    """safetensors in shards of `limit` bytes at most, and their index; one file has no index."""
    width = {"BF16": 2, "F32": 4}[code]
    shards = list(_split(tensors, limit // width))
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    weight_map: dict[str, str] = {}
    for file, shard in zip(names, shards, strict=True):
        with (folder / file).open("wb") as stream:
            stream.write(_header(shard, code, width))
            for name, shape in shard.items():
                report(name)
                rng = np.random.default_rng([seed, *name.encode()])
                for piece in _pieces(math.prod(shape), deviation(name, shape), rng):
                    _stored(piece, code).tofile(stream)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = width * sum(map(math.prod, tensors.values()))
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(tensors: dict[str, tuple[int, ...]], limit: int) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors.items():
        if shard and sum(map(math.prod, shard.values())) + math.prod(shape) > limit:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _header(shard: dict[str, tuple[int, ...]], code: str, width: int) -> bytes:
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.items():
        size = width * math.prod(shape)
        content[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(count: int, deviation: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for begin in range(0, count, _PIECE):
        size = min(_PIECE, count - begin)
        if deviation:
            yield rng.standard_normal(size, dtype=np.float32) * np.float32(deviation)
        else:
            yield np.ones(size, np.float32)


def _stored(values: np.ndarray, code: str) -> np.ndarray:
    """bfloat16 by cutting off: random numbers lose nothing by it."""
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if code == "BF16" else values


def _tokenizer(config: TransformerConfig) -> dict[str, object]:
    """A tokenizer.json of bytes and filling words, whose length and special tokens are the published ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = WORDS if config.vocab_size >= WORDS + config.codebook_size else config.vocab_size - config.codebook_size
    special = {text: number for text, number in _SPECIAL.items() if number < words}
    if len(special) < len(_SPECIAL):  # a vocabulary of another size: they come last
        special = {text: words - len(_SPECIAL) + n for n, text in enumerate(_SPECIAL)}
    taken, alphabet = {number: text for text, number in special.items()}, sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = iter(alphabet)
    vocabulary = {taken.get(n) or next(letters, None) or f"<{n}>": n for n in range(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    found: dict[str, object] = json.loads(tokenizer.to_str())
    return found


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mmada_lite.quant.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", help="the folder to write")
    parser.add_argument(
        "--layers", type=int, default=PUBLISHED.n_layers, metavar="N", help="of 32, for a smaller one (default: 32)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="leave the image tokenizer out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same numbers (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace what is already there")
    given = parser.parse_args()
    terminal = sys.stderr.isatty()
    try:
        written = write_checkpoint(
            given.folder,
            layers=given.layers,
            pictures=not given.no_pictures,
            seed=given.seed,
            force=given.force,
            report=lambda line: print(line, file=sys.stderr) if terminal else None,
        )
    except Error as fault:
        print(f"mmada-lite: {fault}", file=sys.stderr)
        return 2
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
