"""Laws of drawing with less than a whole row a step: no key of what has changed is used, nothing is written unseen, and what
does not look at the row draws the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_denoiser import MockDenoiser
from small_attention import SmallAttention

from mmada_lite import Error, ImageSettings, load
from mmada_lite.cli.main import main
from mmada_lite.decoding.canvas import Canvas, image_canvas
from mmada_lite.decoding.denoiser import Floats, Head, Window
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

SPECIAL = SpecialTokens(*range(100, 112))
VOCABULARY = Vocabulary(SPECIAL, image_code_offset=112, codebook_size=32, size=144)
CODES = 16
CHEAPER = st.fixed_dictionaries(
    {
        "refresh": st.integers(1, 6),
        "candidate_ratio": st.sampled_from([None, 1.0, 1.5, 3.0]),
        "guidance_from": st.sampled_from([0.0, 0.3]),
        "guidance_to": st.sampled_from([0.6, 1.0]),
        "unconditional_every": st.integers(1, 4),
    }
)


class Suspicious(MockDenoiser):
    """Keeps the tokens of every position as its values, and compares what it is given with the canvas as it stands."""

    def __init__(self, canvas: Canvas) -> None:
        super().__init__({p: p % 32 for p in range(60)}, {p: (p * 5 % 16 + 0.5) / 17 for p in range(60)})
        self.canvas, self.keeping_calls = canvas, 0

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        places = np.broadcast_to(window.positions, window.tokens.shape)
        seen, tokens = places, window.tokens
        if window.past is not None:
            seen = np.concatenate([seen, window.past.keys[0][:, 0, :, 0].astype(np.int64)], axis=1)
            tokens = np.concatenate([tokens, window.past.values[0][:, 0, :, 0].astype(np.int64)], axis=1)
        order = np.argsort(seen, axis=1)
        row = self.canvas.tokens if seen.shape[1] == self.canvas.length else self.canvas.unconditional
        assert (np.take_along_axis(seen, order, axis=1) == np.arange(seen.shape[1])).all(), "every position once"
        assert (np.take_along_axis(tokens, order, axis=1) == row).all(), "no key of what has changed is used"
        self.keeping_calls += keep
        hidden, _ = super().forward(window, keep=False)
        kept = KeyValues((places[:, None, :, None].astype(np.float32),), (window.tokens[:, None, :, None].astype(np.float32),))
        return hidden, kept if keep else None


def canvas_of(unknown: np.ndarray) -> Canvas:
    """Rows of one prompt; unknown [B, 16]."""
    prompt, nothing = (
        [SPECIAL.t2i, SPECIAL.bos, 5, 6, SPECIAL.eos, SPECIAL.soi],
        [SPECIAL.t2i, SPECIAL.bos, SPECIAL.eos, SPECIAL.soi],
    )
    codes = np.arange(CODES) + 3
    rows = len(unknown)
    return image_canvas([prompt] * rows, [codes] * rows, unknown, VOCABULARY, unconditional_prompt=nothing)


def draw(chosen: ImageSettings, unknown: np.ndarray | None = None, seed: int = 0) -> tuple[Canvas, Suspicious, list[Step]]:
    canvas = canvas_of(np.ones((1, CODES), dtype=bool) if unknown is None else unknown)
    denoiser = Suspicious(canvas)
    sampler = PhiloxSampler(seed, chosen.sampling_temperature, canvas.start)
    return canvas, denoiser, list(decode_image(denoiser, canvas, chosen, sampler))


@settings(deadline=None, max_examples=80)
@given(
    unknown=st.lists(st.lists(st.booleans(), min_size=CODES, max_size=CODES).filter(any), min_size=1, max_size=3),
    share=st.floats(0, 1),
    temperature=st.sampled_from([0.0, 1.0]),
    cheaper=CHEAPER,
    seed=st.integers(0, 2**64 - 1),
)
def test_every_mask_is_drawn_from_what_stands_there_and_given_codes_stay(unknown, share, temperature, cheaper, seed):
    holes = np.array(unknown)
    steps = 1 + round(share * (holes.sum(axis=1).min() - 1))
    chosen = ImageSettings(steps, 2.0, "cosine", temperature, temperature).replace(**cheaper)
    canvas, denoiser, done = draw(chosen, holes, seed)
    final = done[-1].predicted_codes
    assert final is not None
    assert (final[~holes] == np.broadcast_to(np.arange(CODES) + 3, final.shape)[~holes]).all()
    assert (canvas.tokens[:, canvas.region] == final + 112).all()
    assert len(done) == steps
    assert done[-1].remaining == 0
    assert done[-1].model_calls == steps  # a step is one call however little it computes
    assert steps <= len(denoiser.windows) <= 2 * steps
    written = [(int(row), int(place)) for step in done for row, place in zip(step.rows, step.positions, strict=True)]
    assert len(written) == len(set(written)) == holes.sum()


@settings(deadline=None, max_examples=40)
@given(cheaper=CHEAPER, steps=st.integers(1, 16), seed=st.integers(0, 99))
def test_a_model_that_does_not_look_at_the_row_draws_the_same(cheaper, steps, seed):
    """Without noise in the choice, so that the order is known when a partial step's codes are chosen."""
    plain = draw(ImageSettings(steps, 2.0, temperature=0.0), seed=seed)[2]
    partial = draw(ImageSettings(steps, 2.0, temperature=0.0).replace(**cheaper), seed=seed)[2]
    for a, b in zip(plain, partial, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.log_probabilities, b.log_probabilities)


