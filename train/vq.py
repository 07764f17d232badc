"""The image tokenizer in torch (MAGVIT-v2: convolutions and lookup-free quantization), under the reference's tensor names.

It knows nothing of losses, files of pictures or ONNX. Pixels are [B, 3, height, width] in -1..1. A code is one number per
cell of the grid: bit c of it, the most significant first, is the sign of channel c (arXiv 2310.05737, section 3.1).
"""

import os
from collections.abc import Iterator
from math import isqrt
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TensorSource, Tower, VQConfig
from mmada_lite.train.model import load_state, save_state


class Reconstruction(NamedTuple):
    """What training needs: pixels, the encoder's output and its signs (with the gradient of the identity)."""

    pixels: Tensor  # [B, 3, height, width], unclamped
    z: Tensor  # [B, bits, h, w]
    zq: Tensor  # [B, bits, h, w], -1 or +1


def norm(config: VQConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.group_norm_groups, channels, eps=config.group_norm_eps)


class Residual(nn.Module):
    def __init__(self, config: VQConfig, into: int, out: int) -> None:
        super().__init__()
        self.norm1 = norm(config, into)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1)
        self.norm2 = norm(config, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(into, out, 1) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: Tensor = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return h + shortcut


class Attention(nn.Module):
    """One head over all cells of the grid."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.norm = norm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        parts = (part(normed) for part in (self.q, self.k, self.v))
        q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in parts)  # [B, 1, h*w, channels]
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(attended)
        return out


class Middle(nn.Module):
    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = Residual(config, channels, channels)
        self.attn_1 = Attention(config, channels)
        self.block_2 = Residual(config, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # one zero column right, one zero row below
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, then a change of resolution (none at the last level of a tower)."""

    def __init__(self, config: VQConfig, into: int, out: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(config, into if n == 0 else out, out) for n in range(blocks))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else resample(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        tower = config.encoder
        self.conv_in = nn.Conv2d(3, tower.ch, 3, padding=1)
        inputs = (tower.ch, *tower.channels[:-1])
        self.down = nn.ModuleList(levels(config, tower, inputs))
        for level, channels in zip(list(self.down)[:-1], tower.channels[:-1], strict=True):
            level.downsample = Downsample(channels)
        self.mid = Middle(config, tower.channels[-1])
        self.norm_out = norm(config, tower.channels[-1])
        self.conv_out = nn.Conv2d(tower.channels[-1], config.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        z: Tensor = self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))
        return z


class Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        tower = config.decoder
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)
        self.conv_in = nn.Conv2d(config.z_channels, tower.channels[-1], 3, padding=1)
        self.mid = Middle(config, tower.channels[-1])
        inputs = (*tower.channels[1:], tower.channels[-1])
        self.up = nn.ModuleList(levels(config, tower, inputs))  # up.0 is the finest and runs last
        for level, channels in zip(list(self.up)[1:], tower.channels[1:], strict=True):
            level.upsample = Upsample(channels)
        self.norm_out = norm(config, tower.channels[0])
        self.conv_out = nn.Conv2d(tower.channels[0], 3, 3, padding=1)

    def forward(self, zq: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(zq)))
        for level in reversed(list(self.up)):
            x = level(x)
        pixels: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return pixels


def levels(config: VQConfig, tower: Tower, inputs: tuple[int, ...]) -> Iterator[Level]:
    for into, out, blocks in zip(inputs, tower.channels, tower.num_res_blocks, strict=True):
        yield Level(config, into, out, blocks)


class LookupFree(nn.Module):
    """Signs <-> codes. The codebook is implied; the reference stores it as a buffer, so that it is part of the layout."""

    power_vals: Tensor
    embedding: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        weights = 2 ** torch.arange(bits - 1, -1, -1)  # [bits]: channel 0 is the most significant bit
        self.register_buffer("power_vals", weights)
        self.register_buffer("embedding", ((torch.arange(2**bits)[:, None] & weights) != 0).float() * 2 - 1)

    def signs(self, z: Tensor) -> Tensor:
        """-1 or +1 per channel (exactly 0 gives -1), with the gradient of the identity."""
        return torch.where(z > 0, 1.0, -1.0).to(z.dtype) + (z - z.detach())  # adds exactly 0

    def codes(self, z: Tensor) -> Tensor:
        """[B, bits, h, w] -> int64 [B, h*w], row by row."""
        return ((z > 0).long() * self.power_vals[:, None, None]).sum(1).flatten(1)

    def codewords(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """int64 [B, h*w] -> [B, bits, h, w] of -1 and +1."""
        return self.embedding[codes].transpose(1, 2).reshape(codes.shape[0], -1, *grid)


class MagViT(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = LookupFree(config.z_channels)

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Differentiable: the signs pass the gradient straight through."""
        z = self.encoder(pixels)
        zq = self.quantize.signs(z)
        return Reconstruction(self.decoder(zq), z, zq)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, height, width] in -1..1 -> codes int64 [B, h*w]. Raises Error for sizes that do not fit the grid."""
        factor = self.config.downsample_factor
        if pixels.dim() != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise Error(f"pixels {list(pixels.shape)} should be [rows, 3, height, width], sides multiples of {factor}")
        return self.quantize.codes(self.encoder(pixels))

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes int64 [B, h*w] -> pixels [B, 3, height, width], unclamped. Without a grid the picture is square."""
        side = isqrt(codes.shape[1])
        height, width = grid or (side, side)
        if height * width != codes.shape[1]:
            raise Error(f"{codes.shape[1]} codes do not fill a {height} x {width} grid; give the grid as (height, width)")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codebook_size:
            raise Error(f"codes must lie in 0..{self.config.codebook_size - 1}; subtract the image-code offset from tokens")
        pixels: Tensor = self.decoder(self.quantize.codewords(codes, (height, width)))
        return pixels

    @classmethod
    def load(cls, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Self:
        source, config = TensorSource.open(folder), VQConfig.load(folder)
        source.verify(config.expected_tensors())
        with torch.device("meta"):
            model = cls(config)
        load_state(model, source, dtype)
        return model

    def save(self, folder: str | os.PathLike[str], dtype: str = "float32") -> None:
        save_state(self, folder, self.config.to_json(), dtype)
