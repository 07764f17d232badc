"""Pictures of several things: layouts that are drawn at random on each side of a fixed split, their composition from icons, the
thought that lists them, and the questions and captions that need it. Knows no tokens, no files and no models.

    how many cats are there?     <think> top cat, none; bottom cat, dog </think> 2
    a cat right of a car         <think> left car, right cat, background blue </think> and then the picture
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmada_lite.train.data.concepts import BACKGROUNDS, COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS, SMALL
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.pictures import RESOLUTION, Augmentation, Pixels, choose_tone, prepare
from mmada_lite.train.data.texts import Half, held_out, on_side
from mmada_lite.train.data.thoughts import with_thought

CELLS = ("top left", "top right", "bottom left", "bottom right")
GRIDS = ((2, 2), (1, 2), (2, 1))  # rows, columns: four places; left and right; above and below
RELATIONS = {"left of": (1, 2, 0), "right of": (1, 2, 1), "above": (2, 1, 0), "below": (2, 1, 1)}  # grid, cell of the first
KINDS = ("count", "position", "compare", "cell", "background", "all")


def layout_held_out(layout: Layout) -> bool:
    """Whether a layout is kept for evaluation."""
    return held_out(layout_text(layout))


def layout_text(layout: Layout) -> str:
    """The text that decides on which side of the split a layout lies: of two things side by side whatever their order."""
    names = [name or "none" for name in layout.names]
    return " + ".join(names if len(names) == 4 else sorted(names))


def draw_layout(
    grid: tuple[int, int],
    held_out: bool,
    rng: np.random.Generator,
    half: Half | None = None,
    among: Sequence[int] = SMALL,
) -> Layout:
    """A layout of the wanted side of the split, or of a half of what is held out: two different things side by side, out of
    `among`, or one to four in four places.

    In four places names come twice more often than by chance, so that there is something to count.
    """
    while True:
        names: list[str | None]
        if grid == (2, 2):
            names = _four(rng)
        else:
            first, second = rng.choice(len(among), size=2, replace=False)
            names = [CONCEPT_NAMES[among[first]], CONCEPT_NAMES[among[second]]]
        layout = Layout(*grid, tuple(names))
        if on_side(layout_text(layout), held_out, half):
            return layout


def _four(rng: np.random.Generator) -> list[str | None]:
    filled = rng.random(4) < rng.choice((0.5, 0.75, 1.0))
    filled[rng.integers(4)] = True
    few = [CONCEPT_NAMES[SMALL[n]] for n in rng.choice(len(SMALL), size=rng.integers(1, 5), replace=False)]
    return [few[rng.integers(len(few))] if full else None for full in filled]


def compose_layout(
    layout: Layout, icons: NDArray[np.uint8], colour: str, rng: np.random.Generator, how: Augmentation
) -> Pixels:
    """A picture of the layout [64, 64, 3], every thing in a style of its own; icons [styles, concepts, S, S, 4].

    All lie on one tone of the background, the one that most of them stand out from.
    """
    side = RESOLUTION // max(layout.rows, layout.columns)
    placed = []
    for cell, name in layout.named:
        icon = icons[rng.integers(len(icons)), NUMBERS[name]]
        rgb, alpha = prepare(icon, rng, how, side)
        top = (cell // layout.columns) * RESOLUTION // layout.rows + (RESOLUTION // layout.rows - side) // 2
        left = (cell % layout.columns) * RESOLUTION // layout.columns + (RESOLUTION // layout.columns - side) // 2
        placed.append((rgb, alpha, slice(top, top + side), slice(left, left + side)))
    tones = [choose_tone(rgb, 255 * alpha[..., 0], colour, rng) for rgb, alpha, _, _ in placed]
    tone = tones[rng.integers(len(tones))] if tones else np.asarray(BACKGROUNDS[colour][0], dtype=np.float64)
    picture = np.broadcast_to(tone + rng.normal(0.0, 1.0, 3) * how.tone, (RESOLUTION, RESOLUTION, 3)).clip(0, 255).copy()
    for rgb, alpha, rows, columns in placed:
        picture[rows, columns] = rgb * alpha + picture[rows, columns] * (1 - alpha)
    rounded: Pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return rounded


def scene_thought(layout: Layout) -> str:
    """What lies where in four places, row by row."""
    a, b, c, d = (name or "none" for name in layout.names)
    return f"top {a}, {b}; bottom {c}, {d}"


def scene_question(layout: Layout, colour: str, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """(question, response) of a kind about four places; None where the layout has no such question."""
    names = [name for _, name in layout.named]
    if kind == "background":
        return "what colour is the background?", colour
    if kind == "count":
        asked = names[rng.integers(len(names))] if rng.random() < 0.85 else CONCEPT_NAMES[SMALL[rng.integers(len(SMALL))]]
        question, answer = f"how many {CONCEPTS[NUMBERS[asked]].plural} are there?", str(names.count(asked))
    elif kind == "all":
        question, answer = "how many things are there?", str(len(names))
    elif kind == "cell":
        cell = int(rng.integers(4))
        name = layout.names[cell]
        question = f"what is at the {CELLS[cell]}?"
        answer = CONCEPTS[NUMBERS[name]].phrase if name else "nothing"
    elif kind == "position":
        single = sorted({name for name in names if names.count(name) == 1})
        if not single:
            return None
        asked = single[rng.integers(len(single))]
        question, answer = f"where is the {asked}?", CELLS[layout.names.index(asked)]
    else:
        different = sorted(set(names))
        if len(different) < 2:
            return None
        first, second = (different[n] for n in rng.choice(len(different), size=2, replace=False))
        more = names.count(first) - names.count(second)
        plurals = [CONCEPTS[NUMBERS[name]].plural for name in (first, second)]
        question = f"are there more {plurals[0]} or {plurals[1]}?"
        answer = "as many" if more == 0 else plurals[0] if more > 0 else plurals[1]
    return question, with_thought(scene_thought(layout), answer)


def list_question(layout: Layout) -> tuple[str, str]:
    """(question, answer): the list that a thought would make, said aloud."""
    return "list what you see", scene_thought(layout)


def pair_caption(layout: Layout, colour: str | None, rng: np.random.Generator) -> str:
    """Two things side by side in words, said from the one or from the other."""
    sides = [r for r, (rows, columns, _) in RELATIONS.items() if (rows, columns) == (layout.rows, layout.columns)]
    relation = sides[rng.integers(len(sides))]
    return relation_caption(layout, relation, colour)


def relation_caption(layout: Layout, relation: str, colour: str | None) -> str:
    """The caption that says where the first thing of the relation is."""
    first_cell = RELATIONS[relation][2]
    first, second = (CONCEPTS[NUMBERS[str(layout.names[cell])]].phrase for cell in (first_cell, 1 - first_cell))
    return f"{first} {relation} {second}" + (f" on {_article(colour)} {colour} background" if colour else "")


def together_caption(layout: Layout, colour: str | None) -> str:
    """Two things without their places: the left or upper one first."""
    first, second = (CONCEPTS[NUMBERS[str(name)]].phrase for name in layout.names)
    return f"{first} and {second}" + (f" on {_article(colour)} {colour} background" if colour else "")


def drawing_thought(layout: Layout, colour: str) -> str:
    """Where each of one or two things goes, and on what."""
    sides = {(1, 1): ("middle",), (1, 2): ("left", "right"), (2, 1): ("top", "bottom")}[layout.rows, layout.columns]
    return ", ".join(f"{side} {name}" for side, name in zip(sides, layout.names, strict=True)) + f", background {colour}"


def corpus() -> Sequence[str]:
    """Words and phrases of this module, for the tokenizer."""
    rng = np.random.default_rng(4)
    sentences: list[str] = []
    for _ in range(3000):
        colour = COLOURS[rng.integers(len(COLOURS))]
        four = draw_layout((2, 2), False, rng)
        for kind in KINDS:
            sentences += list(scene_question(four, colour, kind, rng) or ())
        two = draw_layout(GRIDS[1 + rng.integers(2)], False, rng)
        sentences += [*list_question(four), pair_caption(two, colour, rng), drawing_thought(two, colour)]
    return sentences


def _article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"
