"""Laws of the token rows: what is given stays, what counts adds up, blocks hide what comes after them, thoughts can be read,
and nothing that is held out is ever among them."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from toys import CODES, SIDE

from mmada_lite.train.data import texts
from mmada_lite.train.data.arithmetic import draw_problem, problem_in, response_to, true_share
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.masking import BLOCK, CONCLUSION, FILLING, Rows, answer_rows, picture_rows, spread
from mmada_lite.train.data.material import equal_length
from mmada_lite.train.data.scenes import (
    CELLS,
    KINDS,
    RELATIONS,
    drawing_thought,
    layout_held_out,
    scene_question,
    scene_thought,
)
from mmada_lite.train.data.sequences import ANSWER_LENGTH, PROBLEM_SHARES, Sequences
from mmada_lite.train.data.thoughts import split_thought
from mmada_lite.train.stages import TASKS

DRAWN = ("paint", "pair", "thought_to_image", "edit")


def groups(sequences: Sequences, task: str, seed: int, count: int, rows: int = 8) -> Iterator[Rows]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield sequences.tasks[task](rows, rng)


def spoken(sequences: Sequences, row: np.ndarray) -> str:
    """The text of a row, its special tokens and codes left out."""
    special = sequences.vocabulary.special
    marks = {getattr(special, name) for name in special.__dataclass_fields__}
    return sequences.tokenizer.decode(
        [t for t in row.tolist() if t < sequences.vocabulary.image_code_offset and t not in marks]
    )


def test_the_stages_and_the_rows_know_the_same_tasks(toy_sequences: Sequences) -> None:
    assert set(toy_sequences.tasks) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_given_is_never_masked_and_never_counts(toy_sequences: Sequences, task: str) -> None:
    special, offset = toy_sequences.vocabulary.special, toy_sequences.vocabulary.image_code_offset
    total = []
    for rows in groups(toy_sequences, task, 1, 60):
        assert rows.task == task
        assert rows.tokens.shape == rows.targets.shape == rows.weight.shape
        hidden = rows.tokens == special.mask
        assert (rows.tokens[~hidden] == rows.targets[~hidden]).all()
        assert (rows.weight[~hidden] == 0).all()
        assert (rows.targets != special.mask).all()
        assert (rows.weight >= 0).all()
        total.append(float(rows.weight.sum()))
        if task in DRAWN:  # the codes between the last soi and eoi
            assert not hidden[:, : -SIDE * SIDE - 1].any()
            assert (rows.targets[:, -SIDE * SIDE - 2] == special.soi).all()
            assert (rows.targets[:, -1] == special.eoi).all()
            assert not hidden[:, -1].any()
            assert (rows.targets[:, -SIDE * SIDE - 1 : -1] >= offset).all()
        else:  # text after the header of the answer, or after the caption to be thought about
            assert (rows.targets[hidden] < offset).all()
            first = np.flatnonzero(hidden.any(axis=0))[0]
            given = rows.targets[:, :first]
            headers = (given == special.end_header).sum(axis=1)
            assert set(headers.tolist()) <= {"turn": {4}, "fill": {1, 2}, "caption_to_thought": {0}}.get(task, {2})
    assert np.mean(total) == pytest.approx(1.0, abs=0.12)  # of text in expectation over masks
    if task in (*DRAWN, "fill"):
        assert total == pytest.approx([1.0] * 60, abs=1e-5)


def test_layouts_are_the_runtime_s_own(toy_sequences: Sequences) -> None:
    special = toy_sequences.vocabulary.special
    for task, first in (
        ("paint", special.t2i),
        ("pair", special.t2i),
        ("thought_to_image", special.r2i),
        ("caption_to_thought", special.r2i),
    ):
        assert all((rows.targets[:, 0] == first).all() for rows in groups(with_captions(toy_sequences, 0.0), task, 2, 3))
    for task in ("ask", "list", "scene"):
        for rows in groups(toy_sequences, task, 2, 3):
            assert (rows.targets[:, 0] == special.mmu).all()
            assert (rows.targets[:, 1] == special.soi).all()
            assert (rows.targets[:, SIDE * SIDE + 2] == special.eoi).all()
            assert (rows.targets[:, SIDE * SIDE + 3] == special.bos).all()
    for task in ("sum", "fact"):  # a turn or a hole may have a picture before it
        assert all((rows.targets[:, 0] == special.bos).all() for rows in groups(toy_sequences, task, 2, 3))


def with_captions(sequences: Sequences, dropout: float) -> Sequences:
    """The same rows, so many groups of them without a caption."""
    of = sequences.material
    return Sequences(sequences.tokenizer, sequences.vocabulary, of.singles, of.several, caption_dropout=dropout)


def test_without_a_caption_nothing_is_left_of_it(toy_sequences: Sequences) -> None:
    special, bare = toy_sequences.vocabulary.special, with_captions(toy_sequences, 1.0)
    for task in DRAWN:
        (rows,) = groups(bare, task, 3, 1)
        assert (rows.targets[:, :4] == [special.t2i, special.bos, special.eos, special.soi]).all()


def test_picture_rows_follow_the_cosine(toy_sequences: Sequences) -> None:
    vocabulary, rng = toy_sequences.vocabulary, np.random.default_rng(5)
    prompts, codes = rng.integers(400, size=(16, 7)), rng.integers(CODES, size=(16, 64))
    rows = picture_rows("paint", prompts, codes, vocabulary, rng)
    masked = rows.tokens == vocabulary.special.mask
    assert masked[:, 7:-1].sum(axis=1).min() >= 1
    assert not masked[:, :7].any()
    assert (rows.targets[:, 7:-1] - vocabulary.image_code_offset == codes).all()
    assert ((rows.weight > 0) == masked).all()
    assert rows.weight.sum() == pytest.approx(1.0)
    expected = np.sort(np.rint(64 * np.cos(np.pi / 2 * (np.arange(16) + 0.5) / 16)))
    assert np.abs(np.sort(masked.sum(axis=1)) - expected).max() <= 4


def test_edits_show_half_of_a_picture_and_end_it_on_its_background(toy_sequences: Sequences) -> None:
    """The given half is always a whole side; what lies beyond an edge repeats that edge."""
    mask, offset = toy_sequences.vocabulary.special.mask, toy_sequences.vocabulary.image_code_offset
    halves, beyond = set(), 0
    for rows in groups(toy_sequences, "edit", 12, 60):
        codes = (rows.targets[:, -SIDE * SIDE - 1 : -1] - offset).reshape(-1, SIDE, SIDE)
        hidden = (rows.tokens[:, -SIDE * SIDE - 1 : -1] == mask).reshape(-1, SIDE, SIDE).any(axis=0)
        turns = [k for k in range(4) if not np.rot90(hidden, k)[:, : SIDE // 2].any()]
        assert turns, "one side of the picture is given whole"
        halves.add(turns[0])
        turned = np.rot90(codes, turns[0], axes=(1, 2))
        beyond += bool((turned[:, :, SIDE // 2 :] == turned[:, :, SIDE // 2 - 1 : SIDE // 2]).all())
    assert halves == {0, 1, 2, 3}
    assert 15 < beyond < 45


def test_what_follows_a_thought_weighs_more_and_is_asked_alone(toy_sequences: Sequences) -> None:
    vocabulary, rng = toy_sequences.vocabulary, np.random.default_rng(13)
    prompts, close, alone = rng.integers(50, 400, size=(64, 5)), 7, 0
    answers = rng.integers(50, 400, size=(64, 16))
    answers[:, 9], answers[:, 12:] = close, vocabulary.special.eos
    rows = answer_rows("sum", prompts, answers, vocabulary, rng, close=close)
    hidden = (rows.tokens == vocabulary.special.mask)[:, 5:]
    for row, masks in zip(rows.weight[:, 5:], hidden, strict=True):
        thought, conclusion = row[:10][row[:10] > 0], row[10:12][row[10:12] > 0]
        if thought.size and conclusion.size:
            assert conclusion == pytest.approx(CONCLUSION * thought[0])
        if not masks[:10].any() and masks[10:].all():
            assert row.sum() == pytest.approx(1 / 64)
            alone += 1
    assert 12 <= alone <= 34  # a third
    assert rows.weight.sum() == pytest.approx(1.0, abs=0.3)


def test_answer_rows_hide_more_than_they_show(toy_sequences: Sequences) -> None:
    rng = np.random.default_rng(6)
    prompts, answers = rng.integers(50, 400, size=(256, 9)), rng.integers(50, 400, size=(256, ANSWER_LENGTH))
    rows = answer_rows("sum", prompts, answers, toy_sequences.vocabulary, rng)
    assert (rows.tokens[:, :9] == prompts).all()
    assert rows.weight.sum() == pytest.approx(1.0, abs=0.25)
    assert 0.57 < (rows.weight[:, 9:] > 0).mean() < 0.76  # p leans to 1: two thirds


def test_block_wise_rows_show_what_is_before_and_hide_what_is_after(toy_sequences: Sequences) -> None:
    """Only the block counts, ends of text in it a tenth; and every block that holds words is met."""
    vocabulary, rng, text_length = toy_sequences.vocabulary, np.random.default_rng(7), 20
    special, total, met = vocabulary.special, [], set()
    prompts = rng.integers(50, 400, size=(64, 5))
    answers = np.full((64, ANSWER_LENGTH), special.eos)
    answers[:, :text_length] = rng.integers(50, 400, size=(64, text_length))
    for _ in range(30):
        rows = answer_rows("sum", prompts, answers, vocabulary, rng, blocks=1.0)
        hidden, weight = (rows.tokens == special.mask)[:, 5:], rows.weight[:, 5:]
        total.append(float(weight.sum()))
        for row in range(64):
            block = np.flatnonzero(hidden[row])
            counted = np.flatnonzero(weight[row])
            if not counted.size:
                continue
            start = counted[0] // BLOCK * BLOCK
            assert (counted // BLOCK == start // BLOCK).all()
            assert block.min() >= start  # what is before is shown
            assert hidden[row, start + BLOCK :].all()  # what is after is hidden, and does not count
            met.add(int(start))
            filling, text = counted[counted >= text_length], counted[counted < text_length]
            if filling.size and text.size:
                assert weight[row, filling[0]] == pytest.approx(FILLING * weight[row, text[0]])
    assert np.mean(total) == pytest.approx(1.0, abs=0.05)
    assert met == set(range(0, text_length, BLOCK))


def test_thoughts_parse_and_are_true(toy_sequences: Sequences) -> None:
    for rows in groups(toy_sequences, "sum", 8, 40):
        for row in rows.targets:
            question, response = spoken(toy_sequences, row).split("assistant")
            problem, parts = problem_in(question), split_thought(response)
            assert problem is not None
            assert parts is not None
            assert true_share(problem, parts.thought) == 1.0
            assert parts.answer == str(problem.answer)
    for rows in groups(toy_sequences, "scene", 9, 40):
        for row in rows.targets:
            question, response = spoken(toy_sequences, row).split("assistant")
            parts = split_thought(response)
            assert parts is not None or response.strip() in COLOURS
            if parts and "how many things" in question:
                listed = parts.thought.replace("top ", "").replace("bottom ", "").replace(";", ",").split(", ")
                assert parts.answer == str(sum(name != "none" for name in listed))


def test_conclusions_are_all_that_is_hidden_and_need_no_picture(toy_sequences: Sequences) -> None:
    special, kinds = toy_sequences.vocabulary.special, set[str]()
    for rows in groups(toy_sequences, "answer_from_thought", 8, 40):
        assert not (rows.targets >= toy_sequences.vocabulary.image_code_offset).any()
        for row, tokens in zip(rows.targets, rows.tokens, strict=True):
            question, response = spoken(toy_sequences, row).split("assistant")
            parts = split_thought(response)
            assert parts is not None
            names = re.findall(r"[a-z]+", parts.thought.replace("top ", "").replace("bottom ", ""))
            assert not layout_held_out(Layout(2, 2, tuple(None if name == "none" else name for name in names)))
            if "where is the" in question:
                thing = question.split("where is the ")[1].split("?")[0]
                assert parts.answer == CELLS[names.index(thing)]
            kinds.add(question.split()[1])
            hidden = tokens == special.mask
            assert hidden[row.tolist().index(toy_sequences.tokenizer.find("</think>", -1)) + 1 :].all()
            assert not hidden[: row.tolist().index(toy_sequences.tokenizer.find("</think>", -1)) + 1].any()
    assert len(kinds) > 3


def test_drawn_rows_think_what_the_caption_says(toy_sequences: Sequences) -> None:
    for rows in groups(with_captions(toy_sequences, 0.0), "thought_to_image", 10, 40):
        for row in rows.targets:
            caption, thought = spoken(toy_sequences, row).removesuffix("</think>").split("<think>")
            parts = [part.split(" ", 1) for part in thought.strip().split(", ")]
            assert parts[-1][0] == "background"
            assert parts[-1][1] in COLOURS
            names = [name for _, name in parts[:-1]]
            assert all(CONCEPTS[CONCEPT_NAMES.index(name)].name in caption for name in names)
            if len(names) == 2:
                swapped = " right of " in caption or " below " in caption
                assert (caption.index(names[0]) > caption.index(names[1])) == swapped


def test_every_answer_fits(toy_sequences: Sequences) -> None:
    encode, rng = toy_sequences.tokenizer.encode, np.random.default_rng(11)
    several = toy_sequences.material.several
    for row in range(0, len(several.grid), 3):
        layout, colour = several.layout(row), COLOURS[several.colour[row]]
        if several.tidy[row]:
            thought = f"<think> {drawing_thought(layout, colour)} </think>"
            assert len(encode(thought)) < ANSWER_LENGTH, thought
            continue
        for kind in KINDS:
            exchange = scene_question(layout, colour, kind, rng)
            assert exchange is None or len(encode(exchange[1])) < ANSWER_LENGTH, exchange
    for kind in PROBLEM_SHARES:
        assert all(len(encode(response_to(draw_problem(kind, False, rng)))) < ANSWER_LENGTH for _ in range(200))
    for answer, _ in texts.FACTS:
        assert len(encode(answer)) < ANSWER_LENGTH


def test_nothing_held_out_is_ever_drawn(toy_sequences: Sequences) -> None:
    """Problems, layouts, and things on backgrounds: thousands of rows, as they are read."""
    sequences, several = with_captions(toy_sequences, 0.0), toy_sequences.material.several
    decoded = {
        task: [spoken(sequences, row) for rows in groups(sequences, task, 12, 60, 20) for row in rows.targets]
        for task in ("sum", "paint", "ask", "pair", "thought_to_image", "caption_to_thought", "scene")
    }
    problems = [problem_in(text) for text in decoded["sum"]]
    assert len(problems) == 1200
    assert not any(problem is None or problem.held_out for problem in problems)
    unseen_pairs = {(CONCEPT_NAMES[i], colour) for i, colour in texts.pairs(held_out=True)}
    shown = [shown_in(text) for task in ("paint", "ask") for text in decoded[task]]
    assert sum(len(pairs) == 1 for pairs in shown) > 1000
    assert not set().union(*shown) & unseen_pairs
    two = [
        relation
        for task in ("pair", "thought_to_image", "caption_to_thought")
        for text in decoded[task]
        if (relation := layout_in(text))
    ]
    assert len(two) > 2000
    assert not any(layout_held_out(layout) for layout in two)
    assert not any(layout_held_out(layout) for layout in map(several.layout, range(len(several.grid))))
    lists = {scene_thought(several.layout(n)) for n in np.flatnonzero(~several.tidy)}
    thoughts = [parts.thought for text in decoded["scene"] if (parts := split_thought(text.split("assistant")[1]))]
    assert set(thoughts) <= lists


def shown_in(text: str) -> set[tuple[str, str]]:
    """The things of a text on each colour in it."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {(name, colour) for name in words & set(CONCEPT_NAMES) for colour in words & set(COLOURS)}


