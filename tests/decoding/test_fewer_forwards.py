"""Laws of what saves work: each value does what it says, no mask is left, and what is called exact is exact."""

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_attention import SmallAttention
from test_decoding import GREEDY, SPECIAL, text

from mmada_lite import Error
from mmada_lite.decoding.canvas import Canvas
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.decoding.selection import entropy_bounded, unbroken_run
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.decoding.text import decode_text

MASK, END = 23, 3
PLAIN = TextSettings(answer_length=16, steps=16, block_length=8)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, MASK, size=rng.integers(1, 9)).tolist() for _ in range(count)]


def decoded(
    chosen: TextSettings,
    prompt: Sequence[int] = (1, 2, 3),
    stop: Sequence[int] = (),
    model: SmallAttention | None = None,
    closing: Sequence[int] = (),
) -> tuple[list[int], list[Step], SmallAttention]:
    """The finished row, the steps and the model that made them."""
    tokens = np.array([[*prompt, *[MASK] * chosen.answer_length]])
    canvas = Canvas(tokens, tokens == MASK, len(prompt), tokens.shape[1], MASK)
    if chosen.guidance > 0:
        canvas.unconditional = np.full_like(tokens, MASK)
        canvas.shared = np.flatnonzero(canvas.editable[0])
    model = model or SmallAttention()
    steps = list(decode_text(model, canvas, chosen, PhiloxSampler(0, chosen.temperature, canvas.start), stop, closing))
    return canvas.tokens[0].tolist(), steps, model


@settings(deadline=None, max_examples=25)
@given(
    answer=st.integers(1, 20),
    block=st.integers(1, 20),
    cache=st.sampled_from(["none", "prefix", "dual", "prompt"]),
    rule=st.sampled_from([{}, {"threshold": 0.4}, {"entropy_bound": 1.0}, {"threshold": 0.3, "lookahead": 5}]),
    select=st.sampled_from(["confidence", "margin", "entropy"]),
    renew=st.sampled_from([{}, {"refresh": 2}, {"refresh_drift": 0.1}, {"refresh": 3, "refresh_drift": 0.5}]),
    suffix=st.sampled_from([None, 0, 3]),
    draft=st.integers(1, 4),
    guidance=st.sampled_from([0.0, 0.5]),
    settle=st.sampled_from([None, 1, 3]),
    thought=st.booleans(),
)
def test_every_mask_is_written_once_and_calls_are_counted(
    answer, block, cache, rule, select, renew, suffix, draft, guidance, settle, thought
):
    renew = {} if cache == "none" else renew
    chosen = TextSettings(answer, answer, block, guidance=guidance).replace(
        cache=cache, select=select, suffix_window=suffix, speculative_steps=draft, **rule, **renew
    )
    chosen, closing = chosen.replace(thought_first=thought), [END] if thought else []
    if draft == 1 and cache in ("dual", "prompt"):
        chosen = chosen.replace(kv_commit_every=settle)
    row, steps, model = decoded(chosen, closing=closing)
    assert MASK not in row
    assert row[:3] == [1, 2, 3]
    assert sorted(p for step in steps for p in step.positions.tolist()) == list(range(3, 3 + answer))
    assert [step.index for step in steps] == list(range(len(steps)))
    assert all(step.tokens.size for step in steps)  # every step writes
    calls = [step.model_calls for step in steps]
    assert calls == sorted(calls)
    assert calls[-1] == len(model.windows) // (2 if guidance else 1)
    assert calls == list(range(1, len(steps) + 1)) or draft > 1
    row_again, _, model = decoded(chosen.replace(speculative_steps=1), closing=closing)
    assert row == row_again
    assert calls[-1] <= len(model.windows) // (2 if guidance else 1)


