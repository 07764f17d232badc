"""Icons redrawn in the manner of sets that are not there: outlined, flat, with lines inside, in two colours, sheared, blurred,
cut. Seven sets of icons are soon learned by heart; what is named must not hang on how a set draws. Pure functions of an RGBA
picture and a numpy generator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

OUTLINE = (1 / 64, 1 / 18)  # width of a line around the icon, as a share of its side
FLAT = (2, 7)  # colours of a flat icon, least and one more than most
BLUR = (1 / 96, 1 / 28)
CUT = (0.15, 0.4)  # side of a piece that is cut away


def restyle(icon: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square RGBA icon [S, S, 4] with some of the changes of this module, each by its own chance. Returns [S, S, 4]."""
    picture = Image.fromarray(icon)
    steps = (
        (_shear, 0.4),
        (_flat, 0.35),
        (_lines, 0.3),
        (_two_colours, 0.12),
        (_gamma, 0.5),
        (_outline, 0.35),
        (_blur, 0.2),
        (_cut, 0.15),
    )
    for step, chance in steps:
        if rng.random() < chance:
            picture = step(picture, rng)
    return np.asarray(picture, dtype=np.uint8)


def _shear(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lean and squeeze about the middle."""
    lean, side = rng.uniform(-0.25, 0.25, 2), picture.width
    across, down = np.exp(rng.uniform(-0.2, 0.2, 2))
    middle = side / 2
    matrix = (across, lean[0], middle * (1 - across - lean[0]), lean[1], down, middle * (1 - lean[1] - down))
    moved = picture.convert("RGBa").transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return moved.convert("RGBA")


def _flat(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Few colours, without shades."""
    smooth = picture.convert("RGB").filter(ImageFilter.MedianFilter(3))
    few = smooth.quantize(int(rng.integers(*FLAT)), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    few.putalpha(picture.getchannel("A"))
    return few


def _lines(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark lines where colours meet inside the icon."""
    grey = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(picture.width / 100)), dtype=np.float32)
    down, across = np.gradient(grey)
    strength = np.clip(np.hypot(down, across) / rng.uniform(8.0, 24.0), 0, 1)[..., None]
    pixels = np.asarray(picture, dtype=np.float32).copy()
    pixels[..., :3] *= 1 - strength * rng.uniform(0.6, 1.0)
    return Image.fromarray(pixels.astype(np.uint8))


def _two_colours(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shades between a dark and a light colour, for all others."""
    ends = np.sort(rng.uniform(0, 255, (2, 3)), axis=0)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    pixels = np.asarray(picture).copy()
    pixels[..., :3] = (ends[0] * (1 - grey) + ends[1] * grey).astype(np.uint8)
    return Image.fromarray(pixels)


def _gamma(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another curve for each channel."""
    powers = np.exp(rng.normal(0.0, 0.2) + rng.normal(0.0, 0.12, 3))
    pixels = np.asarray(picture).copy()
    pixels[..., :3] = np.rint(255 * (pixels[..., :3] / 255.0) ** powers).astype(np.uint8)
    return Image.fromarray(pixels)


def _outline(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A dark line around the icon, which grows by it."""
    width = max(1, round(picture.width * rng.uniform(*OUTLINE)))
    side = picture.width + 2 * width
    wide = Image.new("RGBA", (side, side))
    wide.paste(picture, (width, width))
    around = wide.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1))
    tone = tuple(int(c) for c in rng.uniform(0, 60, 3))
    line = Image.new("RGBA", wide.size, (*tone, 0))
    line.putalpha(around)
    return Image.alpha_composite(line, wide).resize(picture.size, Image.Resampling.BILINEAR)


def _blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    soft = picture.convert("RGBa").filter(ImageFilter.GaussianBlur(picture.width * rng.uniform(*BLUR)))
    return soft.convert("RGBA")


def _cut(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A piece is missing."""
    side = round(picture.width * rng.uniform(*CUT))
    left, top = (int(n) for n in rng.integers(0, picture.width - side, 2))
    piece = Image.new("L", picture.size, 255)
    piece.paste(0, (left, top, left + side, top + side))
    cut = picture.copy()
    cut.putalpha(ImageChops.multiply(picture.getchannel("A"), piece))
    return cut
