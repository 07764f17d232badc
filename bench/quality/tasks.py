"""The tasks that the quality of a small model is measured on: each a function of a context that counts right answers on data
that no training saw. What is held out is fixed by hash (texts, layouts, pairs of thing and colour) or is a style of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bench.quality.context import SIDE, EvalContext, Report, fill, shows, singles
from mmada_lite.bench.quality.conversation import turns
from mmada_lite.bench.quality.filling import Shown, examined, examined_choices
from mmada_lite.bench.quality.models import Pictures
from mmada_lite.bench.quality.several import growing, two_things
from mmada_lite.bench.quality.wording import capitals
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems, true_share
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS
from mmada_lite.train.data.layouts import Layout, square
from mmada_lite.train.data.pictures import background_of, compose
from mmada_lite.train.data.scenes import (
    GRIDS,
    RELATIONS,
    compose_layout,
    draw_layout,
    drawing_thought,
    relation_caption,
    scene_question,
    scene_thought,
)
from mmada_lite.train.data.texts import FACTS, WHAT_QUESTIONS, fact_wordings, pairs, standard_caption
from mmada_lite.train.data.thoughts import CLOSE, OPEN, answer_of, split_thought
from mmada_lite.train.intervals import interval, mean_of, pooled, ratio_of, tally
from mmada_lite.train.shards import TIDY, TIDY_CELL
from mmada_lite.train.sharpness import edge_energy

MOST_OF_TWO_DIGITS = 150  # problems of a kind: some 200 are in a half of what is held out


def tokenizer_of_images(context: EvalContext) -> Report:
    """Peak signal-to-noise ratio on untouched icons by their role, how sharp they are after it (edge energy over that of the
    originals), and the share of the codebook that is used."""
    rng, report = context.rng(1), Report()
    shown = {role: singles(context.icons[role], context.count, rng)[0] for role in context.icons}
    codes = {role: context.model.encode(pictures) for role, pictures in shown.items()}
    for role, pictures in shown.items():
        icons = [n % _icons_of(context, role) for n in range(len(pictures))]
        decoded = context.model.decode(codes[role], (SIDE, SIDE))
        error = ((decoded.astype(np.float64) - pictures) ** 2).mean(axis=(1, 2, 3))
        report[f"psnr_{role}"] = mean_of(10 * np.log10(255**2 / np.maximum(error, 1e-3)), icons)
        report[f"sharpness_{role}"] = {**ratio_of(edge_energy(decoded), edge_energy(pictures), icons), "unit": "x"}
    used = np.unique(np.concatenate([c.ravel() for c in codes.values()])).size
    report["codebook_used"] = interval(used, context.model.vocabulary.codebook_size)
    return report


def what_is_this(context: EvalContext) -> Report:
    """One thing alone, untouched: its name (chance is 1 in 64), and the colour of the background (1 in 10)."""
    report = Report()
    role = context.half
    pictures, concepts, colours = singles(context.icons[role], context.count * (2 if role == "test" else 1), context.rng(2))
    names = context.ask([WHAT_QUESTIONS[0]] * len(pictures), pictures)
    right = np.array([a == CONCEPTS[c].phrase for a, c in zip(names, concepts, strict=True)])
    icons = np.arange(len(pictures)) % _icons_of(context, role)
    report[f"what_{role}"] = tally(right, "icon", icons)
    report[f"missed_{role}"] = sorted(CONCEPT_NAMES[c] for c in set(concepts.tolist()) if right[concepts == c].mean() < 0.5)
    part = slice(0, context.count // 2)
    grounds = context.ask(["what colour is the background?"] * len(pictures[part]), pictures[part])
    good = [a == COLOURS[k] for a, k in zip(grounds, colours[part], strict=True)]
    report[f"background_{role}"] = tally(good, "icon", icons[part])
    return report


def yes_or_no(context: EvalContext) -> Report:
    """Whether an untouched icon is what is asked: every second time it is, else one of the other 63, all as often."""
    pictures, concepts, _ = singles(context.icons[context.half], context.count, context.rng(10))
    icons = np.arange(len(pictures)) % _icons_of(context, context.half)
    same = (icons + np.arange(len(pictures)) // _icons_of(context, context.half)) % 2 == 0
    others = len(CONCEPTS) - 1
    rounds = -(-len(pictures) // others)
    away = 1 + np.concatenate([context.rng(number).permutation(others) for number in range(20, 20 + rounds)])
    about = np.where(same, concepts, 0)
    about[~same] = (concepts[~same] + away[: (~same).sum()]) % len(CONCEPTS)
    replies = context.ask([f"is this {CONCEPTS[c].phrase}?" for c in about], pictures)
    report = Report()
    for answer, rows in (("yes", np.flatnonzero(same)), ("no", np.flatnonzero(~same))):
        right = (answer_of(replies[row]) == answer for row in rows)
        report[f"is_{answer}_{context.half}"] = tally(right, "icon", icons[rows])
    report[f"yes_no_{context.half}"] = pooled(report, list(report))
    return report


def scenes(context: EvalContext) -> Report:
    """Four places, layouts never trained on, with a thought; icons of the training styles and of a style that none saw."""
    report = Report()
    for role in ("train", context.half):
        rng, total = context.rng(3), context.count // 2
        for kind in ("background", "position", "count", "compare"):
            cases: list[tuple[Layout, str, str, Pictures]] = []
            while len(cases) < total:
                layout, colour = draw_layout((2, 2), True, rng, context.half), COLOURS[rng.integers(len(COLOURS))]
                question = scene_question(layout, colour, kind, rng)
                if question:
                    picture = compose_layout(layout, context.icons[role], colour, rng, TIDY_CELL)
                    cases.append((layout, *question, picture))
            replies = context.ask([question for _, question, _, _ in cases], np.stack([picture for *_, picture in cases]))
            good = [answer_of(s) == answer_of(wanted) for s, (_, _, wanted, _) in zip(replies, cases, strict=True)]
            report[f"{kind}_{role}"] = tally(good)
            if kind == "count":
                true = [_thought(s) == scene_thought(layout) for s, (layout, *_) in zip(replies, cases, strict=True)]
                report[f"list_exact_{role}"] = tally(true)
    return report


def drawing(context: EvalContext) -> Report:
    """One thing on a background that it was never shown on: named right by the judge, background right by the pixel rule."""
    unseen_pairs = pairs(True, context.half)
    wanted = [unseen_pairs[n % len(unseen_pairs)] for n in range(context.count)]
    captions = [standard_caption(CONCEPTS[i], colour) for i, colour in wanted]
    pictures = context.pictures(rollouts.caption_prompts(context.model, captions), context.seed)
    named = context.classify(pictures) == np.array([i for i, _ in wanted])
    grounds = np.array([background_of(p) == colour for p, (_, colour) in zip(pictures, wanted, strict=True)])
    captioned = [n % len(unseen_pairs) for n in range(len(wanted))]
    per_concept = {CONCEPT_NAMES[c]: f"{int(named[cases].sum())}/{len(cases)}" for c, cases in _by_concept(wanted).items()}
    return {
        "concept": tally(named, "caption", captioned),
        "background": tally(grounds, "caption", captioned),
        "per_concept": per_concept,
    }


def thinking_before_drawing(context: EvalContext) -> Report:
    """Two things side by side that were never drawn together: is the thought right, does the picture do what it says?"""
    rng, cases = context.rng(4), list[tuple[Layout, str, str]]()
    for n in range(context.count // 2):
        relation = list(RELATIONS)[n % len(RELATIONS)]
        rows, columns, _ = RELATIONS[relation]
        layout, colour = draw_layout((rows, columns), True, rng, context.half), COLOURS[rng.integers(len(COLOURS))]
        cases.append((layout, colour, relation_caption(layout, relation, colour)))
    captions = [caption for *_, caption in cases]
    thoughts = rollouts.answers(
        context.model, rollouts.caption_to_thought_prompts(context.model, captions), context.model.text, context.seed
    )
    right = [t == f"{OPEN} {drawing_thought(layout, k)} {CLOSE}" for t, (layout, k, _) in zip(thoughts, cases, strict=True)]
    pictures = context.pictures(rollouts.thought_to_image_prompts(context.model, captions, thoughts), context.seed)
    agree = [_agrees(context, picture, thought) for picture, thought in zip(pictures, thoughts, strict=True)]
    plain = context.pictures(rollouts.caption_prompts(context.model, captions), context.seed)
    unthought = [shows(context, picture, layout) for picture, (layout, *_) in zip(plain, cases, strict=True)]
    grounds = [background_of(p) == colour for p, (_, colour, _) in zip(pictures, cases, strict=True)]
    known = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    counted = {"thought_right": right, "agree": agree, "background": grounds, "without_thought": unthought}
    return {name: tally(good, "caption", [known[caption] for caption in captions]) for name, good in counted.items()}


def arithmetic(context: EvalContext) -> Report:
    """Sums and differences of two and three digits, never trained on: results, and thoughts where results are right."""
    report, good_thoughts, good_results = Report(), 0, 0
    for kind in ("sum2", "difference2", "sum3", "difference3"):
        most = MOST_OF_TWO_DIGITS if kind.endswith("2") else context.count
        problems = distinct_problems(kind, True, min(context.count // 2, most), context.rng(5), context.half)
        replies = context.ask([f"what is {p}?" for p in problems])
        right = [answer_of(s) == str(p.answer) for s, p in zip(replies, problems, strict=True)]
        exact = [true_share(p, _thought(s)) == 1.0 for s, p in zip(replies, problems, strict=True)]
        report[kind] = tally(right)
        good_results += sum(right)
        good_thoughts += sum(r and e for r, e in zip(right, exact, strict=True))
    report["thought_exact_where_right"] = interval(good_thoughts, good_results)
    asked = [(wording, reply) for reply, wordings in FACTS for wording in wordings]
    replies = context.ask([wording for wording, _ in asked])
    report["facts_trained"] = tally(f == r for f, (_, r) in zip(replies, asked, strict=True))
    return report


def editing(context: EvalContext) -> Report:
    """A hidden half drawn anew, and a picture grown by half of its side: does the judge still see the same thing?"""
    rng, unseen_pairs = context.rng(6), pairs(True, context.half)
    numbers = [int(rng.integers(len(unseen_pairs))) for _ in range(context.count // 2)]
    chosen = [unseen_pairs[number] for number in numbers]
    icons = context.icons["train"]
    pictures = np.stack([compose(icons[rng.integers(len(icons)), c], colour, rng, TIDY) for c, colour in chosen])
    before = context.classify(pictures)
    captions = [standard_caption(CONCEPTS[c], colour) for c, colour in chosen]
    prompts = rollouts.caption_prompts(context.model, captions)
    codes = context.model.encode(pictures).reshape(-1, SIDE, SIDE)
    sides = rng.integers(4, size=len(codes))
    hidden = np.stack([np.rot90(np.arange(SIDE)[None].repeat(SIDE, 0) < SIDE // 2, k) for k in sides])
    drawn = fill(context, prompts, codes, hidden).reshape(len(codes), -1)
    after = context.classify(context.model.decode(drawn, (SIDE, SIDE)))
    window = np.concatenate([codes[:, :, SIDE // 2 :], np.zeros_like(codes[:, :, : SIDE // 2])], axis=2)
    beyond = np.broadcast_to(np.arange(SIDE) >= SIDE // 2, window.shape)
    grown = np.concatenate([codes, fill(context, prompts, window, beyond)[:, :, SIDE // 2 :]], axis=2)
    wide = context.model.decode(grown.reshape(len(codes), -1), (SIDE, SIDE + SIDE // 2))
    seen = context.classify(np.stack([square(picture) for picture in wide]))
    return {
        "inpaint_same": tally(after == before, "caption", numbers),
        "extend_same": tally(seen == before, "caption", numbers),
    }


def filling(context: EvalContext) -> Report:
    """Holes in texts and partial answers, beside the same asked whole; every held-out icon once where `count` allows it."""
    unseen = fact_wordings(True, context.half)
    return examined(context.model, context.ask, _untouched(context), context.rng(8), context.count, context.half, unseen)


def choosing(context: EvalContext) -> Report:
    """The likeliest of a few answers, beside the same asked whole; pictures as in `filling`."""
    return examined_choices(context.model, context.ask, _untouched(context), context.rng(9), context.count, context.half)


TASKS: dict[str, Callable[[EvalContext], Report]] = {
    "tokenizer": tokenizer_of_images,
    "what": what_is_this,
    "yes_no": yes_or_no,
    "scenes": scenes,
    "drawing": drawing,
    "thinking": thinking_before_drawing,
    "arithmetic": arithmetic,
    "editing": editing,
    "growing": growing,
    "two_things": two_things,
    "turns": turns,
    "capitals": capitals,
    "filling": filling,
    "choosing": choosing,
}


def _icons_of(context: EvalContext, role: str) -> int:
    """How many icons a role has: as many pictures of `singles` later they come again."""
    styles, things = context.icons[role].shape[:2]
    return int(styles * things)


def _untouched(context: EvalContext) -> Shown:
    icons = context.icons[context.half]
    return {context.half: singles(icons, min(len(icons) * len(icons[0]), context.count), context.rng(7))}


def _thought(reply: str) -> str:
    parts = split_thought(reply)
    return parts.thought if parts else ""


def _agrees(context: EvalContext, picture: NDArray[np.uint8], thought: str) -> bool:
    """Whether a picture shows what a thought about it says, and on that background."""
    parts = thought.removeprefix(OPEN).removesuffix(CLOSE).strip().split(", ")
    placements = [part.split(" ", 1) for part in parts]
    if len(placements) != 3 or any(len(w) != 2 for w in placements) or any(name not in NUMBERS for _, name in placements[:2]):
        return False
    grid = {("left", "right"): GRIDS[1], ("top", "bottom"): GRIDS[2]}.get((placements[0][0], placements[1][0]))
    if grid is None:
        return False
    layout = Layout(*grid, (placements[0][1], placements[1][1]))
    return shows(context, picture, layout) and background_of(picture) == placements[2][1]


def _by_concept(wanted: Sequence[tuple[int, str]]) -> dict[int, list[int]]:
    numbers: dict[int, list[int]] = {}
    for n, (concept, _) in enumerate(wanted):
        numbers.setdefault(concept, []).append(n)
    return dict(sorted(numbers.items()))
