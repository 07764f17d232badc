"""Laws of rows with a hole in a text whose end is shown, and of pictures that go on with another thing: what is hidden, what is
given, and that it is what the caption or the question says. Codes are synthetic: each says where it comes from."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from toys import SIDE, scene_pool, single_pool

from mmada_lite.decoding.rows import turn_end
from mmada_lite.train.data import sequences as rows_of
from mmada_lite.train.data.arithmetic import problem_in
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.conversations import FILLED, UNTHOUGHT
from mmada_lite.train.data.layouts import SIDES, Layout, from_right, to_right
from mmada_lite.train.data.masking import BLOCK, hole_rows
from mmada_lite.train.data.sequences import MORE_BLOCKS, Sequences

FROM_SINGLES = 100  # codes from here on are of pictures of one thing: the place in them


def test_a_hole_is_of_the_text_alone_and_every_row_weighs_alike(toy_sequences: Sequences) -> None:
    rng, vocabulary, ends = np.random.default_rng(0), toy_sequences.vocabulary, np.array([11, 1, 1])
    prompts, texts = rng.integers(50, 400, size=(600, 5)), rng.integers(50, 400, size=(600, 9))
    rows = hole_rows("fill", prompts, texts, ends, vocabulary, rng)
    assert (rows.targets == np.concatenate([prompts, texts, np.tile(ends, (600, 1))], axis=1)).all()
    hidden = rows.tokens == vocabulary.special.mask
    assert (rows.tokens[~hidden] == rows.targets[~hidden]).all()
    assert not hidden[:, :5].any()
    assert not hidden[:, -3:].any()
    hole = hidden[:, 5:-3]
    assert hole.any(axis=1).all()
    assert (rows.weight[~hidden] == 0).all()
    assert rows.weight.sum(axis=1) == pytest.approx(np.full(600, 1 / 600))
    assert rows.weight[hidden] == pytest.approx((1 / 600 / hidden.sum(axis=1))[hidden.nonzero()[0]])
    assert 0.5 < hole.all(axis=1).mean() < 0.7  # half of the rows, and what falls out so
    pieces = (np.diff(np.pad(hole, ((0, 0), (1, 1))).astype(int), axis=1) == 1).sum(axis=1)
    assert 0.05 < (pieces > 1).mean() < 0.25  # of one hole in two thirds of the others
    assert hole[pieces == 1].any(axis=0).all()
    lengths = set(hole[pieces == 1].sum(axis=1).tolist())
    assert lengths == set(range(1, 10))


def test_holes_are_in_captions_answers_and_results_without_a_thought(toy_sequences: Sequences) -> None:
    """The end of the turn and ends of text up to whole blocks stand behind, as in the runtime's rows of a partial answer."""
    rng, special, kinds = np.random.default_rng(1), toy_sequences.vocabulary.special, Counter[str]()
    end = turn_end(toy_sequences.tokenizer, toy_sequences.vocabulary)
    for _ in range(120):
        rows = toy_sequences.fill(4, rng)
        for row, tokens in zip(rows.targets.tolist(), rows.tokens, strict=True):
            start = len(row) - row[::-1].index(special.end_header) + 1  # behind the header's line end
            stop = row.index(end[0], start)
            assert row[stop : stop + len(end)] == end
            assert set(row[stop + len(end) :]) <= {special.eos}
            assert (len(row) - start) % BLOCK == 0
            assert len(row) - stop - len(end) < BLOCK * (1 + max(MORE_BLOCKS))
            hidden = np.flatnonzero(tokens == special.mask)
            assert start <= hidden.min() <= hidden.max() < stop
            words = toy_sequences.tokenizer.decode(
                [t for t in row[:start] if 11 < t < toy_sequences.vocabulary.image_code_offset]
            )
            text = toy_sequences.tokenizer.decode(row[start:stop])
            problem = problem_in(words)
            if problem is not None:
                assert text == str(problem.answer)
                assert not problem.held_out
                assert f"{'sum' if problem.sign == '+' else 'difference'}{problem.columns}" in UNTHOUGHT
            kinds["sum" if problem else "picture" if row[0] == special.mmu else "fact" if "user" in words else "caption"] += 1
    assert set(kinds) == set(FILLED)
    for kind, share in FILLED.items():
        assert share * 0.4 < kinds[kind] / sum(kinds.values()) < share * 1.7, kind
    assert sum(FILLED.values()) == sum(UNTHOUGHT.values()) == pytest.approx(1.0)