def test_exact_steps_keep_nothing_and_use_nothing_kept() -> None:
    for chosen in (ImageSettings(8, 2.0), ImageSettings(8, 2.0).replace(refresh=1, candidate_ratio=1.0)):
        _, denoiser, _ = draw(chosen)
        assert denoiser.keeping_calls == 0
        assert [window.past for window in denoiser.windows] == [None] * 16
        assert [window.tokens.shape[1] for window in denoiser.windows] == [23, 21] * 8


def test_partial_steps_compute_the_codes_that_were_masked_or_the_shortlist() -> None:
    _, denoiser, steps = draw(ImageSettings(8, 0.0, "linear").replace(refresh=4))
    assert [step.remaining for step in steps] == [14, 12, 10, 8, 6, 4, 2, 0]
    assert [w.tokens.shape[1] for w in denoiser.windows if w.past is None] == [23, 23]
    assert [w.tokens.shape[1] for w in denoiser.windows if w.past is not None] == [16, 16, 16, 8, 8, 8]
    assert denoiser.keeping_calls == 2
    assert [w.queries.shape[1] for w in denoiser.windows] == [16, 14, 12, 10, 8, 6, 4, 2]  # states of masked codes alone
    _, denoiser, _ = draw(ImageSettings(8, 0.0, "linear").replace(refresh=4, candidate_ratio=1.0))
    assert [w.tokens.shape[1] for w in denoiser.windows if w.past is not None] == [8] * 6  # 2 written, 6 to come


def test_every_second_step_over_what_the_first_kept() -> None:
    _, denoiser, _ = draw(ImageSettings(8, 0.0, "linear").replace(refresh=2))
    assert [window.past is None for window in denoiser.windows] == [True, False] * 4
    two = np.arange(CODES) < np.array([[8], [4]])  # a window is as long as the longest row asks for
    _, denoiser, _ = draw(ImageSettings(4, 0.0, "linear").replace(refresh=2), two)
    assert [window.tokens.shape[1] for window in denoiser.windows] == [23, 8, 23, 4]


def test_a_row_that_is_whole_makes_no_other_compute_all() -> None:
    one = np.arange(CODES) < np.array([[8], [1]])
    _, denoiser, _ = draw(ImageSettings(8, 0.0, "linear").replace(refresh=4), one)
    assert [window.past is None for window in denoiser.windows] == [True, False, False, False] * 2


def test_a_row_is_computed_anew_when_its_own_window_runs_out() -> None:
    """Codes that are equally sure are written at once: those of the first row's window are, while the others of its wait."""
    even = np.arange(CODES) % 2 == 0
    canvas = canvas_of(np.stack([even, ~even]))
    denoiser = Suspicious(canvas)
    sure = [0.9, 0.7, 0.6, 0.65, 0.6, 0.55, 0.6, 0.5, 0.1, 0.45, 0.2, 0.4, 0.3, 0.35, 0.4, 0.3]
    denoiser.certainty = {canvas.start + place: each for place, each in enumerate(sure)}
    chosen = ImageSettings(8, 0.0, "linear", 0.0, 0.0).replace(refresh=4, candidate_ratio=1.0)
    steps = list(decode_image(denoiser, canvas, chosen, PhiloxSampler(0, 0.0, canvas.start)))
    first = [(step.positions[step.rows == 0] - canvas.start).tolist() for step in steps]
    assert first[:3] == [[0], [2, 4, 6], [14]]
    assert [window.past is None for window in denoiser.windows] == [True, False, True, False, False, False, True, False]
    assert all(np.isfinite(step.log_probabilities).all() for step in steps)  # nothing is written unseen


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_a_shortlist_foresees_the_noise_of_the_step_that_it_serves(noise: float) -> None:
    """One partial step after each full one computes the very codes that it draws, so that the drawing stays the same."""
    for seed in range(5):
        chosen = ImageSettings(8, 0.0, "linear", noise, 0.0)
        plain, partial = draw(chosen, seed=seed)[2], draw(chosen.replace(refresh=2, candidate_ratio=1.0), seed=seed)[2]
        assert [step.positions.tolist() for step in plain] == [step.positions.tolist() for step in partial]


class Painter(SmallAttention):
    """Its image head reads the row and mixes its states; the codes are the first ids."""

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> np.ndarray:
        return super().logits("text", hidden, mix)[..., :32]