@pytest.mark.parametrize(
    ("more", "again"),
    [
        ({}, 2),
        ({"guidance": 0.5}, 4),
        ({"refresh": 3}, 2),
        ({"kv_commit_every": 3}, 2),
        ({"suffix_window": 3}, 0),
        ({"speculative_steps": 2}, 2),
    ],
)
def test_a_prompt_that_stands_in_its_buffer_is_not_copied_again(monkeypatch, more, again):
    """Of three blocks the second and the third begin with the prompt anew; nothing else changes for it."""
    chosen = TextSettings(answer_length=12, steps=12, block_length=4).replace(cache="prompt", **more)
    spared, begins_with = [], KVBuffer.begins_with

    def counted(buffer: KVBuffer, past: KeyValues, length: int) -> bool:
        spared.append(begins_with(buffer, past, length))
        return spared[-1]

    monkeypatch.setattr(KVBuffer, "begins_with", counted)
    rows = [decoded(chosen, prompt)[0] for prompt in prompts(20)]
    assert sum(spared) >= 20 * again
    monkeypatch.setattr(KVBuffer, "begins_with", lambda buffer, past, length: False)
    assert rows == [decoded(chosen, prompt)[0] for prompt in prompts(20)]


def arrays(each: KeyValues) -> tuple[np.ndarray, ...]:
    return *each.keys, *each.values


@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_prompt_is_kept_in_the_memory_of_the_row(stop: int) -> None:
    """Cut as any other past is, but without fresh memory."""
    drawn = np.random.default_rng(0).standard_normal((4, 2, 3, 9, 4)).astype(np.float32)
    kept = KeyValues(tuple(drawn[:2].copy()), tuple(drawn[2:].copy()))
    expected = KeyValues(tuple(drawn[:2]), tuple(drawn[2:])).without(stop, 9, KVBuffer())
    shrunk = kept.shrunk(stop)
    for wanted, own, before in zip(arrays(expected), arrays(shrunk), arrays(kept), strict=True):
        np.testing.assert_array_equal(own, wanted)
        assert own.flags.c_contiguous
        assert np.shares_memory(own, before) == (stop > 0)


QUOTAS = (PLAIN, PLAIN.replace(steps=8), PLAIN.replace(steps=11, block_length=5))


@pytest.mark.parametrize(
    "chosen",
    [
        *QUOTAS,
        *(PLAIN.replace(cache=cache) for cache in ("prefix", "dual")),
        PLAIN.replace(cache="dual", refresh=3),
        PLAIN.replace(cache="dual", refresh_drift=0.2),
        PLAIN.replace(order="random"),
        PLAIN.replace(select="margin", early_stop=0.5),
        PLAIN.replace(entropy_bound=0.5, suffix_window=2),
        PLAIN.replace(guidance=1.0, cache="prefix"),
    ],
    ids=lambda chosen: " ".join(f"{name}={value}" for name, value in chosen.flat().items() if value != PLAIN.flat()[name]),
)
def test_drafts_are_lossless_over_hundreds_of_prompts(chosen):
    """Token for token, step for step what one at a time writes, in fewer forwards."""
    alone = drafted = 0
    for prompt in prompts(30, seed=zlib.crc32(repr(chosen).encode())):  # others for each of the settings
        row, steps, _ = decoded(chosen, prompt, stop=[END])
        same, again, _ = decoded(chosen.replace(speculative_steps=4), prompt, stop=[END])
        assert row == same
        for one, other in zip(steps, again, strict=True):
            assert one.positions.tolist() == other.positions.tolist()
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.log_probabilities.tolist() == pytest.approx(other.log_probabilities.tolist())
        alone, drafted = alone + steps[-1].model_calls, drafted + again[-1].model_calls
        assert again[-1].model_calls <= steps[-1].model_calls
    assert drafted < alone


@pytest.mark.parametrize(
    ("change", "calls", "drafts"),
    [
        ({}, [1, 2, 2, 2, 2, 3, 3, 3, 3], [1, 4, 4]),
        ({"order": "random"}, [1, 2, 2, 2, 2, 3, 3, 3, 3], [1, 4, 4]),
        ({"steps": 7}, [1, 2, 2, 2, 2, 3, 3], [1, 4, 2]),  # two tokens at each of the first two steps; no draft beyond the end
    ],
)
def test_a_draft_that_holds_saves_all_that_it_foresaw(change, calls, drafts):
    chosen = TextSettings(answer_length=9, steps=9, block_length=9).replace(speculative_steps=4, **change)
    _, denoiser, steps = text(chosen, certainty={p: 0.9 - p / 50 for p in range(20)})  # this mock never changes its mind
    assert [step.model_calls for step in steps] == calls
    assert [len(window.tokens) for window in denoiser.windows] == drafts


