"""Pictures in and out: files, arrays and images of any mode to pixels, pixels to codes and back, under laws of resizing and
rounding that are the same with every pillow (docs/bundle.md).

It knows pillow and the two codec sessions. Prompts, canvases and decoding are none of its business.
"""

import io
import logging
import math
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mmada_lite.errors import Error
from mmada_lite.files import is_pointer, pointer_line, require_readable

if TYPE_CHECKING:
    import onnxruntime

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Array = NDArray[Any]
Picture = Image.Image | Path | str | bytes | IO[bytes] | Array
Finishing = Callable[[Image.Image], Image.Image]
Fit = Literal["crop", "squash"]
_LARGEST = 64_000_000  # pixels; above, a picture is more likely an attack than a question
LONGEST_FILE = 8 * _LARGEST  # bytes: four numbers of 16 bits a pixel
_PROGRAMS = ("EPS", "FITS")  # what pillow reads by running a program, or without a bound on its memory
_ORIENTATION = 0x0112  # of EXIF, the one field that is read
_TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # its values -> Image.Transpose
_quiet = threading.RLock()
_log = logging.getLogger("mmada_lite")


def open_picture(source: Picture) -> Image.Image:
    """An RGB picture from a file, bytes, a pillow image or an array [H, W, 3]: turned upright by its EXIF mark, transparency
    laid on white, numbers of 16 bits and floats (0 to 1) brought to 8 bits by their range.

    Raises Error when the file is missing, damaged or no picture, when a mode has no range, and above 64 million pixels.
    """
    return _read(source, 255, "RGB")


def open_mask(source: Picture, size: tuple[int, int]) -> Bools:
    """A mask [H, W], true where a pixel is at least half white: what is to be painted anew. Transparent counts as black.
    Arrays [H, W] will do too, of flags, of uint8 or of floats.

    Raises Error when its size (width, height) is not the picture's, or when it covers nothing.
    """
    mask = np.asarray(_read(source, 0, "L")) >= 128
    if mask.shape[::-1] != size:
        raise Error(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels and the picture {size[0]} x {size[1]}; "
            "make them the same size"
        )
    if not mask.any():
        raise Error("the mask covers nothing; paint white what is to be drawn anew")
    covered: Bools = mask
    return covered


def fit(image: Image.Image, resolution: int, how: Fit = "crop") -> Image.Image:
    """A square picture of `resolution` pixels. "crop": shorter side to resolution (bicubic), then the centre; "squash": both
    sides to resolution whatever the proportions (what the reference does for documents and diagrams)."""
    if how == "squash":
        return _resized(image, (resolution, resolution))
    if how != "crop":
        raise Error(f"no way to fit a picture is called {how!r}; use crop or squash")
    size, (left, top) = _window(image.size, resolution)
    if size[0] * size[1] > _LARGEST:
        raise Error(f"a picture of {image.width} x {image.height} pixels is too long to be cut to a square; crop it first")
    return _resized(image, size).crop((left, top, left + resolution, top + resolution))


