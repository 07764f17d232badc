"""Pictures in and out: files to pixels, pixels to codes and back, with the reference's laws of resizing and rounding.

It knows pillow and the two codec sessions. Prompts, canvases and decoding are none of its business.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mmada_lite.errors import Error

if TYPE_CHECKING:
    import onnxruntime

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Picture = Image.Image | Path | str | bytes
Finishing = Callable[[Image.Image], Image.Image]
Fit = Literal["crop", "squash"]
_LARGEST = 64_000_000  # pixels; above, a picture file is more likely an attack than a question


def open_picture(source: Picture) -> Image.Image:
    """An RGB picture from a file, bytes or a pillow image: turned upright by its EXIF mark, transparency laid on white.

    Raises Error when the file is missing, is no picture, is cut short, or has more than 64 million pixels.
    """
    if isinstance(source, Image.Image):
        return _flatten(source)
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > _LARGEST:
                raise Error(f"{name} has {image.width} x {image.height} pixels; scale it below {_LARGEST:,} pixels")
            return _flatten(ImageOps.exif_transpose(image))
    except Error:
        raise
    except FileNotFoundError as error:
        raise Error(f"no picture at {name}; check the path") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Error(f"{name} is not a picture that pillow can read ({error}); convert it to PNG or JPEG") from error


def open_mask(source: Picture, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask [H, W], true where a pixel is at least half white: what is to be painted anew. Transparent counts as black.

    Raises Error when its size (width, height) is not the picture's, or when it covers nothing.
    """
    mask = np.asarray(_on(open_any(source), 0).convert("L")) >= 128
    if mask.shape[::-1] != size:
        raise Error(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels and the picture {size[0]} x {size[1]}; "
            "make them the same size"
        )
    if not mask.any():
        raise Error("the mask covers nothing; paint white what is to be drawn anew")
    covered: NDArray[np.bool_] = mask
    return covered


def open_any(source: Picture) -> Image.Image:
    """As `open_picture`, with transparency kept."""
    if isinstance(source, Image.Image):
        return source
    open_picture(source)  # for its errors
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def fit(image: Image.Image, resolution: int, how: Fit = "crop") -> Image.Image:
    """A square picture of `resolution` pixels. "crop": shorter side to resolution (bicubic), then the centre; "squash": both
    sides to resolution whatever the proportions (what the reference does for documents and diagrams)."""
    if how == "squash":
        return image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    short, long = sorted(image.size)
    other = int(resolution * long / short)
    size = (resolution, other) if image.width <= image.height else (other, resolution)
    resized = image.resize(size, Image.Resampling.BICUBIC) if size != image.size else image
    left, top = round((size[0] - resolution) / 2.0), round((size[1] - resolution) / 2.0)
    return resized.crop((left, top, left + resolution, top + resolution))


def to_pixels(image: Image.Image) -> Floats:
    """float32 [1, 3, H, W] in -1..1."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((array - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)[None])


def to_bytes(pixels: Floats) -> NDArray[np.uint8]:
    """[B, 3, H, W] in -1..1 to uint8 [B, H, W, 3]: clamped, and truncated as the reference does, not rounded."""
    scaled = np.clip((pixels + np.float32(1)) / np.float32(2), 0, 1) * np.float32(255)
    return np.asarray(scaled.transpose(0, 2, 3, 1), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Codec:
    """The image tokenizer of a bundle: pictures of `resolution` pixels to grids of resolution / downsample codes a side."""

    encoder: "onnxruntime.InferenceSession"
    decoder: "onnxruntime.InferenceSession"
    resolution: int
    downsample: int

    @property
    def grid(self) -> int:
        """Codes per side."""
        return self.resolution // self.downsample

    def encode(self, pixels: Floats) -> Ints:
        """[B, 3, H, W] in -1..1 to codes int64 [B, h, w]."""
        codes: Ints = self.encoder.run(["codes"], {"pixels": pixels})[0]
        return codes

    def decode(self, codes: Ints) -> Image.Image:
        """Codes [h, w] to a picture of w * downsample by h * downsample pixels."""
        pixels = self.decoder.run(["pixels"], {"codes": np.ascontiguousarray(codes[None])})[0]
        return Image.fromarray(to_bytes(pixels)[0], "RGB")


def cells_under(mask: NDArray[np.bool_], downsample: int) -> NDArray[np.bool_]:
    """Code cells [h, w] that a pixel mask [H, W] touches."""
    height, width = (math.ceil(side / downsample) for side in mask.shape)
    padded = np.zeros((height * downsample, width * downsample), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(height, downsample, width, downsample).any(axis=(1, 3)), dtype=np.bool_)


def keeping(image: Image.Image, known: NDArray[np.bool_], downsample: int) -> Finishing:
    """Puts the picture's own pixels back over the cells [h, w] that are known."""
    mask = Image.fromarray(np.kron(known, np.ones((downsample, downsample))).astype(np.uint8) * 255)
    return lambda drawn: Image.composite(image, drawn, mask)


def pasted(image: Image.Image, side: str) -> Finishing:
    """Puts the picture back where it lies in a drawing that grew on its `side`: left, right, top or bottom."""

    def finish(drawn: Image.Image) -> Image.Image:
        left = drawn.width - image.width if side == "left" else 0
        top = drawn.height - image.height if side == "top" else 0
        result = drawn.copy()
        result.paste(image, (left, top))
        return result

    return finish


def _flatten(image: Image.Image) -> Image.Image:
    return _on(image, 255).convert("RGB")


def _on(image: Image.Image, shade: int) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (shade, shade, shade, 255))
        ground.alpha_composite(rgba)
        return ground
    return image