def layout_in(text: str) -> Layout | None:
    """The layout of a caption of two things."""
    for relation, (rows, columns, own) in {**RELATIONS, "and": (1, 2, 0)}.items():
        match = re.match(rf"(.*) {relation} (.*?)\.?( on an? |<think>|$)", text.lower())
        if match:
            names = [next(c.name for c in CONCEPTS if c.phrase == match[k].strip()) for k in (1, 2)]
            return Layout(rows, columns, tuple(names if own == 0 else names[::-1]))
    return None


def test_rows_repeat_with_their_seed(toy_sequences: Sequences) -> None:
    for task in TASKS:
        (first,), (second,), (third,) = (list(groups(toy_sequences, task, seed, 1)) for seed in (17, 17, 18))
        assert (first.tokens == second.tokens).all()
        assert first.tokens.shape != third.tokens.shape or (first.tokens != third.tokens).any()


def test_groups_have_one_length_and_spread_is_uniform() -> None:
    rng = np.random.default_rng(9)
    kept = equal_length(lambda: ([0] * int(rng.integers(1, 5)), None), 20)
    assert len(kept) == 20
    assert len({len(ids) for ids, _ in kept}) == 1
    values = np.sort(spread(50, rng))
    assert (np.floor(values * 50) == np.arange(50)).all()


def test_a_group_may_be_typed_in_capitals_and_is_drawn_and_answered_as_ever(toy_sequences: Sequences) -> None:
    """One group in eight or so; what is to be written is never in capitals."""
    sequences, special = with_captions(toy_sequences, 0.0), toy_sequences.vocabulary.special
    for task in ("paint", "pair", "ask", "sum", "fact", "turn"):
        capitals = 0
        for rows in groups(sequences, task, 21, 150, 2):
            told = [spoken(sequences, row) for row in rows.targets]
            capitals += any(text != text.lower() for text in told)
            for row, tokens in zip(rows.targets, rows.tokens, strict=True):
                hidden = [t for t in row[tokens == special.mask] if t < sequences.vocabulary.image_code_offset]
                assert (words := sequences.tokenizer.decode(hidden)) == words.lower()
        assert 5 <= capitals <= 35, task  # of 18 in the mean; sums of bare numbers have none
