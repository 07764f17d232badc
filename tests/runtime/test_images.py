"""Pictures in and out: the recorded laws of resizing and rounding, modes and their ranges, masks, and what is no picture.

It needs numpy, pillow and safetensors alone, so that it runs on the lowest and on the newest pillow (.ci/run)."""

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pictures import noise, png, saved
from numpy.typing import NDArray
from odd_pictures import SQUARE, odd_pictures
from PIL import Image
from safetensors.numpy import load_file

from mmada_lite import Error, images

RECORDED = Path(__file__).parents[1] / "golden" / "image"
RAMP = (np.arange(1200, dtype=np.uint16) * 54).reshape(30, 40)  # 0 to 64,746
EIGHT = np.rint(RAMP / 257)


def grey(source: images.Picture) -> NDArray[np.uint8]:
    """The first channel of a picture that is grey all over."""
    pixels = np.asarray(images.open_picture(source))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


# ---- resizing ----


def test_recorded_resizing_and_rounding() -> None:
    files = {Path(entry["file"]).stem: entry["file"] for entry in json.loads((RECORDED / "case.json").read_text())["images"]}
    recorded = load_file(RECORDED / "expected.safetensors")
    assert len(recorded) > 10
    for key, expected in recorded.items():
        stem, resize, side = key.rsplit(".", 2)
        picture = images.open_picture(RECORDED / files[stem])
        fitted = images.fit(picture, int(side), "squash" if resize == "squash" else "crop")
        pixels = images.to_pixels(fitted)[0]
        if resize == "transform_nonorm":
            pixels = np.asarray(fitted, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        assert np.abs(pixels - expected).max() <= 1e-6, key
    rounding = load_file(RECORDED / "to_uint8.safetensors")
    assert np.array_equal(images.to_bytes(rounding["decoded"]), rounding["uint8_hwc"])


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def one_way(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The law of docs/bundle.md for the rows of an array [H, W, 3], in whole numbers."""
    length = array.shape[0]
    if length == size:
        return array
    scale = length / size
    wide = max(scale, 1.0)
    out = np.empty((size, *array.shape[1:]), dtype=np.uint8)
    for place in range(size):
        centre = (place + 0.5) * scale
        near = np.arange(max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), length))
        weights = cubic((near - centre + 0.5) * (1 / wide))
        weights = weights / sum(weights.tolist()) * 2**22
        fixed = np.trunc(weights + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
        total = np.tensordot(fixed, array[near].astype(np.int64), 1) + 2**21
        out[place] = np.clip(total >> 22, 0, 255)
    return out


def by_the_law(array: NDArray[np.uint8], side: int, how: str) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    other = side if how == "squash" else int(side * max(height, width) / min(height, width))
    to_width, to_height = (side, other) if width <= height else (other, side)
    columns = lambda array: one_way(array.transpose(1, 0, 2), to_width).transpose(1, 0, 2)  # noqa: E731
    rows = lambda array: one_way(array, to_height)  # noqa: E731
    rows_first = height - to_height > max(0, 2 * (width - to_width))
    scaled = columns(rows(array)) if rows_first else rows(columns(array))
    top, left = round((to_height - side) / 2), round((to_width - side) / 2)
    return scaled[top : top + side, left : left + side]


def test_every_pillow_gives_the_bytes_of_the_law() -> None:
    odd = [(1, 1), (1, 300), (300, 1), (64, 64), (64, 65), (128, 64), (108, 234), (37, 29), (7, 499), (64, 193), (66, 68)]
    for number, (width, height) in enumerate([*odd, *np.random.default_rng(3).integers(1, 250, (50, 2)).tolist()]):
        array = noise(width, height, number)
        for how in ("crop", "squash"):
            fitted = np.asarray(images.fit(Image.fromarray(array), 64, how))
            assert np.array_equal(fitted, by_the_law(array, 64, how)), (width, height, how)


def test_odd_pictures_have_the_recorded_bytes_with_every_pillow() -> None:
    recorded = json.loads((Path(__file__).parent / "recorded" / "odd_pictures.json").read_text())
    found = {}
    for name, file in odd_pictures():
        fitted = [images.fit(images.open_picture(file), SQUARE, how).tobytes() for how in ("crop", "squash")]
        found[name] = [hashlib.sha256(content).hexdigest()[:16] for content in fitted]
    assert len(found) > 60
    assert found == recorded


def test_a_way_to_fit_that_is_none_is_refused() -> None:
    with pytest.raises(Error, match="'pad'; use crop or squash"):
        images.fit(Image.new("RGB", (4, 4)), 4, "pad")  # type: ignore[arg-type]


# ---- modes ----


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N", "I", "F"])
def test_numbers_of_more_than_eight_bits_are_read_by_their_range(mode: str) -> None:
    if mode == "F":
        image = Image.fromarray((RAMP / 65535).astype(np.float32))
    elif mode == "I":
        image = Image.fromarray(RAMP.astype(np.int32))
    else:
        image = Image.frombytes(mode, (40, 30), RAMP.astype({"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")).tobytes())
    assert image.mode == mode
    assert np.array_equal(grey(image), EIGHT)
    assert np.array_equal(images.open_mask(image, (40, 30)), EIGHT >= 128)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_files_of_sixteen_bits(kind: str) -> None:
    image = Image.fromarray(RAMP.astype(np.int32)) if kind == "PPM" else Image.frombytes("I;16", (40, 30), RAMP.tobytes())
    assert np.array_equal(grey(saved(image, kind)), EIGHT)
    dark = Image.fromarray(np.minimum(RAMP, 200).astype(np.int32)) if kind == "PPM" else Image.new("I;16", (40, 30), 200)
    assert grey(saved(dark, kind)).max() == 1  # 200 of 65,535


def test_forty_percent_grey_of_sixteen_bits_is_no_mask() -> None:
    for shade, covered in ((int(0.4 * 65535), False), (int(0.6 * 65535), True)):
        mask = saved(Image.new("I;16", (8, 8), shade))
        if covered:
            assert images.open_mask(mask, (8, 8)).all()
        else:
            with pytest.raises(Error, match="covers nothing"):
                images.open_mask(mask, (8, 8))


def test_a_tiff_of_twelve_bits() -> None:
    """Two numbers in three bytes, 0 and 4,095: the file is the one of 16 bits with another count of bits and rows."""
    stream = bytearray(saved(Image.frombytes("I;16", (4, 4), b"\0\0\xff\x0f" * 8), "TIFF"))
    at = stream.index(struct.pack("<HHI", 258, 3, 1)) + 8
    stream[at : at + 2] = struct.pack("<H", 12)
    strip = stream.index(b"\0\0\xff\x0f" * 4)
    stream[strip : strip + 24] = b"\x00\x0f\xff" * 8
    assert grey(bytes(stream))[0].tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("LAB", (4, 4)), "LAB colours"),
        (Image.fromarray(np.full((4, 4), 255.0, dtype=np.float32)), "floats from 255 to 255; bring them to 0 to 1"),
        (Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "floats from nan to nan"),
        (Image.fromarray(np.full((4, 4), -1, dtype=np.int32)), "whole numbers of 32 bits from -1 to -1"),
        (Image.fromarray(np.full((4, 4), 65536, dtype=np.int32)), "from 65536 to 65536"),
        (Image.new("L", (4, 4), 200).convert("I"), "from 200 to 200, which have no range"),
    ],
)
def test_a_mode_without_a_range_is_refused_by_name(image: Image.Image, said: str) -> None:
    with pytest.raises(Error, match=said):
        images.open_picture(image)


@pytest.mark.parametrize(
    ("mode", "apart"), [("RGB", 0), ("RGBA", 0), ("RGBX", 0), ("RGBa", 0), ("CMYK", 0), ("YCbCr", 3), ("HSV", 7)]
)
def test_modes_of_colour(mode: str, apart: int) -> None:
    array = noise(40, 30)
    image = Image.fromarray(array).convert("RGBA").convert(mode) if mode == "RGBa" else Image.fromarray(array).convert(mode)
    assert np.abs(np.asarray(images.open_picture(image)).astype(int) - array).max() <= apart


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La"])
def test_modes_of_grey(mode: str) -> None:
    image = Image.fromarray(noise(40, 30)).convert("L")
    expected = np.asarray(image.convert("1").convert("L") if mode == "1" else image)
    changed = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    assert np.array_equal(grey(changed), expected)


def test_transparency_is_laid_on_white_in_pictures_and_black_in_masks() -> None:
    red_and_clear = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red_and_clear.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 0)
    palette.info["transparency"] = 0
    with_alpha = Image.new("P", (2, 1), 1)
    with_alpha.putpalette([0, 0, 0, 0, 255, 0, 0, 255], "RGBA")
    with_alpha.putpixel((1, 0), 0)
    keyed = Image.new("RGB", (2, 1), (255, 0, 0))
    keyed.putpixel((1, 0), (0, 0, 0))
    keyed.info["transparency"] = (0, 0, 0)
    for image in (
        red_and_clear,
        red_and_clear.convert("RGBa"),
        palette,
        with_alpha,
        keyed,
        saved(palette),
        saved(palette, "GIF"),
    ):
        assert np.asarray(images.open_picture(image)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    veiled = Image.new("LA", (2, 1), (255, 255))
    veiled.putpixel((1, 0), (255, 100))
    assert images.open_mask(veiled, (2, 1)).tolist() == [[True, False]]
    assert grey(Image.new("LA", (1, 1), (0, 102)))[0, 0] == 153


@pytest.mark.parametrize("depth", [8, 16])
def test_a_grey_that_a_png_calls_clear(depth: int) -> None:
    row = struct.pack(">4B" if depth == 8 else ">4H", *(value * (1 if depth == 8 else 257) for value in (0, 64, 128, 255)))
    clear = struct.pack(">H", 64 if depth == 8 else 64 * 257)
    assert grey(png(depth, 0, 4, 1, b"\0" + row, clear))[0].tolist() == [0, 255, 128, 255]
    assert images.open_mask(png(depth, 0, 4, 1, b"\0" + row, clear), (4, 1)).tolist() == [[False, False, True, True]]


# ---- EXIF ----

UPRIGHT = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False)}


@pytest.mark.parametrize("mark", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_upright(kind: str, mark: int) -> None:
    """From a file, as bytes, as pillow opened it, and where the mark was set in memory."""
    array, exif = noise(6, 4), Image.Exif()
    exif[0x0112], exif[0x010E] = mark, "a picture"
    quarters, mirrored = UPRIGHT[mark]
    expected = np.rot90(array, quarters)
    expected = np.fliplr(expected) if mirrored and quarters % 2 == 0 else np.flipud(expected) if mirrored else expected
    data = saved(Image.fromarray(array), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    held = Image.fromarray(array)
    held.getexif()[0x0112] = mark
    for source in (data, Image.open(io.BytesIO(data)), held):
        assert np.array_equal(np.asarray(images.open_picture(source)), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # when the test itself opens it
def test_a_damaged_exif_block_turns_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    words = struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, 2, 3, b"six\0", 0)  # text where a number belongs
    for block in (b"Exif\0\0" + words, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0"):
        data = saved(Image.fromarray(noise(6, 4)), "JPEG", exif=block)
        assert images.open_picture(data).size == (6, 4)
        assert images.open_picture(Image.open(io.BytesIO(data))).size == (6, 4)
    assert capfd.readouterr() == ("", "")


# ---- arrays ----


def test_arrays_are_pictures() -> None:
    array = noise(6, 4)
    for given in (array, array / 255, (array / 255).astype(np.float32), np.asfortranarray(array), array[::-1][::-1]):
        assert np.array_equal(np.asarray(images.open_picture(given)), array)
    half = images.open_picture(np.full((2, 2, 3), 0.5, dtype=np.float16))
    assert half.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 4), np.uint8), "an array 4 x 4 of uint8"),
        (np.zeros((4, 4, 4), np.uint8), "an array 4 x 4 x 4 of uint8"),
        (np.zeros((3, 4, 4), np.uint8), "an array 3 x 4 x 4"),
        (np.zeros((1, 4, 4, 3), np.uint8), "an array 1 x 4 x 4 x 3"),
        (np.zeros((4, 4, 3), np.int64), "of int64"),
        (np.zeros((4, 4, 3), bool), "of bool"),
        (np.zeros((4, 4, 3), object), "of object"),
        (np.zeros(()), "one number of float64"),
        (np.full((4, 4, 3), 255.0), "floats from 255 to 255; bring them to 0 to 1"),
        (np.full((4, 4, 3), -0.5), "floats from -0.5 to -0.5"),
        (np.full((4, 4, 3), np.nan), "floats from nan to nan"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels, so it shows nothing"),
        (np.broadcast_to(np.uint8(0), (100_000, 100_000, 3)), "100000 x 100000 pixels; scale it below 64,000,000"),
        (np.broadcast_to(np.float32(0), (100_000, 100_000, 3)), "100000 x 100000 pixels"),
    ],
)
def test_other_arrays_are_refused_by_name(array: NDArray[Any], said: str) -> None:
    with pytest.raises(Error, match=said):
        images.open_picture(array)


def test_what_is_no_source_is_refused_by_name() -> None:
    for source, kind in ((None, "NoneType"), (3, "int"), ([[0]], "list"), (object(), "object")):
        with pytest.raises(Error, match=f"not a {kind}"):
            images.open_picture(source)  # type: ignore[arg-type]


# ---- masks ----


def test_masks(tmp_path: Path) -> None:
    mask = Image.new("L", (8, 4))
    mask.paste(255, (0, 0, 3, 4))
    assert images.open_mask(mask, (8, 4)).sum() == 12
    with pytest.raises(Error, match="8 x 4 pixels and the picture 4 x 8"):
        images.open_mask(mask, (4, 8))
    with pytest.raises(Error, match="covers nothing"):
        images.open_mask(Image.new("L", (8, 4)), (8, 4))
    path = tmp_path / "mask.png"
    clear = Image.new("RGBA", (8, 4), (255, 255, 255, 0))
    clear.putpixel((1, 1), (255, 255, 255, 255))
    clear.save(path)
    assert images.open_mask(path, (8, 4)).sum() == 1


def test_arrays_are_masks() -> None:
    flags = np.zeros((4, 8), dtype=bool)
    flags[1, 2] = True
    for array in (
        flags,
        flags * np.uint8(255),
        flags.astype(np.float32),
        np.repeat(flags[..., None] * np.uint8(200), 3, axis=2),
    ):
        assert np.array_equal(images.open_mask(array, (8, 4)), flags)
    with pytest.raises(Error, match="of int64"):
        images.open_mask(flags.astype(np.int64), (8, 4))


def test_no_stroke_of_a_mask_is_lost() -> None:
    """Each single pixel inside the central square covers what it overlaps; at the model's own size nothing changes."""
    for width, height in ((2000, 2000), (451, 300), (300, 451), (65, 64), (30, 40), (64, 64), (1, 5)):
        short, rng = min(width, height), np.random.default_rng(width)
        for _ in range(20):
            x, y = (int(rng.integers((length - short + 1) // 2, (length + short) // 2)) for length in (width, height))
            mask = np.zeros((height, width), dtype=bool)
            mask[y, x] = True
            rows, columns = images.fit_mask(mask, 64).nonzero()
            expected = [(at + 0.5 - (length - short) / 2) * 64 / short for at, length in ((y, height), (x, width))]
            spread = 64 / short / 2 + 2
            assert len(rows), (width, height, x, y)
            assert np.abs(rows + 0.5 - expected[0]).max() <= spread
            assert np.abs(columns + 0.5 - expected[1]).max() <= spread
    mask = np.random.default_rng(0).random((64, 64)) < 0.1
    assert np.array_equal(images.fit_mask(mask, 64), mask)
    line = np.zeros((2000, 2000), dtype=bool)
    line[:, 1003] = True
    assert images.fit_mask(line, 64).sum(axis=0).tolist() == [64 if at == 32 else 0 for at in range(64)]


def test_a_cell_is_touched_by_one_pixel() -> None:
    mask = np.zeros((8, 10), dtype=bool)
    mask[7, 4] = True
    cells = images.cells_under(mask, 4)
    assert cells.shape == (2, 3)
    assert cells.nonzero() == (1, 1)


def test_a_picture_is_put_back_where_it_lay() -> None:
    drawn, given = Image.new("RGB", (10, 8), "black"), Image.new("RGB", (4, 3), "white")
    for side, box in {"left": (6, 0, 10, 3), "right": (0, 0, 4, 3), "top": (0, 5, 4, 8), "bottom": (0, 0, 4, 3)}.items():
        expected = Image.new("RGB", (10, 8), "black")
        expected.paste("white", box)
        assert images.pasted(given, side)(drawn).tobytes() == expected.tobytes()
    known = np.array([[True, False], [False, False]])
    white = Image.new("RGB", (8, 8), "white")
    kept = np.asarray(images.keeping(white, known, 4)(Image.new("RGB", (8, 8), "black")))
    assert (kept[:4, :4] == 255).all()
    assert kept.sum() == 255 * 4 * 4 * 3


def test_pixels_there_and_back() -> None:
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    again = images.to_bytes(images.to_pixels(image))[0].astype(int)
    assert np.abs(again - np.asarray(image)).max() <= 1  # truncation, as in the reference
