"""What quality is measured on: a checkpoint in torch or a bundle in onnxruntime, behind one face. Knows no task."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmada_lite.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.settings import ImageSettings, TextSettings, settings_from
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Ints = NDArray[np.int64]
Pictures = NDArray[np.uint8]  # [N, H, W, 3]


class Subject(Protocol):
    """A model under test: it denoises, it speaks, and it sees and shows pictures."""

    name: str
    denoiser: Denoiser
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    text: TextSettings
    image: ImageSettings

    def encode(self, pictures: Pictures) -> Ints:
        """Pictures to codes [N, codes]."""
        ...

    def decode(self, codes: Ints, grid: tuple[int, int]) -> Pictures:
        """Codes [N, h * w] to pictures."""
        ...


@dataclass(slots=True)
class TorchSubject:
    """A checkpoint in the Hugging Face layout."""

    name: str
    denoiser: Denoiser
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    text: TextSettings
    image: ImageSettings
    vq: object

    def encode(self, pictures: Pictures) -> Ints:
        from mmada_lite.train.data.pool import encode

        return np.concatenate([encode(self.vq, pictures[i : i + 64]) for i in range(0, len(pictures), 64)])  # type: ignore[arg-type]

    def decode(self, codes: Ints, grid: tuple[int, int]) -> Pictures:
        import torch

        from mmada_lite.train.stage_vq import to_pictures

        parts = [torch.from_numpy(np.ascontiguousarray(codes[i : i + 64])) for i in range(0, len(codes), 64)]
        return np.concatenate([to_pictures(self.vq.decode(part, grid)) for part in parts])  # type: ignore[attr-defined]


@dataclass(slots=True)
class BundleSubject:
    """A bundle, as the runtime runs it."""

    name: str
    denoiser: Denoiser
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    text: TextSettings
    image: ImageSettings
    codec: object

    def encode(self, pictures: Pictures) -> Ints:
        from mmada_lite.images import Codec

        assert isinstance(self.codec, Codec)
        parts = [self.codec.encode(_pixels(pictures[i : i + 64])) for i in range(0, len(pictures), 64)]
        codes: Ints = np.concatenate(parts).reshape(len(pictures), -1)
        return codes

    def decode(self, codes: Ints, grid: tuple[int, int]) -> Pictures:
        from mmada_lite.images import Codec

        assert isinstance(self.codec, Codec)
        return np.stack([np.asarray(self.codec.decode(row.reshape(grid))) for row in codes])


def open_subject(path: Path, device: str = "auto") -> Subject:
    """A checkpoint folder (config.json) or a bundle (bundle.json). Raises Error for anything else."""
    if (path / "bundle.json").exists():
        return _bundle(path, device)
    if (path / "config.json").exists():
        return _checkpoint(path)
    raise Error(f"{path} is neither a bundle (bundle.json) nor a checkpoint (config.json); name the folder of one")


def _bundle(path: Path, device: str) -> Subject:
    import mmada_lite

    model = mmada_lite.load(path, device=device)
    return BundleSubject(
        path.name, model.denoiser, model.tokenizer, model.vocabulary, model.text_defaults, model.image_defaults, model.codec
    )


def _checkpoint(path: Path) -> Subject:
    from mmada_lite.train.denoiser import TorchDenoiser
    from mmada_lite.train.model import MMaDA
    from mmada_lite.train.vq import MagViT

    model, tokenizer = MMaDA.load(path).eval(), Tokenizer.from_file(path / "tokenizer.json")
    config = model.config
    vocabulary = Vocabulary.from_tokenizer(
        tokenizer, codebook_size=config.codebook_size, size=config.vocab_size, mask_id=config.mask_token_id
    )
    offset = vocabulary.image_code_offset
    denoiser = TorchDenoiser(model, slice(offset, offset + vocabulary.codebook_size))
    text, image = _defaults(path)
    return TorchSubject(path.name, denoiser, tokenizer, vocabulary, text, image, MagViT.load(path / "vq").eval())


def _defaults(path: Path) -> tuple[TextSettings, ImageSettings]:
    """The settings that a checkpoint asks for, and the recipe's where it is silent."""
    from mmada_lite.train.recipe import IMAGE, TEXT

    file = path / "mmada_lite.json"
    said = json.loads(file.read_text(encoding="utf-8")).get("defaults", {}) if file.exists() else {}
    text = settings_from(TextSettings, asdict(TEXT) | said.get("text", {}), f"{file}: defaults.text")
    return text, settings_from(ImageSettings, asdict(IMAGE) | said.get("image", {}), f"{file}: defaults.image")


def _pixels(pictures: Pictures) -> NDArray[np.float32]:
    scaled = pictures.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