def fit_mask(mask: Bools, resolution: int) -> Bools:
    """A mask [H, W] as `fit` crops its picture, by maximum: a pixel is covered when any covered one overlaps it, so that no
    stroke is lost however thin."""
    (width, height), (left, top) = _window(mask.shape[::-1], resolution)
    for length, first in ((height, top), (width, left)):
        edges = np.arange(first, first + resolution + 1) * mask.shape[0]
        spans = zip(edges[:-1] // length, -(-edges[1:] // length), strict=True)
        mask = np.stack([mask[start:stop].any(axis=0) for start, stop in spans]).T
    return mask


def _window(size: tuple[int, ...], resolution: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size (width, height) that a picture is scaled to, and where in it the central square begins (left, top)."""
    short, long = sorted(size)
    other = int(resolution * long / short)
    width, height = (resolution, other) if size[0] <= size[1] else (other, resolution)
    return (width, height), (round((width - resolution) / 2), round((height - resolution) / 2))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic, one direction after the other, bytes between. Rows come first where the height loses more than twice what the
    width loses: pillow 13 does so, earlier ones never do, and a call for each direction is the same with all of them."""
    rows_first = image.height - size[1] > max(0, 2 * (image.width - size[0]))
    between = (image.width, size[1]) if rows_first else (size[0], image.height)
    return image.resize(between, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


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
        return Image.fromarray(to_bytes(pixels)[0])


def cells_under(mask: Bools, downsample: int) -> Bools:
    """Code cells [h, w] that a pixel mask [H, W] touches."""
    height, width = (math.ceil(side / downsample) for side in mask.shape)
    padded = np.zeros((height * downsample, width * downsample), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(height, downsample, width, downsample).any(axis=(1, 3)), dtype=np.bool_)


def keeping(image: Image.Image, known: Bools, downsample: int) -> Finishing:
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


def _read(source: Picture, ground: int, mode: str) -> Image.Image:
    """A picture in 8 bits, upright, on a ground of that shade. Raises Error for whatever is wrong with it."""
    shown = str(source) if isinstance(source, (str, Path)) else "the given bytes" if hasattr(source, "hex") else "the picture"
    name = _short(shown)
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source, flat=mode == "L").convert(mode)
        with ExitStack() as stack:
            stack.enter_context(_silence())
            image = source if isinstance(source, Image.Image) else Image.open(stack.enter_context(_opened(source)))
            _check_size(image.size, name, _most_pixels(image))
            if image.format in _PROGRAMS:
                raise Error(f"{name} is {image.format}, which is not read here; convert it to PNG or JPEG")
            if image.format == "TIFF":
                stack.enter_context(_mute())
            image.load()
            _check_size(image.size, name)  # of icons it is known only now
            upright, flat = _turn(image), _on(_eight_bits(image, name), ground)
            flat = flat if upright is None else flat.transpose(upright)
            return flat if flat.mode == mode else flat.convert(mode)
    except Error:
        raise
    except FileNotFoundError as error:
        raise Error(f"no picture at {name}; check the path") from error
    except PermissionError as error:
        raise Error(f"not allowed to read {name}; check who owns it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Error(f"{name} has far too many pixels; scale it below {_LARGEST:,} pixels") from error
    except UnidentifiedImageError as error:
        raise Error(f"{name} is not a picture that pillow can read; convert it to PNG or JPEG") from error
    except Exception as error:  # damaged files make pillow raise nearly everything that there is
        said = _short("".join(mark if mark.isprintable() else " " for mark in str(error) or type(error).__name__))
        raise Error(f"{name} is not a picture that pillow can read ({said}); convert it to PNG or JPEG") from error


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}..."


@contextmanager
def _silence() -> Iterator[None]:
    """What pillow warns of and logs is not shown, and a warning of far too many pixels raises. One thread at a time: the
    filters of warnings are the process's."""
    log, handler = logging.getLogger("PIL"), logging.NullHandler()
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)


@contextmanager
def _mute() -> Iterator[None]:
    """What libtiff writes to the process's standard error, about files that are damaged, is not shown."""
    kept = -1
    if sys.__stderr__ is not None:  # else 2 was closed, and may be the number of the very file that is read
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            kept = os.dup(2)
            os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        if kept >= 0:
            os.dup2(kept, 2)
            os.close(kept)


def _opened(source: Any) -> IO[bytes]:
    """An open file of a sensible size. Raises Error for a folder, a pipe or a device, without waiting for it."""
    if hasattr(source, "read"):
        source = source.read(LONGEST_FILE + 1)
        if not isinstance(source, bytes):
            raise Error('the open file gives texts; open it with open(path, "rb")')
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) > LONGEST_FILE:
            raise Error(f"the given bytes are more than {LONGEST_FILE:,}; scale the picture below {_LARGEST:,} pixels")
        if is_pointer(bytes(source[:200])):
            raise Error(pointer_line("what was given"))
        return io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise Error(
            f"a picture is a path, bytes, an open file, a pillow image or an array [H, W, 3], not a {type(source).__name__}"
        )
    path = Path(source)
    if not stat.S_ISREG((status := path.stat()).st_mode):
        raise Error(f"{source} is not a picture but a folder, a pipe or a device; give a file, or pipe it in and give -")
    if status.st_size > LONGEST_FILE:
        raise Error(f"{source} has {status.st_size:,} bytes; scale it below {_LARGEST:,} pixels")
    require_readable(path)
    return path.open("rb")


