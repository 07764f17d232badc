"""Odd pictures as files, of which every host must make the same codes, and every pillow the same bytes."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WIDTHS, _HEIGHTS = (1, 1, 300, 64, 64, 83, 108, 37, 7, 200, 2, 513), (1, 300, 1, 64, 65, 141, 234, 29, 499, 63, 3, 90)
SQUARE = 64  # pixels of the packaged model's pictures


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _colours(width: int, height: int, channels: int, seed: int) -> NDArray[np.uint8]:
    """Waves of colour with noise over them, as a photo has them."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 60) + y / rng.uniform(3, 60) + rng.uniform(0, 6)) for _ in range(channels)]
    noise = rng.integers(-20, 21, (height, width, channels))
    return np.clip(128 + 110 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def odd_pictures() -> Iterator[tuple[str, bytes]]:
    """(name, file): sizes, modes, depths and EXIF marks, in formats that lose nothing, and in JPEG."""
    for number, (width, height) in enumerate(zip(_WIDTHS, _HEIGHTS, strict=True)):
        rgb = Image.fromarray(_colours(width, height, 3, number))
        clear = Image.fromarray(_colours(width, height, 4, number + 50))
        yield f"rgb {width}x{height}", _file(rgb, ("PNG", "BMP", "TIFF", "PPM")[number % 4])
        yield f"rgba {width}x{height}", _file(clear, ("PNG", "TIFF", "WEBP")[number % 3], **{"lossless": True, "exact": True})
    wide, tall = _colours(150, 70, 4, 100), _colours(60, 170, 4, 101)
    for name, colours in (("wide", wide), ("tall", tall)):
        rgb, grey = Image.fromarray(np.ascontiguousarray(colours[..., :3])), np.ascontiguousarray(colours[..., 0])
        palette = rgb.convert("P", palette=Image.Palette.WEB, dither=Image.Dither.NONE)
        yield f"palette {name}", _file(palette, "PNG")
        yield f"palette, a colour clear {name}", _file(palette, "PNG", transparency=palette.getpixel((5, 5)))
        yield f"palette, shades of clear {name}", _file(palette, "PNG", transparency=bytes(range(256)))
        yield f"gif {name}", _file(palette, "GIF")
        yield f"grey {name}", _file(Image.fromarray(grey), "PNG")
        yield f"grey and alpha {name}", _file(Image.fromarray(colours).convert("LA"), "PNG")
        yield f"flags {name}", _file(Image.fromarray(grey > 99), "TIFF")
        yield f"rgb, a colour clear {name}", _file(rgb, "PNG", transparency=rgb.getpixel((9, 9)))
        yield f"cmyk {name}", _file(Image.fromarray(colours, "CMYK"), "TIFF")
        yield f"jpeg {name}", _file(rgb, "JPEG", quality=90, subsampling=0)
        deep = Image.fromarray(grey.astype(np.uint16) * 257 - np.uint16(3) * (grey > 0))
        yield f"16 bits, png {name}", _file(deep, "PNG")
        yield f"16 bits, tiff {name}", _file(deep, "TIFF")
        yield f"floats {name}", _file(Image.fromarray(grey.astype(np.float32) / np.float32(255)), "TIFF")
    for mark in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = mark
        yield f"exif {mark}", _file(Image.fromarray(np.ascontiguousarray(wide[..., :3])), ("PNG", "JPEG")[mark % 2], exif=exif)
    broken = _file(Image.fromarray(np.ascontiguousarray(tall[..., :3])), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    yield "exif that is damaged", broken
    yield "progressive jpeg", _file(Image.fromarray(np.ascontiguousarray(tall[..., :3])), "JPEG", progressive=True, quality=80)
    yield "tga", _file(Image.fromarray(wide), "TGA")
