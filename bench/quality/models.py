"""What quality is measured on: a checkpoint in torch or a bundle in onnxruntime, behind one face. Knows no task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bundle import read_settings
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.errors import Error
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Ints = NDArray[np.int64]
Pictures = NDArray[np.uint8]  # [N, H, W, 3]


@dataclass(slots=True)
class EvalModel:
    """A model under test: it denoises, it speaks, and it sees and shows pictures.

    encode: pictures to codes [N, codes]. decode: codes [N, h * w] and (h, w) to pictures. tokenizer: reads texts as the
    runtime does, which makes capitals small for a model of lower case; as_written: reads them as they are.
    """

    name: str
    denoiser: Denoiser
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    text: TextSettings
    image: ImageSettings
    encode: Callable[[Pictures], Ints]
    decode: Callable[[Ints, tuple[int, int]], Pictures]
    as_written: Tokenizer


def is_bundle(path: Path) -> bool:
    return (path / "bundle.json").exists()


def is_model(path: Path) -> None:
    """Raises Error for what is neither a checkpoint's folder (config.json) nor a bundle's (bundle.json)."""
    if not is_bundle(path) and not (path / "config.json").exists():
        raise Error(f"{path} is neither a bundle (bundle.json) nor a checkpoint (config.json); name the folder of one")


def open_model(path: Path, device: str = "auto") -> EvalModel:
    """A checkpoint or a bundle, which alone asks for a device. Raises Error for anything else."""
    is_model(path)
    return _bundle(path, device) if is_bundle(path) else _checkpoint(path)


def _bundle(path: Path, device: str) -> EvalModel:
    import mmada_lite

    model = mmada_lite.load(path, device=device)
    codec = model.codec

    def encode(pictures: Pictures) -> Ints:
        return np.concatenate([codec.encode(_pixels(part)) for part in _parts(pictures)]).reshape(len(pictures), -1)

    def decode(codes: Ints, grid: tuple[int, int]) -> Pictures:
        return np.stack([np.asarray(codec.decode(row.reshape(grid))) for row in codes])

    tokenizer, file = model.tokenizer, model.bundle.tokenizer_path
    assert file is not None, "a model with a tokenizer has its file"
    defaults, as_written = (model.text_defaults, model.image_defaults), Tokenizer.from_file(file)
    return EvalModel(path.name, model.denoiser, tokenizer, model.vocabulary, *defaults, encode, decode, as_written)


def _checkpoint(path: Path) -> EvalModel:
    import torch

    from mmada_lite.train import shards
    from mmada_lite.train.denoiser import TorchDenoiser
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.stage_vq import to_pictures
    from mmada_lite.train.vq import MagViT

    model, file, about = MMaDA.load(path).eval(), path / "tokenizer.json", _sidecar(path)
    tokenizer = Tokenizer.from_file(file, lower_case=about.get("knows", {}).get("case") == "lower")
    config, vq = model.config, MagViT.load(path / "vq").eval()
    vocabulary = Vocabulary.from_tokenizer(
        tokenizer, codebook_size=config.codebook_size, size=config.vocab_size, mask_id=config.mask_token_id
    )
    offset = vocabulary.image_code_offset
    denoiser = TorchDenoiser(model, slice(offset, offset + vocabulary.codebook_size))

    def encode(pictures: Pictures) -> Ints:
        return np.concatenate([shards.encode(vq, part) for part in _parts(pictures)])

    def decode(codes: Ints, grid: tuple[int, int]) -> Pictures:
        parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in _parts(codes)]
        return np.concatenate([to_pictures(vq.decode(part, grid)) for part in parts])

    settings, as_written = _defaults(path), Tokenizer.from_file(file)
    return EvalModel(path.name, denoiser, tokenizer, vocabulary, *settings, encode, decode, as_written)


def _parts(rows: NDArray, size: int = 64) -> list[NDArray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _defaults(path: Path) -> tuple[TextSettings, ImageSettings]:
    """The settings that a checkpoint asks for, and the recipe's where it is silent."""
    from mmada_lite.export.checkpoint import SIDECAR
    from mmada_lite.train.recipe import IMAGE, TEXT

    file, defaults = path / SIDECAR, _sidecar(path).get("defaults", {})
    text = read_settings(TextSettings, plain(TEXT) | defaults.get("text", {}), f"{file}: defaults.text")
    return text, read_settings(ImageSettings, plain(IMAGE) | defaults.get("image", {}), f"{file}: defaults.image")


def _sidecar(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing where it has no such file."""
    from mmada_lite.export.checkpoint import SIDECAR, read_json

    return read_json(path / SIDECAR) if (path / SIDECAR).exists() else {}


def _pixels(pictures: Pictures) -> NDArray[np.float32]:
    scaled = pictures.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