def _check_size(size: tuple[int, ...], name: str, most: int = _LARGEST) -> None:
    if size[0] * size[1] > most:
        raise Error(f"{name} has {size[0]} x {size[1]} pixels; scale it below {most:,} pixels")
    if min(size) < 1:
        raise Error(f"{name} has {size[0]} x {size[1]} pixels, so it shows nothing; give another")


def _most_pixels(image: Image.Image) -> int:
    """Fewer where pillow's decoder holds 32 bits a number, and fewer still where it is written in Python: 3 s a million."""
    tiles = getattr(image, "tile", ())
    if tiles and tiles[0][0] in Image.DECODERS:
        return _LARGEST // 16
    return _LARGEST // 2 if image.format == "JPEG2000" else _LARGEST


def _from_array(array: Array, flat: bool) -> Image.Image:
    """RGB of [H, W, 3] uint8 or floats; with `flat` grey of [H, W] too, which may be flags. Raises Error for other arrays."""
    grey, kind = flat and array.ndim == 2, array.dtype
    shaped = grey or (array.ndim == 3 and array.shape[2] == 3)
    if not shaped or not (kind == np.uint8 or kind.kind == "f" or (grey and kind == np.bool_)):
        shape = " x ".join(map(str, array.shape)) or "one number"
        raise Error(f"an array {shape} of {kind} is no picture; give [height, width, 3] of uint8, or of floats from 0 to 1")
    _check_size(array.shape[1::-1], "the array")
    if kind == np.bool_:
        array = array * np.uint8(255)
    return Image.fromarray(np.ascontiguousarray(_from_floats(array, "the array") if kind.kind == "f" else array))


def _from_floats(array: Array, name: str) -> NDArray[np.uint8]:
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # so written, NaN is refused too
        raise Error(f"{name} holds floats from {low:.4g} to {high:.4g}; bring them to 0 to 1")
    made = np.empty(array.shape, dtype=np.uint8)
    for row, given in zip(made, array, strict=True):  # one by one, to take no memory for all of them as floats
        row[:] = np.rint(np.multiply(given, 255, dtype=np.float32))
    return made


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The picture as it is, but numbers of more than 8 bits brought there by their range: floats are 0 to 1, whole ones 0 to
    65,535 (in TIFF of 12 bits 0 to 4,095), also where pillow holds them in 32. Raises Error for what has no range."""
    if image.mode == "LAB":
        raise Error(f"{name} is in LAB colours, which are not read here; convert it to RGB")
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image), name))
    if not image.mode.startswith("I"):
        return image
    array = np.asarray(image)
    most = 4_095 if getattr(image, "tag_v2", {}).get(258) == (12,) else 65_535
    low, high = int(array.min()), int(array.max())
    eight = image.mode == "I" and 0 < high < 256 and image.format not in ("PNG", "PPM")  # those are 16 bits for sure
    if low < 0 or high > most or eight:
        raise Error(
            f"{name} holds whole numbers of 32 bits from {low} to {high}, which have no range; convert it to 8 or 16 bits"
        )
    grey = Image.fromarray(np.rint(np.arange(most + 1) * (255 / most)).astype(np.uint8)[array])
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray((array != clear) * np.uint8(255)))
    return grey


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright, by its EXIF mark; a block that is damaged says nothing."""
    try:
        return Image.Transpose(_TURNS[image.getexif()[_ORIENTATION]])
    except Exception:  # no block, no such field, a word for a number: pillow raises nearly everything here
        return None


def _on(image: Image.Image, shade: int) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (shade, shade, shade, 255)), rgba)
    return image


def say_if_smaller(given: tuple[int, int], made: tuple[int, int]) -> None:
    """A warning where a drawing shows less than the picture it was made of."""
    if made[0] < given[0] or made[1] < given[1]:
        _log.warning("the drawing is %d x %d pixels and the picture %d x %d: this model draws no larger", *made, *given)
