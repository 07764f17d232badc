"""Icons redrawn: the laws of train/data/restyle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from mmada_lite.train.data import restyle as module
from mmada_lite.train.data.pictures import PLAIN, prepare
from mmada_lite.train.data.restyle import restyle

STEPS = [
    name for name in vars(module) if name.startswith("_") and not name.startswith("__") and callable(getattr(module, name))
]


def disc(side: int = 48) -> NDArray[np.uint8]:
    """A disc whose left half is red and whose right half is blue, darker towards its foot, on nothing."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    icon = np.zeros((side, side, 4), dtype=np.uint8)
    icon[..., 0], icon[..., 2] = np.where(x < 0, 220, 10), np.where(x < 0, 10, 220)
    icon[..., :3] = icon[..., :3] * np.linspace(1.0, 0.4, side)[:, None, None]
    icon[..., 3] = np.where(np.hypot(y, x) < side / 3, 255, 0)
    return icon


def test_same_generator_same_icon_and_the_source_stays() -> None:
    icon = disc()
    before = icon.copy()
    first, second = (restyle(icon, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(icon, before)
    assert first.shape == icon.shape
    assert first.dtype == np.uint8


def test_most_of_the_thing_stays() -> None:
    icon, rng = disc(), np.random.default_rng(0)
    covered = [(restyle(icon, rng)[..., 3] > 127).mean() / (icon[..., 3] > 127).mean() for _ in range(60)]
    assert min(covered) > 0.5
    assert max(covered) < 2.2
    assert len({round(c, 2) for c in covered}) > 10  # and it is not one and the same


@pytest.mark.parametrize("name", STEPS)
def test_every_step_keeps_size_and_changes_something(name: str) -> None:
    from PIL import Image

    picture = Image.fromarray(disc())
    restyled = getattr(module, name)(picture, np.random.default_rng(5))
    assert restyled.size == picture.size
    assert restyled.mode == "RGBA"
    over = [Image.alpha_composite(Image.new("RGBA", p.size, "white"), p) for p in (picture, restyled)]
    assert np.abs(np.asarray(over[0]).astype(int) - np.asarray(over[1])).max() > 8


def test_outline_is_dark_and_outside() -> None:
    from PIL import Image

    icon = disc()
    outlined = np.asarray(module._outline(Image.fromarray(icon), np.random.default_rng(1)))
    grown = (outlined[..., 3] > 200) & (icon[..., 3] == 0)
    assert grown.any()
    assert np.median(outlined[grown][:, :3].max(axis=1)) < 128


def test_no_restyle_draws_nothing_from_the_generator() -> None:
    """Pools that were made without it are made again to the bit."""
    first, second = np.random.default_rng(2), np.random.default_rng(2)
    prepare(disc(), first, PLAIN, 32)
    prepare(disc(), second, replace(PLAIN, restyle=0.0), 32)
    assert first.random() == second.random()
    changed, _ = prepare(disc(), np.random.default_rng(2), replace(PLAIN, restyle=1.0), 32)
    assert not np.array_equal(changed, prepare(disc(), np.random.default_rng(2), PLAIN, 32)[0])