@pytest.mark.parametrize(("every", "seed"), [(1, 0), (1, 1), *((every, seed) for every in (2, 3) for seed in range(1, 5))])
def test_guidance_compares_with_the_row_without_its_prompt(every: int, seed: int) -> None:
    """As it stood when it was computed last: by hand from the logits of both rows."""
    canvas = canvas_of(np.ones((2, CODES), dtype=bool))
    model, by_hand = (Painter(vocabulary=144, mask=SPECIAL.mask, seed=seed) for _ in range(2))
    guidance = 1.5 if seed else 0.0
    chosen = ImageSettings(4, guidance, "linear", 0.0, 0.0).replace(unconditional_every=every)
    steps = decode_image(model, canvas, chosen, PhiloxSampler(0, 0.0, canvas.start))
    identity = np.eye(2, dtype=np.float32)
    for k in range(4):
        masked, logits = canvas.masked(), []
        rows = (canvas.tokens, canvas.unconditional)
        assert rows[1] is not None
        for branch, tokens in enumerate(rows):
            places = np.arange(tokens.shape[1])
            queries = np.arange(canvas.start, canvas.stop) + (canvas.shift if branch else 0)
            hidden = by_hand.forward(Window(tokens.copy(), places, np.tile(queries, (2, 1))), keep=False)[0]
            logits.append(by_hand.logits("image", hidden, identity))
        without = logits[1] if k % every == 0 else without  # noqa: F821
        wanted = ((1 + guidance) * logits[0] - guidance * without).argmax(axis=-1)
        codes = next(steps).predicted_codes
        assert codes is not None
        assert (codes == wanted)[masked[:, canvas.region]].all()


def test_guidance_is_paid_for_where_it_is_set() -> None:
    _, denoiser, steps = draw(ImageSettings(10, 2.0).replace(guidance_from=0.2, guidance_to=0.5))
    lengths = [window.tokens.shape[1] for window in denoiser.windows]
    assert lengths == [23] * 2 + [23, 21] * 3 + [23] * 5  # steps 2, 3 and 4 are guided
    assert steps[-1].model_calls == 10
    plain = draw(ImageSettings(10, 2.0))[2]
    for a, b in zip(plain, draw(ImageSettings(10, 2.0).replace(guidance_from=0.0, guidance_to=1.0))[2], strict=True):
        np.testing.assert_array_equal(a.predicted_codes, b.predicted_codes)


def test_unconditional_states_serve_several_steps() -> None:
    for every in (2, 3):
        _, denoiser, _ = draw(ImageSettings(3 * every, 2.0).replace(unconditional_every=every))
        assert [window.tokens.shape[1] for window in denoiser.windows] == [23, 21, *[23] * (every - 1)] * 3


@pytest.mark.parametrize("shared", [True, False])
def test_a_scattered_window_over_fresh_keys_gives_the_states_of_the_whole_row(tiny_bundle: Path, shared: bool) -> None:
    denoiser = load(tiny_bundle, device="cpu", threads=1).denoiser
    random, length = np.random.default_rng(0), 20
    tokens = random.integers(0, 90, (2, length))
    everything = np.broadcast_to(np.arange(length), tokens.shape)
    all_states, kept = denoiser.forward(Window(tokens, np.arange(length), everything), keep=True)
    assert kept is not None
    inside = np.sort([random.permutation(length)[:7] for _ in range(2)])
    inside = inside[[0, 0]] if shared else inside
    outside = np.stack([np.setdiff1d(np.arange(length), row) for row in inside])
    queries = np.array([[0, 3, 6]] * 2)
    window = Window(np.take_along_axis(tokens, inside, axis=1), inside, queries, kept.at(outside, KVBuffer()))
    states, _ = denoiser.forward(window, keep=False)
    expected = np.take_along_axis(all_states, np.take_along_axis(inside, queries, axis=1)[..., None], axis=1)
    np.testing.assert_allclose(states, expected, atol=2e-5)


def test_options_of_the_command_line_reach_the_drawing(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    partial = [
        "--refresh",
        "3",
        "--candidate-ratio",
        "1.5",
        "--guidance-from",
        "0.1",
        "--guidance-to",
        "0.6",
        "--unconditional-every",
        "2",
    ]
    drawing = ["paint", "a b", "-m", str(tiny_bundle), "--device", "cpu", "-o", str(tmp_path / "a.png"), "--steps", "6"]
    assert main([*drawing, "--json", *partial]) == 0
    settings_told = json.loads(capsys.readouterr().out.splitlines()[-1])["settings"]
    assert [
        settings_told[name] for name in ("refresh", "candidate_ratio", "guidance_from", "guidance_to", "unconditional_every")
    ] == [
        *(3, 1.5),
        *(0.1, 0.6),
        2,
    ]
    assert main([*drawing, "--force", "--candidate-ratio", "0.5"]) == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"refresh": 0}, "refresh"),
        ({"candidate_ratio": 0.5}, "at least 1"),
        ({"guidance_from": 0.6, "guidance_to": 0.4}, "guidance_from < guidance_to"),
        ({"guidance_to": 1.5}, "guidance_to is 1.5; use a number of at least 0 and at most 1"),
        ({"guidance_from": -0.1}, "guidance_from"),
        ({"unconditional_every": 0}, "unconditional_every"),
    ],
)
def test_impossible_settings_say_how_to_mend_them(changes, word):
    with pytest.raises(Error, match=word):
        ImageSettings().replace(**changes)
