"""The image tokenizer's configuration and the name and shape of every tensor it implies.

The names are those of the published MAGVIT-v2 checkpoint. This file computes nothing and knows neither torch nor ONNX.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from mmada_lite.contracts import check_value
from mmada_lite.errors import Error, shown
from mmada_lite.export.safetensors_io import read_json


@dataclass(frozen=True, slots=True)
class Tower:
    """One half of the tokenizer: base channels, their multiple and the number of residual blocks per level, finest first."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.ch, *self.ch_mult, *self.num_res_blocks)
        if not all(type(n) is int and n > 0 for n in numbers):
            raise Error("vq config.json: ch, ch_mult and num_res_blocks must be whole numbers above zero")
        for name, values in (("ch", (self.ch,)), ("ch_mult", self.ch_mult), ("num_res_blocks", self.num_res_blocks)):
            for value in values:
                check_value(name, value, f"vq config.json: {name}")
        if not 1 <= len(self.ch_mult) <= 10 or len(self.ch_mult) != len(self.num_res_blocks):
            raise Error("vq config.json: ch_mult and num_res_blocks need one number per level each, of 10 levels at most")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per level, finest first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)


# The published folder's config.json names a class and nothing else: its constructor's defaults are these.
_PUBLISHED_ENCODER = Tower(128, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4))
_PUBLISHED_DECODER = Tower(128, (1, 1, 2, 2, 4), (4, 4, 3, 4, 3))


@dataclass(frozen=True, slots=True)
class VQConfig:
    """The image tokenizer's shape. resolution is the side, in pixels, of the pictures it is meant for."""

    encoder: Tower = _PUBLISHED_ENCODER
    decoder: Tower = _PUBLISHED_DECODER
    z_channels: int = 13
    resolution: int = 512
    group_norm_groups: int = 32
    group_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_numbers(self, "vq config.json")
        if len(self.encoder.ch_mult) != len(self.decoder.ch_mult):
            raise Error("vq config.json: the encoder and the decoder have different numbers of levels")
        groups, factor = self.group_norm_groups, self.downsample_factor
        if odd := [n for n in (self.encoder.ch, *self.encoder.channels, *self.decoder.channels) if n % groups]:
            raise Error(f"vq config.json: {odd[0]} channels do not split into group_norm_groups {groups}")
        if self.resolution % factor:
            raise Error(f"vq config.json: resolution {self.resolution} is not a multiple of the downsampling factor {factor}")

    @property
    def codebook_size(self) -> int:
        return int(2**self.z_channels)

    @property
    def downsample_factor(self) -> int:
        return int(2 ** (len(self.encoder.ch_mult) - 1))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        return cls.from_json(read_json(Path(folder) / "config.json"))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What config.json does not say takes the published model's value. Raises Error where it contradicts itself."""
        if content.get("attn_resolutions", [5]) not in ([5], []):
            raise Error("vq config.json: attn_resolutions other than [5] is not supported; attention is in the middle only")
        if content.get("double_z", False):
            raise Error("vq config.json: double_z is not supported; it must be false")
        numbers = ("z_channels", "resolution", "group_norm_groups", "group_norm_eps")
        config = cls(
            encoder=_tower(content, "encoder", _PUBLISHED_ENCODER),
            decoder=_tower(content, "decoder", _PUBLISHED_DECODER),
            **{key: content[key] for key in numbers if key in content},
        )
        for key in ("codebook_size", "downsample_factor"):
            if content.get(key, implied := getattr(config, key)) != implied:
                raise Error(f"vq config.json: {key} is {content[key]}, but the other settings imply {implied}")
        return config

    def to_json(self) -> dict[str, Any]:
        implied = {"codebook_size": self.codebook_size, "downsample_factor": self.downsample_factor}
        return asdict(self) | implied | {"attn_resolutions": [5]}

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor and of the two buffers of the quantizer."""
        z = self.z_channels
        buffers: dict[str, tuple[int, ...]] = {"quantize.embedding": (self.codebook_size, z), "quantize.power_vals": (z,)}
        return dict(_encoder_tensors(self.encoder, z)) | dict(_decoder_tensors(self.decoder, z)) | buffers


_Named = Iterator[tuple[str, tuple[int, ...]]]


def _conv(name: str, out: int, into: int, kernel: int) -> _Named:
    yield f"{name}.weight", (out, into, kernel, kernel)
    yield f"{name}.bias", (out,)


def _norm(name: str, channels: int) -> _Named:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _residual(name: str, into: int, out: int) -> _Named:
    yield from _norm(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", out, into, 3)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out, 3)
    if into != out:
        yield from _conv(f"{name}.nin_shortcut", out, into, 1)


def _middle(name: str, channels: int) -> _Named:
    yield from _residual(f"{name}.block_1", channels, channels)
    yield from _norm(f"{name}.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{part}", channels, channels, 1)
    yield from _residual(f"{name}.block_2", channels, channels)


def _encoder_tensors(tower: Tower, z: int) -> _Named:
    channels = tower.ch
    yield from _conv("encoder.conv_in", channels, 3, 3)
    for level, (out, blocks) in enumerate(zip(tower.channels, tower.num_res_blocks, strict=True)):
        for block in range(blocks):
            yield from _residual(f"encoder.down.{level}.block.{block}", channels, out)
            channels = out
        if level + 1 < len(tower.ch_mult):
            yield from _conv(f"encoder.down.{level}.downsample.conv", channels, channels, 3)
    yield from _middle("encoder.mid", channels)
    yield from _norm("encoder.norm_out", channels)
    yield from _conv("encoder.conv_out", z, channels, 3)
    yield from _conv("encoder.quant_conv", z, z, 1)


def _decoder_tensors(tower: Tower, z: int) -> _Named:
    channels = tower.channels[-1]
    yield from _conv("decoder.post_quant_conv", z, z, 1)
    yield from _conv("decoder.conv_in", channels, z, 3)
    yield from _middle("decoder.mid", channels)
    for level in reversed(range(len(tower.ch_mult))):
        for block in range(tower.num_res_blocks[level]):
            yield from _residual(f"decoder.up.{level}.block.{block}", channels, tower.channels[level])
            channels = tower.channels[level]
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", channels, channels, 3)
    yield from _norm("decoder.norm_out", channels)
    yield from _conv("decoder.conv_out", 3, channels, 3)


def _tower(content: Mapping[str, Any], key: str, default: Tower) -> Tower:
    if key not in content:
        return default
    try:
        return Tower(content[key]["ch"], tuple(content[key]["ch_mult"]), tuple(content[key]["num_res_blocks"]))
    except (KeyError, TypeError):
        raise Error(f"vq config.json: {key} must be an object with ch, ch_mult and num_res_blocks") from None


def require_numbers(config: Any, file: str, may_be_zero: tuple[str, ...] = ()) -> None:
    """Raise an Error naming the first int or float field of a dataclass that is no such number above zero."""
    for field in fields(config):
        if field.type is not int and field.type is not float:
            continue
        value = getattr(config, field.name)
        right = type(value) is int or (field.type is float and type(value) is float)
        if not right or value < 0 or (value == 0 and field.name not in may_be_zero):
            kind = "a whole number" if field.type is int else "a number"
            raise Error(f"{file}: {field.name} must be {kind} above zero, not {shown(value)}")
        check_value(field.name, value, f"{file}: {field.name}")
