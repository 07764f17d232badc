"""Pictures from icons: augmentation of an RGBA icon and compositing on a named background colour, 64 x 64 RGB; and the rule
that reads the background colour back from pixels. Pure functions of arrays and a numpy generator; knows no files and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.train.data.concepts import BACKGROUNDS, COLOURS
from mmada_lite.train.data.restyle import restyle

RESOLUTION = 64
CONTRAST = 90.0  # Euclidean distance in sRGB between a background and the icon's edge below which a tone is avoided

Pixels = NDArray[np.uint8]  # [H, W, 3] or [H, W, 4]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far an icon may be changed. Angles in degrees, hue in turns, the rest as fractions."""

    scale: tuple[float, float] = (0.62, 0.95)  # share of the picture's side that the icon's box covers
    shift: float = 0.10
    rotation: float = 12.0
    flip: bool = True
    hue: float = 0.02
    saturation: float = 0.2
    brightness: float = 0.12
    contrast: float = 0.12
    tone: float = 8.0  # standard deviation of the background's tone, in 0..255
    stretch: float = 0.0  # how far width and height may differ, as a share of either
    restyle: float = 0.0  # chance that the icon is redrawn in another manner first (train/data/restyle)


PLAIN = Augmentation((0.82, 0.82), 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0)  # evaluation: centred, untouched


def compose(icon: Pixels, colour: str, rng: np.random.Generator, how: Augmentation, size: int = RESOLUTION) -> Pixels:
    """An augmented icon on a background of the named colour. Returns RGB [size, size, 3]."""
    shape, alpha = prepare(icon, rng, how, size)
    background = choose_tone(shape, 255 * alpha[..., 0], colour, rng) + rng.normal(0.0, 1.0, 3) * how.tone
    mixed = shape * alpha + np.clip(background, 0, 255).astype(np.float32) * (1.0 - alpha)
    picture: Pixels = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return picture


def prepare(
    icon: Pixels, rng: np.random.Generator, how: Augmentation, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An augmented icon without background: colours [size, size, 3] in 0..255 and opacity [size, size, 1] in 0..1."""
    if how.restyle and rng.random() < how.restyle:
        icon = restyle(icon, rng)
    placed = _place(icon, rng, how, size).astype(np.float32)
    return _jitter(placed[..., :3], rng, how), placed[..., 3:] / 255.0


def _place(icon: Pixels, rng: np.random.Generator, how: Augmentation, size: int) -> Pixels:
    """Flip, rotate, scale and shift the icon into an RGBA picture of `size`; one bilinear resampling, straight alpha."""
    picture = Image.fromarray(icon)
    if how.flip and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = size * rng.uniform(*how.scale)
    angle = np.deg2rad(rng.uniform(-how.rotation, how.rotation))
    centre = size / 2 + rng.uniform(-how.shift, how.shift, 2) * size
    ratio = picture.width / side
    across, down = ratio * (1 + rng.uniform(-how.stretch, how.stretch, 2)) if how.stretch else (ratio, ratio)
    a, b, c, d = np.cos(angle) * across, np.sin(angle) * across, -np.sin(angle) * down, np.cos(angle) * down
    middle = picture.width / 2
    matrix = (a, b, middle - a * centre[0] - b * centre[1], c, d, middle - c * centre[0] - d * centre[1])
    premultiplied = picture.convert("RGBa")
    moved = premultiplied.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(moved.convert("RGBA"), dtype=np.uint8)


def _jitter(rgb: NDArray[np.float32], rng: np.random.Generator, how: Augmentation) -> NDArray[np.float32]:
    """Turn the hue, stretch saturation, contrast and brightness of an icon's colours."""
    turn = rng.normal(0.0, 1.0) * how.hue * 2 * np.pi
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = np.cos(turn) * np.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * grey
    amount = 1 + rng.uniform(-how.saturation, how.saturation)
    matrix = (grey + amount * (np.eye(3) - grey)) @ rotation
    contrast = 1 + rng.uniform(-how.contrast, how.contrast)
    shift = rng.uniform(-how.brightness, how.brightness) * 255
    turned = rgb @ matrix.T.astype(np.float32)
    changed: NDArray[np.float32] = np.clip((turned - 128) * np.float32(contrast) + np.float32(128 + shift), 0, 255)
    return changed.astype(np.float32)


def choose_tone(
    rgb: NDArray[np.float32], alpha: NDArray[np.float32], colour: str, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A tone of the named colour that the icon stands out from; where none does, the one that differs most."""
    tones: NDArray[np.float64] = np.asarray(BACKGROUNDS[colour], dtype=np.float64)
    solid = alpha > 127
    if not solid.any():
        return np.array(tones[0])
    distance = np.linalg.norm(tones - rgb[solid].mean(axis=0), axis=1)
    clear = np.flatnonzero(distance > CONTRAST)
    return np.array(tones[rng.choice(clear) if clear.size else distance.argmax()])


def background_tone(picture: Pixels, border: int = 3) -> NDArray[np.float64]:
    """The median of the picture's border pixels, sRGB [3]."""
    frame = np.ones(picture.shape[:2], dtype=bool)
    frame[border:-border, border:-border] = False
    median: NDArray[np.float64] = np.median(picture[frame].reshape(-1, 3).astype(np.float64), axis=0)
    return median


def background_of(picture: Pixels, border: int = 3) -> str:
    """The named colour whose nearest tone is closest to the tone of the background."""
    median = background_tone(picture, border)
    distances = [np.linalg.norm(np.asarray(BACKGROUNDS[name]) - median, axis=1).min() for name in COLOURS]
    return COLOURS[int(np.argmin(distances))]
