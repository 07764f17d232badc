"""Pictures of several things: a thing that a picture grows by, and two things that are named without a place, judged in the
strips and cells in which they may lie. Knows nothing of texts about pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bench.quality.context import SIDE, EvalContext, Report, fill
from mmada_lite.bench.quality.models import Pictures
from mmada_lite.train import rollouts
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, SMALL
from mmada_lite.train.data.layouts import Layout, cell_pictures, square
from mmada_lite.train.data.pictures import background_of, compose
from mmada_lite.train.data.scenes import GRIDS, draw_layout, together_caption
from mmada_lite.train.data.texts import pairs, standard_caption
from mmada_lite.train.intervals import pooled, tally
from mmada_lite.train.shards import TIDY

EDGES = ("above", "right", "below", "left")  # quarter turns that bring an edge to the top
HALF = SIDE // 2


def growing(context: EvalContext) -> Report:
    """A picture of one thing, on a background that it was never shown on, grown by half of its side with the caption of another
    thing: what the judge sees in the new strip, and its background."""
    rng, shown, count = context.rng(11), pairs(True, context.half), context.count // 2
    chosen = [shown[rng.integers(len(shown))] for _ in range(count)]
    others = [int(rng.choice([other for other in SMALL if other != thing])) for thing, _ in chosen]
    turns = np.arange(count) % len(EDGES)
    icons = context.icons["train"]
    pictures = np.stack([compose(icons[rng.integers(len(icons)), c], colour, rng, TIDY) for c, colour in chosen])
    captions = [standard_caption(CONCEPTS[other], colour) for other, (_, colour) in zip(others, chosen, strict=True)]
    strips = _grown(context, pictures, captions, turns)
    seen = context.classify(np.stack([square(strip) for strip in strips]))
    found = [name == other for name, other in zip(seen, others, strict=True)]
    grounds = [background_of(strip) == colour for strip, (_, colour) in zip(strips, chosen, strict=True)]
    known = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    numbers = np.array([known[caption] for caption in captions])
    report = Report()
    for turn, edge in enumerate(EDGES):
        rows = np.flatnonzero(turns == turn)
        report[f"new_thing_{edge}"] = tally([found[row] for row in rows], "caption", numbers[rows])
    report["new_thing"] = pooled(report, list(report))
    report["background"] = tally(grounds, "caption", numbers)
    return report


def _grown(context: EvalContext, pictures: Pictures, captions: list[str], turns: NDArray[np.int64]) -> list[Pictures]:
    """The new strip of each picture [N, 64, 64, 3], upright [32, 64, 3] or [64, 32, 3], as `extend` draws it: the nearer half
    of the picture is given, and the whole is decoded with the strip."""
    codes = context.model.encode(pictures).reshape(-1, SIDE, SIDE)
    turned = np.stack([np.rot90(grid, k) for grid, k in zip(codes, turns, strict=True)])
    window = np.concatenate([np.zeros_like(turned[:, :HALF]), turned[:, :HALF]], axis=1)
    unknown = np.broadcast_to((np.arange(SIDE) < HALF)[:, None], window.shape)
    upright, hidden = (
        np.stack([np.rot90(each, -k) for each, k in zip(grids, turns, strict=True)]) for grids in (window, unknown)
    )
    drawn = fill(context, rollouts.caption_prompts(context.model, captions), upright, hidden)
    parts = np.stack([np.rot90(grid, k)[:HALF] for grid, k in zip(drawn, turns, strict=True)])
    whole = np.concatenate([parts, turned], axis=1)  # [N, 12, 8], the new part on top
    strips: list[Pictures] = []
    for grid, k in zip(whole, turns, strict=True):
        back = np.ascontiguousarray(np.rot90(grid, -k))
        (picture,) = context.model.decode(back.reshape(1, -1), (back.shape[0], back.shape[1]))
        pixels = picture.shape[0] // back.shape[0]
        strips.append(np.ascontiguousarray(np.rot90(np.rot90(picture, k)[: HALF * pixels], -k)))
    return strips


def two_things(context: EvalContext) -> Report:
    """Two things that were never drawn together, named without a place, every second time on a background: whether both are
    found in either grid, in any order; at once, and after the model's own thought about the caption."""
    rng, cases = context.rng(15), list[tuple[Layout, str | None]]()
    for n in range(context.count // 2):
        layout = draw_layout(GRIDS[1 + n // 2 % 2], True, rng, context.half)
        cases.append((layout, COLOURS[rng.integers(len(COLOURS))] if n % 2 else None))
    captions = [together_caption(layout, colour) for layout, colour in cases]
    thoughts = rollouts.answers(
        context.model, rollouts.caption_to_thought_prompts(context.model, captions), context.model.text, context.seed
    )
    known = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    ids = [known[caption] for caption in captions]
    named = [
        set(_names(layout)) <= set(thought.replace(",", " ").split())
        for thought, (layout, _) in zip(thoughts, cases, strict=True)
    ]
    report: Report = {"thought_names_both": tally(named, "caption", ids)}
    prompts = {
        "": rollouts.caption_prompts(context.model, captions),
        "_after_thought": rollouts.thought_to_image_prompts(context.model, captions, thoughts),
    }
    plain = [n for n, (_, colour) in enumerate(cases) if colour is None]
    coloured = [n for n, (_, colour) in enumerate(cases) if colour is not None]
    for way, asked in prompts.items():
        pictures = context.pictures(asked, context.seed)
        both = [found_in_cells(context, picture, _names(layout)) for picture, (layout, _) in zip(pictures, cases, strict=True)]
        for kind, rows in (("plain", plain), ("on_colour", coloured)):
            report[f"both_{kind}{way}"] = tally((both[n] for n in rows), "caption", [ids[n] for n in rows])
        report[f"both{way}"] = pooled(report, [f"both_{kind}{way}" for kind in ("plain", "on_colour")])
        grounds = [background_of(pictures[n]) == cases[n][1] for n in coloured]
        report[f"background{way}"] = tally(grounds, "caption", [ids[n] for n in coloured])
    return report


def found_in_cells(context: EvalContext, picture: Pictures, names: Sequence[str]) -> bool:
    """Whether the judge sees two things side by side or one above the other, in any order."""
    for rows, columns, *_ in GRIDS[1:]:
        seen = context.classify(cell_pictures(picture, rows, columns))
        if sorted(CONCEPT_NAMES[int(each)] for each in seen) == sorted(names):
            return True
    return False


def _names(layout: Layout) -> list[str]:
    return [name for _, name in layout.named]
