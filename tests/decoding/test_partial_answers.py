"""Laws of answers of which a part is given: what is given never changes, and what is masked is written as an answer of that
many tokens is."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_denoiser import MockDenoiser
from small_attention import SmallAttention

from mmada_lite import Error, TextSettings
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.generate import TextTokens, complete
from mmada_lite.decoding.settings import PRESETS

MASK, END = 23, 3
PROMPT = [1, 2, 4]
TOKENS = TextTokens(MASK, frozenset({END}))
ENDLESS = TextTokens(MASK)
FORM = [5, MASK, MASK, 6, 7, MASK, 8, MASK, MASK, MASK, MASK, 9]  # 7 masks and no tail
SETTINGS = TextSettings(answer_length=16, steps=16, block_length=4)


def written(
    chosen: TextSettings,
    answer: Sequence[int] | Sequence[Sequence[int]] | None,
    tokens: TextTokens = ENDLESS,
    model: Denoiser | None = None,
    seed: int = 0,
) -> tuple[list[list[int]], list[Step]]:
    decoding = complete(model or SmallAttention(), PROMPT, chosen, tokens, answer=answer, seed=seed)
    steps = list(decoding.steps)
    assert decoding.canvas.tokens[:, :3].tolist() == [PROMPT] * decoding.canvas.batch
    return decoding.ids.tolist(), steps


answers = st.lists(st.sampled_from([MASK, MASK, MASK, *range(4, 20)]), min_size=1, max_size=20).filter(lambda a: MASK in a)


@settings(deadline=None, max_examples=150)
@given(
    first=answers,
    others=st.lists(st.integers(0, 2**16), max_size=2),
    block=st.integers(1, 20),
    share=st.floats(0, 1),
    cache=st.sampled_from(["none", "prefix", "dual", "prompt"]),
    rule=st.sampled_from([{}, {"threshold": 0.4}, {"entropy_bound": 1.0}, {"threshold": 0.3, "lookahead": 5}]),
    select=st.sampled_from(["confidence", "margin", "entropy"]),
    renew=st.sampled_from([{}, {"refresh": 2}, {"refresh_drift": 0.1}]),
    suffix=st.sampled_from([None, 0, 3]),
    draft=st.integers(1, 4),
    guidance=st.sampled_from([0.0, 0.5]),
    early=st.sampled_from([None, 0.2, 1.0]),
    temperature=st.sampled_from([0.0, 1.0]),
    order=st.sampled_from(["low_confidence", "random"]),
    ends=st.booleans(),
)
def test_what_is_given_stays_and_masks_cost_what_an_answer_of_that_many_costs(
    first, others, block, share, cache, rule, select, renew, suffix, draft, guidance, early, temperature, order, ends
):
    answer = [first] + [shuffled(first, seed) for seed in others]
    blocks = -(-len(first) // block)
    chosen = TextSettings(len(first), blocks + round(share * (len(first) - blocks)), block, temperature, guidance)
    chosen = chosen.replace(cache=cache, suffix_window=suffix, early_stop=early, **rule, **({} if cache == "none" else renew))
    if order == "random" and "lookahead" not in rule:
        chosen = chosen.replace(order=order)
    else:
        chosen = chosen.replace(select=select)
    if not others and not temperature:
        chosen = chosen.replace(speculative_steps=draft)
    ids, steps = written(chosen, answer, TOKENS if ends else ENDLESS)
    masks = [[token == MASK for token in row] for row in answer]
    for row, before, masked in zip(ids, answer, masks, strict=True):
        assert [token for token, open_ in zip(row, masked, strict=True) if not open_] == [t for t in before if t != MASK]
        if not (ends and (before[-1] == MASK)):  # a text can end in its tail alone
            assert MASK not in row
    places = [(int(r), int(p)) for step in steps for r, p in zip(step.rows, step.positions - 3, strict=True)]
    assert len(set(places)) == len(places)
    assert all(masks[row][place] for row, place in places)
    to_write = int(np.array(masks).any(axis=0).sum())
    most = sum(b.steps for b in chosen.for_length(to_write).blocks(0))
    if not rule:
        assert len(steps) <= most
        if len(answer) == 1 and not ends:
            assert len(steps) == most == steps[0].total_steps
    assert steps[-1].model_calls <= to_write
    again = chosen.replace(speculative_steps=1)
    if chosen.acceleration.speculative_steps > 1:
        assert written(again, answer, TOKENS if ends else ENDLESS)[0] == ids


def shuffled(answer: list[int], seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(answer).tolist()


@pytest.mark.parametrize("changes", [{}, {"guidance": 0.5}, {"temperature": 0.7}, {"mode": "reference"}, *(
    dict(PRESETS[name][0]) for name in ("balanced", "fast")
)], ids=str)  # fmt: skip
def test_an_answer_that_is_all_masks_is_todays(changes):
    chosen = SETTINGS.replace(**changes)
    tokens = TextTokens(MASK, frozenset({END}), (11,))
    assert written(chosen, [MASK] * 16, tokens)[0] == written(chosen, None, tokens)[0]
    short = chosen.replace(answer_length=8, steps=8)
    assert written(chosen, [MASK] * 8, tokens)[0] == written(short, None, tokens)[0]


@pytest.mark.parametrize("speed", list(PRESETS))
def test_every_speed_keeps_a_form_and_takes_no_more_forwards(speed):
    chosen = SETTINGS.replace(**PRESETS[speed][0])
    ids, steps = written(chosen, FORM)
    assert [t for t, form in zip(ids[0], FORM, strict=True) if form != MASK] == [t for t in FORM if t != MASK]
    assert MASK not in ids[0]
    assert steps[-1].model_calls <= 7
    if speed == "exact":
        assert [len(step.positions) for step in steps] == [1] * 7
        assert max(p for step in steps[:4] for p in step.positions) < min(p for step in steps[4:] for p in step.positions)


def test_rows_that_are_given_differently_are_written_as_each_alone():
    """As long as both have their masks in the same blocks: the mock knows no neighbour."""
    rows = [[5, MASK, MASK, 6], [MASK, 5, 6, MASK]]
    model = MockDenoiser({p: p for p in range(20)}, {p: (p * 7 % 10 + 0.5) / 10 for p in range(20)})
    both = written(SETTINGS.replace(answer_length=4, steps=4), rows, model=model)[0]
    assert both == [[5, 4, 5, 6], [3, 5, 6, 6]]


def test_what_is_given_of_an_answer_counts_without_the_prompt_too():
    """As the given codes of a picture do: guidance compares with a row that lacks the prompt alone."""
    canvas = complete(SmallAttention(), PROMPT, SETTINGS.replace(guidance=1.0), ENDLESS, answer=FORM).canvas
    assert canvas.unconditional is not None
    assert canvas.unconditional.tolist() == [[MASK] * 3 + FORM]


HOLE_ENDS = {4: END, 5: 7, 9: 6} | dict.fromkeys((10, 11, 12, 13), END)  # by position: answer place + 3


def test_an_end_inside_a_hole_closes_it_at_once_and_nothing_else():
    answer = [5, MASK, MASK, MASK, 6, 7, MASK, MASK, MASK]
    sure = {4: 0.9, 9: 0.8}
    model = MockDenoiser(HOLE_ENDS, sure)
    ids, steps = written(SETTINGS.replace(block_length=8), answer, TOKENS, model)
    assert ids[0][:6] == [5, END, END, END, 6, 7]
    assert steps[0].positions.tolist() == [4, 5, 6]
    assert steps[0].tokens.tolist() == [END] * 3
    assert steps[0].log_probabilities.tolist() == pytest.approx([np.log(0.9), 0, 0])
    assert len(steps) == 4  # the tail is written as any text, to the end of its block
    assert ids[0][6:] == [6, END, END]


def test_what_is_written_before_a_hole_is_closed_stays():
    model = MockDenoiser({4: 9, 5: END, 6: 8, 7: 9}, {6: 0.95, 5: 0.9})
    ids, steps = written(SETTINGS, [5, MASK, MASK, MASK, MASK, 6], TOKENS, model)
    assert ids[0] == [5, 9, END, 8, END, 6]
    assert [step.positions.tolist() for step in steps] == [[6], [5, 7], [4]]


def test_a_block_that_is_closed_before_it_begins_costs_no_call():
    answer = [5, *[MASK] * 12, 6, MASK, 7]  # blocks of four masks; the hole spans three
    model = MockDenoiser({4: END, 17: 8}, {4: 0.9})
    ids, steps = written(SETTINGS, answer, TOKENS, model)
    assert ids[0] == [5, *[END] * 12, 6, 8, 7]
    assert len(model.windows) == len(steps) == 2
    assert steps[0].total_steps == sum(block.steps for block in SETTINGS.for_length(13).blocks(0))


def test_a_stop_token_ends_a_text_in_its_tail_alone():
    chosen = SETTINGS.replace(early_stop=1.0)
    model = MockDenoiser(dict.fromkeys(range(40), 5) | {4: END, 12: END}, dict.fromkeys((12,), 0.9))
    ids, _ = written(chosen, [END, MASK, 6, *[MASK] * 13], TOKENS, model)
    assert ids[0] == [END, END, 6, 5, 5, 5, 5, 5, 5, END, *[MASK] * 6]
    closed, _ = written(chosen, [*[MASK] * 8, END], TOKENS, MockDenoiser(dict.fromkeys(range(40), 5)))
    assert closed[0] == [5] * 8 + [END]


def test_what_is_given_is_read_however_far_behind_a_block_it_stands():
    chosen = SETTINGS.replace(suffix_window=0)
    model = SmallAttention()
    written(chosen, [*[MASK] * 12, 9, MASK, MASK, MASK], model=model)
    assert {stop for _, _, stop in model.windows} == {3 + 13, 3 + 16}


def test_a_cache_that_is_renewed_at_every_step_writes_what_none_does():
    for cache in ("prefix", "dual", "prompt"):
        assert written(SETTINGS.replace(cache=cache, refresh=1), FORM)[0] == written(SETTINGS, FORM)[0]


def test_an_answer_in_which_nothing_is_masked_is_refused():
    with pytest.raises(Error, match="an answer of 3 tokens without a mask leaves nothing to write"):
        written(SETTINGS, [5, 6, 7])
    with pytest.raises(Error, match="mode reference divides exactly: answer_length 7"):
        written(SETTINGS.replace(mode="reference"), FORM)
