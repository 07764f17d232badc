"""Pictures of the C++ host against Python's: the same bytes of every size, the same masks, and the same are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_host import Host, build
from numpy.typing import NDArray
from odd_pictures import odd_pictures
from PIL import Image

import mmada_lite
from mmada_lite import Error, images

SIDE = 64
ODD = [(1, 1), (1, 300), (300, 1), (64, 64), (64, 65), (128, 64), (83, 141), (108, 234), (37, 29), (7, 499)]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    running = Host(build(Path(__file__).parent / "host.cpp"))
    yield running
    assert running.close() == 0


def raster(array: NDArray[Any]) -> dict[str, Any]:
    return {"width": array.shape[1], "height": array.shape[0], "bytes": array.reshape(-1).tolist()}


def sizes() -> list[tuple[int, int]]:
    return [*ODD, *(tuple(pair) for pair in np.random.default_rng(7).integers(1, 200, (50, 2)).tolist())]


def test_pictures_are_fitted_to_the_same_bytes(host: Host) -> None:
    rng = np.random.default_rng(8)
    for width, height in sizes():
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for how in ("crop", "squash"):
            found = host.call("fitted", picture=raster(array), side=SIDE, **({"squash": True} if how == "squash" else {}))
            assert bytes(found["bytes"]) == images.fit(Image.fromarray(array), SIDE, how).tobytes(), (width, height, how)


def test_odd_pictures_have_the_same_codes(host: Host) -> None:
    """As Python reads their files, since the host takes pixels."""
    model = mmada_lite.load(device="cpu", threads=1)
    host.call("load", folder=str(model.bundle.path), threads=1)
    for name, file in odd_pictures():
        pixels = raster(np.asarray(images.open_picture(file)))
        for how, squash in (("crop", {}), ("squash", {"squash": True})):
            square = {"width": SIDE, "height": SIDE, "bytes": host.call("fitted", picture=pixels, side=SIDE, **squash)["bytes"]}
            found = host.call("codes_of", picture=square)["codes"]
            assert found == model.codes_of(file, how).reshape(-1).tolist(), (name, how)


def test_masks_lose_nothing_and_cover_the_same_cells(host: Host) -> None:
    rng = np.random.default_rng(9)
    for width, height in sizes():
        mask = rng.random((height, width)) < 0.002
        mask[rng.integers(height), rng.integers(width)] = True
        found = host.call("fitted_mask", picture=raster(mask.astype(np.uint8) * 255), side=SIDE)
        assert bytes(found["bytes"]) == (images.fit_mask(mask, SIDE) * np.uint8(255)).tobytes(), (width, height)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (20_000, 1, 3), (1, 20_000, 3), (15_700, 1, 3), (15_600, 1, 3)])
def test_the_same_rasters_are_refused(host: Host, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype=np.uint8)
    try:
        images.fit(images.open_picture(array), SIDE)
    except Error:
        assert "pixels" in host.call("fitted", picture=raster(array), side=SIDE)["error"]
    else:
        assert shape == (15_600, 1, 3)
        assert len(host.call("fitted", picture=raster(array), side=SIDE)["bytes"]) == 3 * SIDE * SIDE
