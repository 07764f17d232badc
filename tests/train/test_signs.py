"""Laws of the signs: names are of known concepts, what a line encloses is filled, colours are the thing's, and signs are shown
to be recognized only. Signs are drawn here; no package is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmada_lite.train import shards
from mmada_lite.train.data import pool, signs
from mmada_lite.train.data.concepts import CONCEPT_NAMES
from mmada_lite.train.data.sources import STYLES, IconSet, styles
from mmada_lite.train.judge import PLAIN_CELL, Judge, JudgeSettings, compose_grown, train_judge
from mmada_lite.train.recipe import VQ_CONFIG
from mmada_lite.train.vq import MagViT

SIDE = 24
RED, BLUE = (200, 20, 20, 255), (10, 20, 220, 255)


def ring(tone: int = 0) -> np.ndarray:
    """A square line of that tone, with nothing in it and nothing around it."""
    sign = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    sign[6:18, 6:18] = (tone, tone, tone, 255)
    sign[8:16, 8:16] = 0
    return sign


def thing(colour: tuple[int, int, int, int]) -> np.ndarray:
    icon = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    icon[4:20, 4:20] = colour
    return icon


def icons(colour: tuple[int, int, int, int], sets: int = 1) -> np.ndarray:
    return np.broadcast_to(thing(colour), (sets, len(CONCEPT_NAMES), SIDE, SIDE, 4)).copy()


def test_signs_name_known_concepts() -> None:
    assert set(signs.SIGNS) == {style.name for style in styles("sign")}
    for name in signs.SIGNS:
        assert set(signs.sign_names(name)) <= set(CONCEPT_NAMES)
    assert set(signs.OUTLINED) < set(signs.SIGNS)
    assert not any("SA" in style.licence for style in styles("sign"))
    assert not set(signs.SIGNS) & {style.name for role in ("train", "validation", "test") for style in styles(role)}


def test_what_a_line_encloses_is_filled() -> None:
    painted = signs.paint_sign(ring(), thing(RED), True)
    assert painted[12, 12].tolist() == list(RED)
    assert painted[7, 7].tolist() == [signs.LINE] * 3 + [255]
    assert painted[0, 0, 3] == painted[5, 12, 3] == 0
    assert signs.enclosed(ring()[..., 3]).sum() == 12 * 12


def test_a_line_with_a_gap_encloses_nothing() -> None:
    open_ring = ring()
    open_ring[12, 6:8] = 0
    assert signs.enclosed(open_ring[..., 3]).sum() == 12 * 12 - 8 * 8 - 2


def test_bright_parts_of_an_outlined_sign_take_the_colour() -> None:
    assert signs.paint_sign(ring(255), thing(RED), True)[7, 7].tolist() == list(RED)


def test_a_silhouette_takes_the_colour_and_keeps_its_holes() -> None:
    painted = signs.paint_sign(ring(), thing(BLUE), False)
    assert painted[7, 7].tolist() == list(BLUE)
    assert painted[12, 12, 3] == 0


def test_a_concept_without_a_sign_borrows_an_icon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_set(self: IconSet, cache: Path, style: object) -> None:
        self.style = style  # type: ignore[assignment]

    monkeypatch.setattr(IconSet, "__init__", open_set)
    monkeypatch.setattr(IconSet, "render", lambda self, name, size=96: ring())
    coloured = {"first": icons(RED)[0], "second": icons(BLUE)[0]}
    rendered = signs.render_signs(tmp_path, coloured)
    assert set(rendered) == set(signs.SIGNS)
    lacking = CONCEPT_NAMES.index("tulip")
    assert "tulip" not in signs.sign_names("tabler")
    number = [style.name for style in styles("sign")].index("tabler")
    assert (rendered["tabler"][lacking] == thing((RED, BLUE)[number % 2])).all()
    assert (rendered["tabler"][CONCEPT_NAMES.index("apple")] != thing((RED, BLUE)[number % 2])).any()


def test_signs_are_recognized_and_never_drawn_like(tmp_path: Path) -> None:
    middles: dict[bool, list[np.ndarray]] = {True: [], False: []}
    rng = np.random.default_rng(0)
    for number in range(60):
        tidy = number % 2 == 0
        picture, *_ = shards._single(icons(RED), tidy, rng, signs=icons(BLUE))
        middles[tidy].append(picture[28:36, 28:36].reshape(-1, 3).astype(int).mean(0))
    bluer = {tidy: sum(p[2] > p[0] for p in colours) for tidy, colours in middles.items()}
    assert bluer[True] == 0
    assert 3 <= bluer[False] <= 20


def test_the_pool_without_signs_is_what_it_was(tmp_path: Path) -> None:
    model = MagViT(VQ_CONFIG).eval()
    shards.write_shard(tmp_path / "a.npz", "scene", icons(RED), model, 4, 1)
    shards.write_shard(tmp_path / "b.npz", "scene", icons(RED), model, 4, 1, icons(BLUE))
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert all((a[name] == b[name]).all() for name in pool.FIELDS)


@pytest.mark.parametrize("decoded", [False, True])
def test_a_grown_picture_holds_the_whole_thing_at_two_thirds(decoded: bool) -> None:
    rng = np.random.default_rng(1)
    model = MagViT(VQ_CONFIG).eval() if decoded else None
    pictures, labels = compose_grown(icons(RED), 3, rng, PLAIN_CELL, model)
    assert pictures.shape == (3, 64, 64, 3)
    assert labels.shape == (3,)
    if not decoded:
        red = (np.abs(pictures.astype(int) - RED[:3]).sum(-1) < 60) & (pictures[..., 0] > 150)
        assert 0.5 * (64 * 0.9 * 16 / 24) ** 2 < red[0].sum() * 1.5**2 < 1.5 * (64 * 0.9 * 16 / 24) ** 2


@pytest.mark.slow
def test_the_judge_learns_from_icons_and_signs() -> None:
    torch.manual_seed(0)
    model = MagViT(VQ_CONFIG).eval()
    judge = train_judge(icons(RED), model, JudgeSettings(pictures=24, steps=2, batch=4), icons(BLUE, 2))
    assert isinstance(judge, Judge)
    assert judge.classify(np.zeros((2, 64, 64, 3), dtype=np.uint8)).shape == (2,)
    assert len(STYLES) >= 17
