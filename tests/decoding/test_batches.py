"""A law of batches: a row is written as it is alone, whatever stands in the others."""

from typing import Any

import numpy as np
import pytest
from mock_denoiser import MockDenoiser
from small_attention import SmallAttention
from test_decoding import SPECIAL, VOCABULARY

from mmada_lite import ImageSettings, TextSettings
from mmada_lite.decoding.block_state import over
from mmada_lite.decoding.canvas import Canvas
from mmada_lite.decoding.generate import TextTokens, complete, draw

MASK, END, CLOSE = 23, 3, 5
TOKENS = TextTokens(MASK, frozenset({END, END + 1}), (CLOSE,))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"early_stop": 1.0},
        {"early_stop": 0.2, "threshold": 0.3},
        {"threshold": 0.2, "thought_first": True},
        {"entropy_bound": 1.0},
        {"select": "margin", "guidance": 0.5},
        {"select": "entropy"},
        {"suffix_window": 2},
    ],
    ids=str,
)
def test_rows_of_a_batch_are_written_as_each_alone(change: dict[str, Any]) -> None:
    """A batch goes on until all its rows are over, so that a row may be written further than it is alone."""
    rows = np.random.default_rng(0).integers(0, MASK, (8, 4))
    settings = TextSettings(answer_length=16, steps=16, block_length=4).replace(**change)

    def written(prompts: np.ndarray) -> np.ndarray:
        decoding = complete(SmallAttention(), prompts, settings, TOKENS)
        list(decoding.steps)
        return decoding.ids

    together = written(rows)
    for row, own in zip(rows, together, strict=True):
        alone = written(row)[0]
        assert own[alone != MASK].tolist() == alone[alone != MASK].tolist()
    if change.get("early_stop"):
        assert (together == MASK).any()  # or nothing ended early


def test_a_row_reaches_beyond_a_block_when_its_own_part_is_whole() -> None:
    """4 is unsure where it is open, which is in the first row alone."""
    model = MockDenoiser({p: p for p in range(40)}, dict.fromkeys(range(40), 1.0) | {4: 0.5})
    settings = TextSettings(8, 8, 4).replace(threshold=1.0, lookahead=2)
    answers = [[MASK] * 8, [MASK, 9, *[MASK] * 6]]
    step = next(complete(model, [1, 2, 4], settings, TextTokens(MASK), answer=answers).steps)
    assert [step.positions[step.rows == row].tolist() for row in (0, 1)] == [[3, 5, 6], [3, 5, 6, 7, 8]]


def test_each_row_waits_for_its_own_thought() -> None:
    """All is sure: what stands behind the end of a thought waits where something before it is open."""
    model = MockDenoiser(dict.fromkeys(range(40), 7), dict.fromkeys(range(40), 1.0))
    settings = TextSettings(6, 6, 6).replace(threshold=0.5, thought_first=True)
    answers = [[MASK, MASK, CLOSE, *[MASK] * 3], [9, 9, CLOSE, *[MASK] * 3], [*[MASK] * 4, CLOSE, MASK]]
    step = next(complete(model, [1, 2, 4], settings, TextTokens(MASK, closing=(CLOSE,)), answer=answers).steps)
    assert [step.positions[step.rows == row].tolist() for row in range(3)] == [[3, 4], [6, 7, 8], [3, 4, 5, 6]]


def test_a_thought_that_ends_in_any_row_renews_the_keys_of_all() -> None:
    """One position a step, in order. The end of the first row's thought is given and its last mask is written by the second
    call; the second row's thought ends with what the fifth writes."""
    model = MockDenoiser(dict.fromkeys(range(40), 7) | {7: CLOSE}, {p: 0.9 - p / 50 for p in range(40)})
    settings = TextSettings(6, 6, 6).replace(cache="dual", thought_first=True)
    answers = [[MASK, MASK, CLOSE, *[MASK] * 3], [MASK] * 6]
    steps = list(complete(model, [1, 2, 4], settings, TextTokens(MASK, closing=(CLOSE,)), answer=answers).steps)
    assert [step.positions[step.rows == 1].tolist() for step in steps] == [[p] for p in range(3, 9)]
    assert [len(window.positions) for window in model.windows] == [9, 6, 9, 6, 6, 9]


def test_each_row_ends_by_its_own_candidates() -> None:
    """3 is open in the second row alone, which still says something."""
    model = MockDenoiser({3: 7} | dict.fromkeys(range(4, 40), END), {3: 0.99, 4: 0.8} | dict.fromkeys(range(5, 40), 0.85))
    settings = TextSettings(8, 8, 8).replace(early_stop=0.7)
    answers = [[9, *[MASK] * 7], [MASK] * 8]
    step = next(complete(model, [1, 2, 4], settings, TextTokens(MASK, frozenset({END})), answer=answers).steps)
    assert [step.positions[step.rows == row].tolist() for row in (0, 1)] == [[4, 5], [3]]
    tokens = np.array([[1, MASK, END], [1, END, MASK], [1, END, 2]])
    canvas = Canvas(tokens, np.array([[False, True, True]] * 3), 1, 3, MASK)
    assert over(canvas, np.array([END])).tolist() == [False, True, True]


@pytest.mark.parametrize("change", [{}, {"refresh": 3}, {"refresh": 4, "candidate_ratio": 1.0}, {"mode": "reference"}], ids=str)
def test_pictures_of_a_batch_are_drawn_as_each_alone(change: dict[str, Any]) -> None:
    """Without noise, and by a model that looks at places alone."""
    unknown = np.random.default_rng(1).random((4, 16)) < np.array([[0.9], [0.6], [0.6], [1.0]])
    unknown[:, :6] = True
    settings = ImageSettings(5, 0.0, "linear", 0.0, 0.0).replace(**change)

    def drawn(which: list[int]) -> tuple[list[list[int]], list[list[int]]]:
        model = MockDenoiser({p: p % 32 for p in range(60)}, {p: (p * 5 % 16 + 0.5) / 17 for p in range(60)})
        prompts = [[SPECIAL.t2i, 5, SPECIAL.soi]] * len(which)
        decoding = draw(model, prompts, [range(16)] * len(which), unknown[which], settings, VOCABULARY)
        left = []
        for number, step in enumerate(decoding.steps):
            assert (step.index, step.total_steps) == (number, settings.steps)
            assert (decoding.canvas.tokens[step.rows, step.positions] == step.tokens).all()
            left.append((decoding.ids == SPECIAL.mask).sum(axis=1).tolist())
        return decoding.ids.tolist(), left

    together, left = drawn([0, 1, 2, 3])
    for row in range(4):
        ids, alone = drawn([row])
        assert ids[0] == together[row]
        assert [each[0] for each in alone] == [each[row] for each in left]