def test_a_cache_that_is_renewed_at_every_step_equals_none():
    for prompt in prompts(30):
        exact = decoded(PLAIN, prompt)[0]
        assert all(decoded(PLAIN.replace(cache=cache, refresh=1), prompt)[0] == exact for cache in ("prefix", "dual"))


def test_keys_are_renewed_when_said_and_when_candidates_move():
    def spans(**change):
        model = decoded(PLAIN.replace(cache="dual", **change))[2]
        return [(first, last) for _, first, last in model.windows]

    all_positions, block = (0, 19), (3, 11)
    assert spans()[:8] == [all_positions, *[block] * 7]
    assert spans(refresh=3)[:8] == [all_positions, block, block, all_positions, block, block, all_positions, block]
    assert spans(refresh_drift=1.0) == spans()
    moved = spans(refresh_drift=0.0)
    assert moved.count(all_positions) > spans(refresh_drift=0.3).count(all_positions) >= 2
    still = TextSettings(8, 8, 8).replace(cache="dual", refresh_drift=0.0)
    _, denoiser, _ = text(still)  # candidates that never move renew nothing
    assert [len(window.positions) for window in denoiser.windows] == [11, *[8] * 7]


def test_written_positions_leave_the_window_a_step_later():
    """In order of their places, one a step: 3 is written by the first call and read as written by the second."""
    chosen = TextSettings(8, 8, 8).replace(cache="dual", kv_commit_every=1)
    most_confident_first = {p: 0.9 - p / 50 for p in range(20)}
    _, denoiser, _ = text(chosen, certainty=most_confident_first)
    assert [window.positions.tolist() for window in denoiser.windows[1:4]] == [list(range(n, 11)) for n in (3, 4, 5)]
    _, denoiser, _ = text(chosen.replace(kv_commit_every=3), certainty=most_confident_first)
    assert [len(window.positions) for window in denoiser.windows] == [11, 8, 8, 8, 5, 5, 5, 2]
    for window in denoiser.windows[1:]:  # each position once, in the window or in its past
        cached = window.past.keys[0][0, 0, :, 0].astype(int).tolist()
        assert sorted(cached + window.positions.tolist()) == list(range(11))


def test_committed_keys_are_those_of_the_step_after_they_were_written():
    """With keys that do not hang on other positions (one layer), committing early changes nothing."""
    for prompt in prompts(20):
        for cache in ("dual", "prompt"):
            chosen = PLAIN.replace(cache=cache, guidance=0.5)
            one, two = (decoded(chosen.replace(kv_commit_every=n), prompt, model=SmallAttention(layers=1)) for n in (None, 1))
            assert one[0] == two[0]
            assert sum(len(s.positions) for s in two[1]) == 16


def test_a_far_suffix_is_left_out_and_positions_stay():
    for cache in ("none", "prefix", "dual"):
        model = decoded(PLAIN.replace(block_length=4, cache=cache, suffix_window=2))[2]
        starts = model.windows[::4]
        assert starts == [(1, 0, 9), (1, 0, 13), (1, 0, 17), (1, 0, 19)]
        inside = {"none": (1, 0, 9), "prefix": (1, 3, 9), "dual": (1, 3, 7)}[cache]
        assert model.windows[1:4] == [inside] * 3
    model = decoded(PLAIN.replace(block_length=4, cache="prompt", suffix_window=2))[2]
    assert model.windows[::4] == [(1, 0, 9), (1, 3, 13), (1, 3, 17), (1, 3, 19)]
    assert decoded(PLAIN.replace(suffix_window=99))[0] == decoded(PLAIN)[0]


def test_decoding_ends_as_soon_as_the_text_cannot_change():
    """With early_stop 1 the text up to its end is the same as without, and never takes more steps."""
    fewer = 0
    stop = [END, END + 1, END + 2]
    for prompt in prompts(60):
        row, steps, _ = decoded(PLAIN, prompt, stop=stop)
        short, early, _ = decoded(PLAIN.replace(early_stop=1.0), prompt, stop=stop)
        end = next((place + 1 for place in range(len(prompt), len(row)) if row[place] in stop), len(row))
        assert short[:end] == row[:end]
        assert len(early) <= len(steps)
        fewer += len(early) < len(steps)
    assert fewer


