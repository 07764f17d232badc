"""Laws of pictures of several things: each lies in its cell, captions and thoughts say the same, and the split holds."""

import numpy as np
import pytest
from toys import discs, occupied

from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS, SMALL
from mmada_lite.train.data.layouts import Layout, cells
from mmada_lite.train.data.pictures import Augmentation, background_of
from mmada_lite.train.data.scenes import (
    CELLS,
    GRIDS,
    KINDS,
    RELATIONS,
    compose_layout,
    draw_layout,
    drawing_thought,
    layout_held_out,
    list_question,
    pair_caption,
    relation_caption,
    scene_question,
    scene_thought,
)
from mmada_lite.train.data.thoughts import answer_of, split_thought
from mmada_lite.train.shards import TIDY_CELL, WILD_CELL

STILL = Augmentation((0.9, 0.9), 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_each_thing_lies_in_its_cell(grid: tuple[int, int]) -> None:
    icons, rng = discs(2), np.random.default_rng(0)
    for how in (STILL, TIDY_CELL, WILD_CELL):
        for n in range(40):
            layout = draw_layout(grid, n % 2 == 0, rng)
            colour = ("yellow", "white", "pink", "white")[n % 4]  # far from the tones of the discs
            picture = compose_layout(layout, icons, colour, rng, how)
            assert picture.shape == (64, 64, 3)
            assert occupied(picture, *grid) == [name is not None for name in layout.names], (layout, colour)
            assert how is WILD_CELL or background_of(picture) == colour


def test_each_cell_shows_its_own_thing() -> None:
    """Icons of plain tones, so that the middle of a cell says which thing it is."""
    tones = np.random.default_rng(1).integers(0, 256, size=(len(CONCEPTS), 3))
    icons = np.full((1, len(CONCEPTS), 96, 96, 4), 255, np.uint8)
    icons[0, ..., :3] = tones[:, None, None]
    rng = np.random.default_rng(2)
    for grid in GRIDS:
        layout = draw_layout(grid, False, rng)
        picture = compose_layout(layout, icons, "white", rng, STILL)
        for cell, name in layout.named:
            part = cells(picture, *grid)[cell]
            assert np.abs(part[part.shape[0] // 2, part.shape[1] // 2] - tones[NUMBERS[name]]).max() <= 1


def test_an_empty_layout_is_background() -> None:
    picture = compose_layout(Layout(2, 2, (None,) * 4), discs(), "green", np.random.default_rng(3), STILL)
    assert background_of(picture) == "green"
    assert (picture == picture[0, 0]).all()


def test_layouts_stay_on_their_side_of_the_split() -> None:
    rng = np.random.default_rng(4)
    small = {CONCEPT_NAMES[n] for n in SMALL}
    for grid in GRIDS:
        for held_out in (True, False):
            for _ in range(400):
                layout = draw_layout(grid, held_out, rng)
                assert (layout.rows, layout.columns) == grid
                assert layout_held_out(layout) == held_out
                assert {name for _, name in layout.named} <= small
                assert layout.named
                assert grid == (2, 2) or len({name for _, name in layout.named}) == 2
    for _ in range(200):
        two = draw_layout((1, 2), True, rng)
        assert layout_held_out(Layout(1, 2, two.names[::-1]))  # a pair is held out in both orders, side by side
        assert layout_held_out(Layout(2, 1, two.names))  # and one above the other


def test_captions_and_thoughts_of_relations_agree() -> None:
    layout = Layout(1, 2, ("cat", "apple"))
    assert relation_caption(layout, "left of", "orange") == "a cat left of an apple on an orange background"
    assert relation_caption(layout, "right of", None) == "an apple right of a cat"
    assert drawing_thought(layout, "orange") == "left cat, right apple, background orange"
    assert relation_caption(Layout(2, 1, ("cat", "apple")), "below", "red") == "an apple below a cat on a red background"
    rng = np.random.default_rng(5)
    for n in range(400):
        layout, colour = draw_layout(GRIDS[1 + n % 2], False, rng), COLOURS[n % len(COLOURS)]
        caption, thought = pair_caption(layout, colour, rng), drawing_thought(layout, colour)
        (relation,) = [r for r in RELATIONS if f" {r} " in caption]
        rows, columns, own = RELATIONS[relation]
        assert (rows, columns) == (layout.rows, layout.columns)
        first, second = (part.split(" on a")[0] for part in caption.split(f" {relation} "))
        phrases = [CONCEPTS[NUMBERS[str(name)]].phrase for name in layout.names]
        assert [first, second] == (phrases if own == 0 else phrases[::-1])
        by_place = dict(part.split(" ", 1) for part in thought.split(", "))
        assert by_place.pop("background") == colour
        assert list(by_place.values()) == list(layout.names)
        assert list(by_place) == (["left", "right"] if columns == 2 else ["top", "bottom"])
    assert drawing_thought(Layout(1, 1, ("sun",)), "blue") == "middle sun, background blue"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_layout(kind: str) -> None:
    rng, exchanges = np.random.default_rng(6), 0
    for _ in range(300):
        layout, colour = draw_layout((2, 2), False, rng), COLOURS[rng.integers(len(COLOURS))]
        exchange = scene_question(layout, colour, kind, rng)
        if exchange is None:
            continue
        exchanges += 1
        question, response = exchange
        answer, names = answer_of(response), [name for _, name in layout.named]
        if kind == "background":
            assert response == colour
            continue
        thought = split_thought(response)
        assert thought is not None
        assert thought.thought == scene_thought(layout) == list_question(layout)[1]
        counts = {CONCEPTS[NUMBERS[name]].plural: names.count(name) for name in CONCEPT_NAMES}
        if kind == "count":
            assert int(answer) == counts[question.removeprefix("how many ").removesuffix(" are there?")]
        elif kind == "all":
            assert int(answer) == len(names)
        elif kind == "cell":
            there = layout.names[CELLS.index(question.removeprefix("what is at the ").removesuffix("?"))]
            assert answer == (CONCEPTS[NUMBERS[there]].phrase if there else "nothing")
        elif kind == "position":
            name = question.removeprefix("where is the ").removesuffix("?")
            assert names.count(name) == 1
            assert layout.names[CELLS.index(answer)] == name
        else:
            first, second = question.removeprefix("are there more ").removesuffix("?").split(" or ")
            more = counts[first] - counts[second]
            assert answer == ("as many" if more == 0 else first if more > 0 else second)
    assert exchanges > 100
