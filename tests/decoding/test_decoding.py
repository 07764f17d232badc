"""Laws of the two loops, on a planted mock model: what is given never changes, what was masked is all written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_denoiser import MockDenoiser
from small_attention import SmallAttention

from mmada_lite import Error
from mmada_lite.decoding.canvas import image_canvas, text_canvas
from mmada_lite.decoding.generate import TextTokens, complete, draw
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.decoding.selection import above_threshold, entropy_bounded, most_confident, remask_least_confident
from mmada_lite.decoding.settings import ImageSettings, TextAcceleration, TextSettings, from_plain
from mmada_lite.decoding.text import decode_text
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

SPECIAL = SpecialTokens(*range(100, 112))
VOCABULARY = Vocabulary(SPECIAL, image_code_offset=112, codebook_size=32, size=144)
GREEDY = PhiloxSampler(0, 0.0, 0)


def text(settings_, prompt=(1, 2, 3), planted=None, certainty=None, stop=(), sampler=GREEDY, closing=()):
    canvas = text_canvas(list(prompt), settings_.answer_length, SPECIAL.mask, guided=settings_.guidance > 0)
    denoiser = MockDenoiser(planted or {p: p % 50 for p in range(200)}, certainty)
    steps = list(decode_text(denoiser, canvas, settings_, sampler, stop, closing))
    return canvas, denoiser, steps


@settings(deadline=None, max_examples=60)
@given(
    answer=st.integers(1, 24),
    block=st.integers(1, 24),
    share=st.floats(0, 1),
    cache=st.sampled_from(["none", "prefix", "dual", "prompt"]),
    threshold=st.sampled_from([None, 0.3, 0.7]),
    order=st.sampled_from(["low_confidence", "random"]),
    guidance=st.sampled_from([0.0, 1.5]),
)
def test_no_mask_is_left_and_the_prompt_stays(answer, block, share, cache, threshold, order, guidance):
    blocks = -(-answer // block)
    steps = blocks + round(share * (answer - blocks))
    chosen = TextSettings(answer, steps, block, 0.0, guidance, order, acceleration=TextAcceleration(cache, threshold))
    certainty = {p: (p * 7 % 10 + 0.5) / 10 for p in range(60)}
    canvas, denoiser, done = text(chosen, certainty=certainty)
    assert canvas.tokens[0].tolist() == [1, 2, 3, *(p % 50 for p in range(3, 3 + answer))]
    assert done[-1].remaining == 0
    assert sum(step.tokens.size for step in done) == answer
    assert [step.index for step in done] == list(range(len(done)))
    assert len(denoiser.windows) == len(done) * (2 if guidance else 1)
    assert 0 <= done[0].seconds <= done[-1].seconds < 60
    if threshold is None:
        assert len(done) == done[0].total_steps == sum(b.steps for b in chosen.blocks(3))


def test_blocks_are_finished_left_to_right_and_the_most_confident_goes_first():
    chosen = TextSettings(answer_length=8, steps=8, block_length=4)
    _, _, steps = text(chosen, certainty={p: 0.1 + 0.1 * (p % 4) for p in range(20)})
    order = [int(step.positions[0]) for step in steps]
    assert sorted(order[:4]) == [3, 4, 5, 6]
    assert order[0] == 3  # 3 % 4 is the most confident of its block


@pytest.mark.parametrize(("cache", "later"), [("none", (0, 11)), ("prefix", (3, 11)), ("dual", (3, 7)), ("prompt", (3, 7))])
def test_windows_of_each_cache_policy(cache, later):
    _, denoiser, _ = text(TextSettings(answer_length=8, steps=8, block_length=4).replace(cache=cache))
    spans = [(int(w.positions[0]), int(w.positions[-1]) + 1) for w in denoiser.windows[:4]]
    assert spans == [(0, 11), later, later, later]
    past = denoiser.windows[1].past
    covered = set() if past is None else set(past.keys[0][0, 0, :, 0].astype(int).tolist())
    assert covered == set(range(11)) - set(range(*later))


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_prompt_that_is_kept_is_read_once(guidance):
    chosen = TextSettings(answer_length=12, steps=6, block_length=4, guidance=guidance).replace(cache="prompt")
    _, denoiser, _ = text(chosen)
    windows = denoiser.windows[:: 2 if guidance else 1]
    spans = [(int(w.positions[0]), int(w.positions[-1]) + 1) for w in windows]
    assert spans == [(0, 15), (3, 7), (3, 15), (7, 11), (3, 15), (11, 15)]
    pasts = [[] if w.past is None else w.past.keys[0][0, 0, :, 0].astype(int).tolist() for w in windows]
    assert pasts[2] == pasts[4] == [0, 1, 2]
    for window, past in zip(windows, pasts, strict=True):  # each position once, in the window or in its past
        assert sorted(past + window.positions.tolist()) == list(range(15))


def test_decoding_stops_after_the_block_that_ends_the_text():
    planted = dict.fromkeys(range(40), 5) | {8: SPECIAL.eot}
    chosen = TextSettings(answer_length=16, steps=16, block_length=4)
    canvas, _, steps = text(chosen, planted=planted, stop=[SPECIAL.eot])
    assert len(steps) == 8
    assert (canvas.tokens[0, 11:] == SPECIAL.mask).all()
    reference = chosen.replace(mode="reference")  # looks at the last token of a block only
    assert len(text(reference, planted=planted, stop=[SPECIAL.eot])[2]) == 16
    for last, steps_taken in ((9, 16), (10, 8)):
        planted = dict.fromkeys(range(40), 5) | {last: SPECIAL.eot}
        assert len(text(reference, planted=planted, stop=[SPECIAL.eot])[2]) == steps_taken
    planted = dict.fromkeys(range(40), 5) | {3: SPECIAL.eot}  # nothing is said at all
    assert len(text(chosen, planted=planted, stop=[SPECIAL.eot])[2]) == 4


@pytest.mark.parametrize(("least", "written"), [(0.5, [4]), (0.49, [3, 4])])
def test_an_end_comes_early_where_it_is_more_probable_than_asked(least, written):
    ends = dict.fromkeys(range(40), SPECIAL.eot)
    sure = {3: 0.5} | dict.fromkeys(range(4, 40), 0.85)
    steps = text(TextSettings(8, 8, 8).replace(early_stop=least), planted=ends, certainty=sure, stop=[SPECIAL.eot])[2]
    assert steps[0].positions.tolist() == written


def test_a_step_that_computes_all_may_write_beyond_its_block():
    """The window of a block, which later steps compute, does not hold what is beyond it."""
    chosen = TextSettings(8, 8, 4).replace(cache="dual", threshold=0.5, lookahead=2)
    for refresh, written in ((1, [[3, 4, 5], [6, 7, 8], [9, 10]]), (None, [[3, 4, 5], [6], [7, 8, 9, 10]])):
        steps = text(chosen.replace(refresh=refresh), certainty=dict.fromkeys(range(40), 0.9) | {6: 0.1})[2]
        assert [step.positions.tolist() for step in steps] == written
        assert {step.predicted_codes for step in steps} == {None}  # a text has no codes


def test_a_seed_that_is_not_said_is_0():
    hot, codes = TextSettings(8, 8, 8, temperature=1.0), [True] * 6

    def written(**seed):
        decoding = complete(SmallAttention(), [1, 2], hot, TextTokens(23), **seed)
        return [step.tokens.tolist() for step in decoding.steps]

    def drawn(**seed):
        decoding = draw(MockDenoiser({}), [SPECIAL.t2i, SPECIAL.soi], range(6), codes, ImageSettings(3), VOCABULARY, **seed)
        return [step.tokens.tolist() for step in decoding.steps]

    for made in (written, drawn):
        assert made() == made(seed=0) != made(seed=1)


def test_a_masked_prompt_position_is_filled_too():
    chosen = TextSettings(answer_length=4, steps=4, block_length=2)
    for cache in ("none", "prefix", "dual", "prompt"):
        for sure in (0.1, 0.9):  # last of its block, where a window must hold it, and first
            canvas, _, _ = text(chosen.replace(cache=cache), prompt=(1, SPECIAL.mask, 3), certainty={1: sure})
            assert canvas.tokens[0].tolist() == [1, 1, 3, 3, 4, 5, 6]
    sure = {0: 0.9, 3: 0.8}
    canvas, _, _ = text(chosen, prompt=(SPECIAL.mask, SPECIAL.mask, 3), certainty=sure, stop=[SPECIAL.eot])
    assert canvas.tokens[0].tolist() == [0, 1, 3, 3, 4, 5, 6]  # one that is written fills no other
    steps = text(chosen, prompt=(SPECIAL.mask, 2, 3))[2]
    assert [step.tokens.size for step in steps] == [2, 1, 1, 1]  # it is shared out with the first block, and takes no step more
    canvas, _, steps = text(chosen.replace(mode="reference"), prompt=(SPECIAL.mask, 2, 3))
    assert [step.tokens.size for step in steps] == [1, 1, 1, 1]  # the reference does not count it, and so leaves one mask
    assert (canvas.tokens == SPECIAL.mask).sum() == 1


@pytest.mark.parametrize(("cache", "calls"), [("none", 2), ("prefix", 4), ("dual", 4)])
def test_the_reference_wastes_a_call_a_block_where_it_caches(cache, calls):
    """Though the first call of a block has written all of it (docs/lab/parity.md)."""
    chosen = TextSettings(answer_length=8, steps=8, block_length=4, mode="reference").replace(cache=cache, threshold=0.4)
    assert len(text(chosen)[1].windows) == calls
    assert len(text(chosen.replace(mode="default"))[1].windows) == 2


def test_a_model_that_wants_to_write_masks_writes_its_second_choice():
    chosen = TextSettings(answer_length=4, steps=2, block_length=4)
    canvas, _, steps = text(chosen, planted=dict.fromkeys(range(20), SPECIAL.mask))
    assert canvas.tokens[0, 3:].tolist() == [7, 7, 7, 7]
    among_the_others = 2 - np.log(np.exp(2) + 142)  # logits of the mock: 2 for that token, 0 for every other but the mask
    assert [step.log_probabilities.tolist() for step in steps] == [pytest.approx([among_the_others] * 2)] * 2


def test_rows_of_a_batch_do_not_touch_each_other():
    chosen = TextSettings(answer_length=6, steps=6, block_length=6).replace(threshold=0.5)
    canvas = text_canvas([[1, 2], [3, SPECIAL.mask]], 6, SPECIAL.mask)
    list(decode_text(MockDenoiser({p: p for p in range(20)}), canvas, chosen, GREEDY))
    assert canvas.tokens.tolist() == [[1, 2, 2, 3, 4, 5, 6, 7], [3, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0])
def test_numbers_that_are_not_finite_end_a_decode(number):
    """At the step that meets them, where a text would wait for ever and a picture be drawn from nothing."""
    last = dict.fromkeys(range(10, 11), number)
    with pytest.raises(Error, match=r"step 2: the model's numbers are not finite.*info FOLDER --verify"):
        text(TextSettings(answer_length=8, steps=2, block_length=4), certainty=last)
    for chosen in (ImageSettings(steps=3), ImageSettings(steps=3, guidance=0.0)):
        with pytest.raises(Error, match="step 1: the model's numbers are not finite"):
            image(chosen, certainty=last)


def image(chosen, unknown=None, seed=0, codes=None, guided=True, certainty=None):
    unknown = np.ones(16, dtype=bool) if unknown is None else unknown
    nothing = [SPECIAL.t2i, SPECIAL.bos, SPECIAL.eos, SPECIAL.soi] if guided else None
    prompt = [SPECIAL.t2i, SPECIAL.bos, 5, 6, SPECIAL.eos, SPECIAL.soi]
    canvas = image_canvas(prompt, np.zeros(16) if codes is None else codes, unknown, VOCABULARY, unconditional_prompt=nothing)
    denoiser = MockDenoiser({p: p % 32 for p in range(40)}, certainty or {p: (p * 5 % 16 + 0.5) / 17 for p in range(40)})
    sampler = PhiloxSampler(seed, chosen.sampling_temperature, canvas.start)
    return canvas, denoiser, list(decode_image(denoiser, canvas, chosen, sampler))


@settings(deadline=None, max_examples=60)
@given(
    unknown=st.lists(st.booleans(), min_size=16, max_size=16).filter(any),
    share=st.floats(0, 1),
    name=st.sampled_from(["cosine", "linear", "sigmoid", "pow2"]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_given_codes_never_change_and_every_mask_is_drawn(unknown, share, name, temperature, seed):
    unknown = np.array(unknown)
    steps = 1 + round(share * (unknown.sum() - 1))
    chosen = ImageSettings(steps, 2.0, name, temperature, temperature)
    codes = np.arange(16) + 3
    canvas, _, done = image(chosen, unknown, seed, codes)
    final = done[-1].predicted_codes[0]
    assert (final[~unknown] == codes[~unknown]).all()
    assert (canvas.tokens[0, canvas.region] == final + 112).all()
    assert canvas.unconditional is not None
    assert (canvas.unconditional[0, 3:] == canvas.tokens[0, 5:]).all()
    assert 0 <= done[0].seconds <= done[-1].seconds < 60
    left = [step.remaining for step in done]
    assert len(done) == steps
    assert left[-1] == 0
    assert all(a > b for a, b in zip([int(unknown.sum()), *left], left, strict=False))  # every step draws something


def test_the_schedule_counts_what_is_unknown_unless_the_reference_is_asked_for():
    unknown = np.arange(16) < 6
    sensible = image(ImageSettings(4, 0.0, "linear", 0.0, 0.0), unknown, guided=False)[2]
    assert [s.remaining for s in sensible] == [4, 3, 1, 0]
    canvas, _, reference = image(ImageSettings(4, 0.0, "linear", 0.0, 0.0, "reference"), unknown, guided=False)
    assert [s.remaining for s in reference] == [5, 4, 3, 1]  # it counts over all 16 and keeps one mask
    assert (reference[-1].predicted_codes[0] < 32).all()
    assert (canvas.tokens == SPECIAL.mask).sum() == 1


def test_the_same_seed_draws_the_same_and_another_seed_another():
    chosen = ImageSettings(8)
    first, again, other = (image(chosen, seed=s)[2][-1].predicted_codes.tolist() for s in (3, 3, 4))
    assert first == again
    assert first != other


def test_selection_laws():
    confidence = np.array([[-1.0, -0.5, -np.inf, -0.5], [-3.0, -2.0, -1.0, -np.inf]])
    assert most_confident(confidence, np.array([1, 2])).tolist() == [[False, True, False, False], [False, True, True, False]]
    assert most_confident(confidence, np.array([9, 0])).sum(axis=1).tolist() == [3, 0]
    assert above_threshold(confidence, -0.9).tolist() == [[False, True, False, True], [False, False, True, False]]
    assert not above_threshold(np.full((1, 3), -np.inf), -0.9).any()
    ties = np.array([[1.0, 1.0, 1.0, 2.0]])
    assert remask_least_confident(ties, np.array([2])).sum() == 0  # strictly below the cutoff
    assert remask_least_confident(np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([2])).tolist() == [[False, False, True, True]]
    assert remask_least_confident(np.array([[2.0, 1.0]]), np.array([5])).tolist() == [[False, True]]  # the best one stays


def test_among_equals_the_leftmost_is_written_first():
    """Among many, since sorts that do not keep the order of equals keep that of a few."""
    rng = np.random.default_rng(0)
    confidence, entropy = rng.integers(-3, 0, (2, 200)).astype(float), rng.random((2, 200))
    order = [sorted(range(200), key=lambda place, row=row: -row[place]) for row in confidence]
    for count in (1, 50, 150):
        chosen = most_confident(confidence, np.array([count] * 2))
        assert [np.flatnonzero(row).tolist() for row in chosen] == [sorted(places[:count]) for places in order]
    ranked = [entropy[row, places] for row, places in enumerate(order)]
    lost = [[own[:n].sum() - own[:n].max() for n in range(1, 201)] for own in ranked]
    for bound in np.arange(0.05, 60, 0.7):
        counts = [sum(each <= bound for each in own) for own in lost]
        assert (entropy_bounded(confidence, entropy, bound) == most_confident(confidence, np.array(counts))).all()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 200}, "at most 128 steps"),
        ({"steps": 2}, "at least 4 steps"),
        ({"answer_length": 0}, "answer_length"),
        ({"threshold": 1.5}, "threshold"),
        ({"cache": "both"}, "none, prefix, dual"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"mode": "reference", "steps": 5}, "divides exactly"),
    ],
)
def test_impossible_text_settings_say_how_to_mend_them(changes, word):
    with pytest.raises(Error, match=word):
        TextSettings().replace(**changes)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(Error, match="did you mean 'guidance'"):
        from_plain(ImageSettings, {"guidence": 2.0})
    with pytest.raises(Error, match="schedule"):
        ImageSettings(schedule="cosinus")