def test_an_end_that_is_sure_to_come_is_taken():
    planted = {3: 5, 4: 6} | dict.fromkeys(range(5, 40), SPECIAL.eot)
    sure = {3: 0.99, 4: 0.98, 5: 0.8} | dict.fromkeys(range(6, 40), 0.85)
    chosen = TextSettings(answer_length=16, steps=16, block_length=8)
    all_steps = text(chosen, planted=planted, certainty=sure, stop=[SPECIAL.eot])[2]
    canvas, _, steps = text(chosen.replace(early_stop=0.7), planted=planted, certainty=sure, stop=[SPECIAL.eot])
    assert len(all_steps) == 8
    assert [step.positions.tolist() for step in steps] == [[3], [4], [5, 6]]
    assert canvas.tokens[0, :6].tolist() == [1, 2, 3, 5, 6, SPECIAL.eot]
    assert steps[-1].remaining == 12
    unsure = text(chosen.replace(early_stop=0.9), planted=planted, certainty=sure, stop=[SPECIAL.eot])[2]
    assert len(unsure) == 8  # what follows the end is more probable, so the end itself comes last
    nothing = dict.fromkeys(range(3, 40), SPECIAL.eot)  # an answer may end before it begins
    first = text(chosen.replace(early_stop=0.7), planted=nothing, certainty=sure | {3: 0.8}, stop=[SPECIAL.eot])[2][0]
    assert first.positions.tolist() == [3, 4]
    other = planted | {9: 7}  # something else still stands behind the end
    assert len(text(chosen.replace(early_stop=0.7), planted=other, certainty=sure | {9: 0.1}, stop=[SPECIAL.eot])[2]) == 7


def test_rows_that_are_over_are_not_queried():
    tokens = np.array([[1, *[SPECIAL.mask] * 6]] * 2)
    canvas = Canvas(tokens, tokens == SPECIAL.mask, 1, 7, SPECIAL.mask)
    tokens[0, 1] = SPECIAL.eot
    model = text(TextSettings(6, 6, 6))[1]
    steps = list(decode_text(model, canvas, TextSettings(6, 6, 6).replace(early_stop=1.0), GREEDY, [SPECIAL.eot]))
    assert all((step.rows == 1).all() for step in steps)
    assert (canvas.tokens[0, 2:] == SPECIAL.mask).all()
    assert (canvas.tokens[1] != SPECIAL.mask).all()