def test_a_side_is_turned_to_the_right_and_back() -> None:
    codes = np.arange(32).reshape(2, 16)
    square = codes.reshape(2, 4, 4)
    edges = {"right": square[:, :, -1], "bottom": square[:, -1], "left": square[:, :, 0], "top": square[:, 0]}
    for side in SIDES:
        turned = to_right(codes, side)
        assert [set(column) for column in turned[:, :, -1].tolist()] == [set(edge) for edge in edges[side].tolist()]
        assert (from_right(turned, side) == codes).all()
    assert [Layout(1, 2, ("cat", "key")).at(side) for side in SIDES] == ["key", None, "cat", None]
    assert [Layout(2, 1, ("cat", "key")).at(side) for side in SIDES] == [None, "key", None, "cat"]
    assert Layout(2, 2, ("cat",) * 4).at("right") is None


@pytest.fixture
def telling(toy_sequences: Sequences) -> Sequences:
    """Rows of pictures whose codes tell: of two things, the number of the thing that fills the half; of one, FROM_SINGLES and
    the place."""
    singles, several = single_pool(), scene_pool()
    codes = np.zeros((len(several.codes), SIDE, SIDE), dtype=np.int64)
    half = SIDE // 2
    for row in np.flatnonzero(several.tidy):
        first, second = several.names[row, :2]
        codes[row] = first
        if several.layout(row).columns == 2:
            codes[row, :, half:] = second
        else:
            codes[row, half:] = second
    places = np.tile(FROM_SINGLES + np.arange(SIDE * SIDE), (len(singles.codes), 1))
    return Sequences(
        toy_sequences.tokenizer,
        toy_sequences.vocabulary,
        replace(singles, codes=places),
        replace(several, codes=codes.reshape(len(codes), -1)),
        caption_dropout=0.0,
    )


def test_a_new_thing_lies_where_it_is_hidden_and_is_what_the_caption_says(
    telling: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each of the four sides. What is given is the other thing of the picture, or the far half of a picture of one thing,
    moved to where `extend` moves it."""
    monkeypatch.setattr(rows_of, "NEW_THING", 1.0)
    half, seen = SIDE // 2, Counter[tuple[str, bool]]()
    halves = {
        "right": (np.s_[:, half:], np.s_[:, :half]),
        "bottom": (np.s_[half:], np.s_[:half]),
        "left": (np.s_[:, :half], np.s_[:, half:]),
        "top": (np.s_[:half], np.s_[half:]),
    }
    places = FROM_SINGLES + np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    rng, offset, mask = np.random.default_rng(0), telling.vocabulary.image_code_offset, telling.vocabulary.special.mask
    for _ in range(120):
        rows = telling.edit(4, rng)
        all_hidden = (rows.tokens[:, -SIDE * SIDE - 1 : -1] == mask).reshape(-1, SIDE, SIDE).any(axis=0)
        (side,) = (name for name, (new, given) in halves.items() if not all_hidden[given].any() and all_hidden[new].any())
        new, given = halves[side]
        for row in rows.targets:
            codes = (row[-SIDE * SIDE - 1 : -1] - offset).reshape(SIDE, SIDE)
            words = telling.tokenizer.decode([t for t in row[: -SIDE * SIDE - 2].tolist() if t > 11]).split()
            (number,) = (n for n, concept in enumerate(CONCEPTS) if concept.name in [word.strip(",") for word in words])
            assert (codes[new] == number).all()
            extended = bool((codes[given] >= FROM_SINGLES).all())
            if extended:
                assert (codes[given] == places[new]).all()  # the far half: the one at that side before
            else:
                assert (codes[given] == codes[given][0, 0]).all()
                assert codes[given][0, 0] not in (number, *range(FROM_SINGLES, 256))
            seen[side, extended] += 1
    assert set(seen) == {(side, extended) for side in halves for extended in (True, False)}
    assert min(seen.values()) > 20


def test_a_third_of_the_edits_show_a_new_thing_and_a_third_only_background(telling: Sequences) -> None:
    """Told by the codes: the number of a thing, the place at the edge again and again, or a picture as it is."""
    rng, offset, kinds = np.random.default_rng(1), telling.vocabulary.image_code_offset, Counter[str]()
    for _ in range(300):
        codes = telling.edit(1, rng).targets[:, -SIDE * SIDE - 1 : -1] - offset
        new, whole = bool((codes < FROM_SINGLES).any()), len(set(codes[0].tolist())) == SIDE * SIDE
        kinds["new" if new else "whole" if whole else "beyond"] += 1
    assert all(70 < kinds[kind] < 130 for kind in ("new", "whole", "beyond")), kinds


def test_without_pictures_of_several_no_new_thing_is_asked_for(telling: Sequences) -> None:
    alone = Sequences(telling.tokenizer, telling.vocabulary, telling.material.singles)
    rng = np.random.default_rng(2)
    assert all((alone.edit(2, rng).targets[:, -SIDE * SIDE - 1 : -1] >= FROM_SINGLES).all() for _ in range(40))
