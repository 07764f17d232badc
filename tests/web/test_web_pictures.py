"""Pictures in the browser against Python's: the same bytes of every size and transparency, the same masks, the same codes."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from browser import Page
from numpy.typing import NDArray
from odd_pictures import odd_pictures
from PIL import Image

import mmada_lite
from mmada_lite import images

SIDE = 64
ODD = [(1, 1), (1, 300), (300, 1), (64, 64), (64, 65), (128, 64), (83, 141), (108, 234), (37, 29), (7, 499)]
TOOLS = (
    "const {fitted, fittedMask} = await import('./pictures.js');"
    "const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));"
    "const text = ({data}) => btoa(String.fromCharCode(...data));"
)


def held(array: NDArray[Any]) -> str:
    data = base64.b64encode(array.tobytes()).decode()
    return f"{{data: bytes('{data}'), width: {array.shape[1]}, height: {array.shape[0]}}}"


def sizes() -> list[tuple[int, int]]:
    return [*ODD, *(tuple(pair) for pair in np.random.default_rng(7).integers(1, 200, (50, 2)).tolist())]


def test_pictures_are_fitted_to_the_same_bytes(page: Page) -> None:
    rng = np.random.default_rng(8)
    for number, (width, height) in enumerate(sizes()):
        array = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        array[..., 3] |= 255 * (number % 2)  # every second one is opaque
        for how in ("crop", "squash"):
            found = base64.b64decode(page.run(f"{TOOLS} return text(fitted({held(array)}, {SIDE}, '{how}'))"))
            expected = images.fit(images.open_picture(Image.fromarray(array)), SIDE, how).convert("RGBA")
            assert found == expected.tobytes(), (width, height, how)


def test_every_transparency_is_laid_on_white_as_in_python(page: Page) -> None:
    shade, alpha = np.meshgrid(np.arange(256), np.arange(256))
    array = np.stack([shade, shade, shade, alpha], axis=-1).astype(np.uint8)
    script = f"{TOOLS} const flat = fitted({held(array)}, 256).data; return text({{data: flat.filter((_, i) => i % 4 == 0)}})"
    expected = np.asarray(images.open_picture(Image.fromarray(array)))[..., 0]
    assert base64.b64decode(page.run(script)) == expected.tobytes()


def test_masks_lose_nothing_and_cover_the_same_pixels(page: Page) -> None:
    rng = np.random.default_rng(9)
    for width, height in sizes():
        mask = rng.random((height, width)) < 0.002
        mask[rng.integers(height), rng.integers(width)] = True
        found = base64.b64decode(page.run(f"{TOOLS} return text(fittedMask({held(mask.astype(np.uint8))}, {SIDE}))"))
        assert found == images.fit_mask(mask, SIDE).astype(np.uint8).tobytes(), (width, height)


def test_pictures_of_any_size_have_the_same_codes(page: Page, model: mmada_lite.Model) -> None:
    drawn = model.paint("a star on a black background", seed=1).picture
    for size in ((64, 64), (90, 70), (70, 200), (30, 31), (300, 40), (64, 1)):
        picture = drawn.resize(size).convert("RGBA")
        for how in ("crop", "squash"):
            found = page.run(f"{TOOLS} return await model.codesOf({held(np.asarray(picture))}, '{how}')")
            assert found == model.codes_of(picture, how).reshape(-1).tolist(), (size, how)


def test_odd_pictures_have_the_same_codes(page: Page, model: mmada_lite.Model) -> None:
    """From RGBA, as a canvas has it: of files with transparency their own, of the others what Python reads."""
    for name, file in odd_pictures():
        opened = Image.open(io.BytesIO(file))
        pixels = opened if opened.mode == "RGBA" else images.open_picture(file).convert("RGBA")
        for how in ("crop", "squash"):
            found = page.run(f"{TOOLS} return await model.codesOf({held(np.asarray(pixels))}, '{how}')")
            assert found == model.codes_of(file, how).reshape(-1).tolist(), (name, how)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        ("{data: new Uint8Array(7), width: 2, height: 1}", "2 x 1 pixels and holds 7 numbers; give 4"),
        ("{data: new Uint8Array(0), width: 0, height: 4}", "0 x 4 pixels"),
        ("{data: new Uint8Array(4 * 20000), width: 20000, height: 1}", "20000 x 1 pixels is too long to be cut"),
        ("{data: {length: 4e10}, width: 1e5, height: 1e5}", "scale it below 64000000 pixels"),
    ],
)
def test_what_is_no_picture_is_said(page: Page, picture: str, says: str) -> None:
    script = f"{TOOLS} try {{ fitted({picture}, {SIDE}) }} catch (error) {{ return error.message }}"
    assert says in page.run(script)


def test_a_way_to_fit_that_is_none_is_refused(page: Page) -> None:
    pad = f"{TOOLS} try {{ fitted({held(np.zeros((1, 1, 4), np.uint8))}, 4, 'pad') }} catch (error) {{ return error.message }}"
    assert page.run(pad) == 'no way to fit a picture is called "pad"; use crop or squash'