def test_nothing_beyond_a_block_is_written_unless_all_before_it_is():
    chosen = PLAIN.replace(block_length=4, threshold=0.3, lookahead=6)
    saved = 0
    for prompt in prompts(60):
        for cache in ("none", "prefix", "dual"):
            _, steps, model = decoded(chosen.replace(cache=cache), prompt)
            done: set[int] = set(range(len(prompt)))
            for step in steps:
                done |= set(step.positions.tolist())
                last = max(step.positions.tolist())
                stop = len(prompt) + ((min(set(range(99)) - (done - set(step.positions.tolist()))) - len(prompt)) // 4 + 1) * 4
                assert last < stop or set(range(last + 1)) <= done
                assert last < stop + 6
                _, first, end = model.windows[step.model_calls - 1]
                assert first <= min(step.positions)
                assert last < end  # what no call computed is not written
        saved += len(decoded(chosen.replace(lookahead=0), prompt)[1]) - len(decoded(chosen, prompt)[1])
    assert saved > 0


@pytest.mark.parametrize(("sure", "written"), [(1.0, [[*range(3, 9)], [9, 10]]), (0.5, [[p] for p in range(3, 11)])])
def test_the_threshold_counts_alike_within_a_block_and_beyond_it(sure, written):
    """Exactly as probable as the threshold is probable enough; `lookahead` reaches so many tokens and no more."""
    chosen = TextSettings(8, 8, 4).replace(threshold=1.0, lookahead=2)
    steps = text(chosen, certainty=dict.fromkeys(range(20), sure))[2]
    assert [step.positions.tolist() for step in steps] == written


@pytest.mark.parametrize("closing", [[8], [7, 8]])
def test_what_follows_a_thought_waits_for_it(closing):
    """All is as sure as can be and would be written at once; 8 stands at position 8, 7 before it."""
    chosen = TextSettings(12, 12, 12).replace(threshold=0.5)
    for thought_first, written in ((False, [list(range(3, 15))]), (True, [list(range(3, 9)), list(range(9, 15))])):
        _, _, steps = text(chosen.replace(thought_first=thought_first), closing=closing)
        assert [step.positions.tolist() for step in steps] == written
    assert len(text(chosen.replace(thought_first=True), closing=[8, 7])[2]) == 1  # no such end: nothing waits
    for end in (3, 13):  # at the first place, or before the last
        steps = text(chosen.replace(thought_first=True), closing=[end])[2]
        assert [step.positions.tolist() for step in steps] == [list(range(3, end + 1)), list(range(end + 1, 15))]
    _, _, steps = text(chosen.replace(thought_first=True, threshold=None, steps=2), closing=closing)
    assert [step.total_steps for step in steps] == [None] * len(steps)  # quotas may come a step late


def test_what_follows_a_thought_is_read_with_all_of_it_anew():
    """One position a step, in order: 8 at position 8 ends the thought, so that the call after that one computes all, once."""

    def spans(**change):
        chosen = TextSettings(12, 12, 12).replace(cache="dual", thought_first=True, **change)
        _, denoiser, steps = text(chosen, certainty={p: 0.9 - p / 50 for p in range(20)}, closing=[8])
        assert [step.positions.tolist() for step in steps] == [[p] for p in range(3, 15)]
        return [len(window.positions) for window in denoiser.windows]

    assert spans() == [15, *[12] * 5, 15, *[12] * 5]
    assert spans(refresh=4) == [15, 12, 12, 12, 15, 12, 15, 12, 15, 12, 12, 12]  # beside what is renewed by count
    _, denoiser, _ = text(
        TextSettings(12, 12, 6).replace(cache="dual", thought_first=True),
        certainty={p: 0.9 - p / 50 for p in range(20)},
        closing=[8],
    )  # the thought ends with its block, and the next block begins anew as ever
    assert [len(window.positions) for window in denoiser.windows] == [15, *[6] * 5, 15, *[6] * 5]


@pytest.mark.parametrize("cache", ["prefix", "dual", "prompt"])
def test_drafts_are_lossless_across_the_end_of_a_thought(cache):
    renewed = 0
    for prompt in prompts(60, seed=5):
        chosen = PLAIN.replace(cache=cache, thought_first=True)
        row, steps, model = decoded(chosen, prompt, closing=[END])
        same, again, _ = decoded(chosen.replace(speculative_steps=4), prompt, closing=[END])
        assert row == same
        assert [step.positions.tolist() for step in steps] == [step.positions.tolist() for step in again]
        begun = 1 if cache == "prompt" else 2  # blocks that begin with the whole row
        renewed += sum(first == 0 for _, first, _ in model.windows) > begun
    assert renewed > 0


def test_behind_the_end_of_a_thought_nothing_is_written_while_it_has_masks():
    waited = 0
    for prompt in prompts(60):
        chosen = PLAIN.replace(threshold=0.2, cache="prompt", thought_first=True)
        row, steps, _ = decoded(chosen, prompt, closing=[END])
        done: set[int] = set(range(len(prompt)))
        for step in steps:
            end = min((p for p in done if p >= len(prompt) and row[p] == END), default=len(row))
            assert max(step.positions) < end or set(range(end)) <= done
            done |= set(step.positions.tolist())
        waited += len(steps) - len(decoded(chosen.replace(thought_first=False), prompt)[1])
    assert waited > 0


def test_entropy_bounds():
    confidence = np.array([[-0.1, -0.5, -0.2, -np.inf], [-3.0, -2.0, -1.0, -0.5]])
    entropy = np.array([[0.2, 0.9, 0.3, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert entropy_bounded(confidence, entropy, 0.0).tolist() == [[True, False, False, False], [False, False, False, True]]
    assert entropy_bounded(confidence, entropy, 0.2).tolist() == [[True, False, True, False], [False, False, False, True]]
    assert entropy_bounded(confidence, entropy, 0.5).sum(axis=1).tolist() == [3, 1]
    assert entropy_bounded(confidence, entropy, 99.0).sum(axis=1).tolist() == [3, 4]
    assert not entropy_bounded(np.full((1, 2), -np.inf), np.ones((1, 2)), 9.0).any()


def test_looser_bounds_take_fewer_steps():
    counts = [len(decoded(PLAIN.replace(entropy_bound=bound))[1]) for bound in (0.0, 1.0, 1e6)]
    assert counts[0] == 16
    assert counts == sorted(counts, reverse=True)
    assert counts[2] == 2  # a step a block


def test_an_unbroken_run():
    sure = np.array([[True, False, True, True, False, True]])
    ahead = np.array([[False, False, True, True, True, True]])
    assert unbroken_run(sure, ahead).tolist() == [[False, False, True, True, False, False]]


@pytest.mark.parametrize("select", ["margin", "entropy"])
def test_the_first_written_is_the_most_confident_by_what_was_chosen(select):
    """Against the logits themselves, and whether the model says its entropies or not."""
    for prompt in prompts(40):
        says, silent = SmallAttention(), SmallAttention(says_entropy=False)
        chosen = TextSettings(answer_length=8, steps=8, block_length=8).replace(select=select)
        row, steps, _ = decoded(chosen, prompt, model=says)
        assert row == decoded(chosen, prompt, model=silent)[0]
        hidden, _ = says.forward(_full_window(prompt, 8), keep=False)
        logits = says.logits("text", hidden, np.eye(1))
        p = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=-1, keepdims=True)  # [8, V]
        best = np.sort(np.delete(p, MASK, axis=-1), axis=-1)
        wanted = best[:, -1] - best[:, -2] if select == "margin" else (p * np.log(p)).sum(axis=-1)
        assert steps[0].positions[0] - len(prompt) == wanted.argmax()


def _full_window(prompt, answer):
    from mmada_lite.decoding.denoiser import Window

    tokens = np.array([[*prompt, *[MASK] * answer]])
    return Window(tokens, np.arange(tokens.shape[1]), np.arange(len(prompt), tokens.shape[1])[None])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"select": "surest"}, "confidence, margin, entropy"),
        ({"entropy_bound": -1.0}, "entropy_bound"),
        ({"early_stop": 0.0}, "not a probability"),
        ({"lookahead": -1}, "at least 0"),
        ({"lookahead": 4}, "give a threshold"),
        ({"refresh": 0, "cache": "dual"}, "at least 1"),
        ({"refresh": 2}, "use cache prefix or dual"),
        ({"refresh_drift": 0.5}, "use cache prefix or dual"),
        ({"refresh_drift": float("nan"), "cache": "dual"}, "refresh_drift is nan"),
        ({"suffix_window": -1}, "at least 0"),
        ({"speculative_steps": 0}, "at least 1"),
        ({"kv_commit_every": 0, "cache": "dual"}, "at least 1"),
        ({"kv_commit_every": 2}, "use it with cache dual or prompt"),
        ({"kv_commit_every": 2, "cache": "dual", "speculative_steps": 2}, "and speculative_steps 1"),
        ({"thought_first": 1}, "thought_first is 1; use true or false"),
        ({"speculative_steps": 2, "temperature": 0.5}, "temperature 0, or speculative_steps 1"),
        ({"threshold": 0.5, "entropy_bound": 1.0}, "use one of them"),
        ({"order": "random", "select": "margin"}, "low_confidence"),
        ({"mode": "reference", "speculative_steps": 2}, "mode reference has no speculative_steps"),
    ],
)
def test_settings_that_contradict_each_other_say_how_to_mend_them(changes, word):
    with pytest.raises(Error, match=word):
        TextSettings().replace(**changes)


def test_drafts_are_for_one_answer():
    tokens = np.full((2, 8), SPECIAL.mask)
    canvas = Canvas(tokens, tokens == SPECIAL.mask, 0, 8, SPECIAL.mask)
    with pytest.raises(Error, match="one answer at a time and here are 2"):
        list(decode_text(SmallAttention(), canvas, TextSettings(8, 8, 8).replace(speculative_steps=2), GREEDY))
