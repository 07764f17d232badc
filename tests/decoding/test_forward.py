"""Laws of one model call: which positions a window holds, for the row without its prompt too, and whose states come back."""

import numpy as np
import pytest
from mock_denoiser import MockDenoiser
from test_canvas import picture
from test_decoding import SPECIAL, VOCABULARY

from mmada_lite import ImageSettings
from mmada_lite.decoding import image
from mmada_lite.decoding.forward import mix_of, positions_of, run_forward
from mmada_lite.decoding.generate import Decoding, draw
from mmada_lite.decoding.kv_cache import CachedContext, KeyValues
from mmada_lite.decoding.sampling import PhiloxSampler, gumbel


def test_queried_positions_stand_left_to_right() -> None:
    positions, valid = positions_of(np.array([[True, False, True], [False, True, False]]))
    assert positions.tolist() == [[0, 2], [1, 0]]
    assert valid.tolist() == [[True, True], [True, False]]
    positions, valid = positions_of(np.zeros((1, 3), dtype=bool))
    assert (positions.tolist(), valid.tolist()) == ([[0]], [[False]])


def test_guidance_mixes_the_branches() -> None:
    assert mix_of(2, 0.5, 1).tolist() == [[1, 0], [0, 1]]
    assert mix_of(2, 0.5, 2).tolist() == [[1.5, 0, -0.5, 0], [0, 1.5, 0, -0.5]]


def test_a_row_without_its_prompt_is_read_at_its_own_places() -> None:
    """Three ids fewer: what stands at 6 stands at 3 there. A past of more rows serves the first of them."""
    canvas, queried = picture(), np.zeros((2, 10), dtype=bool)
    queried[:, [0, 6]] = True
    past = KeyValues(*((np.zeros((3, 1, 5, 1), np.float32),),) * 2)
    context = CachedContext((past, past), 5, 9)
    assert canvas.shift == -3
    for inside, end, spans in (
        (None, None, [(0, 10), (0, 7)]),
        (None, 8, [(0, 8), (0, 5)]),
        (context, None, [(5, 9), (2, 6)]),
    ):
        model = MockDenoiser({p: 10 + p for p in range(40)})
        forward = run_forward(model, canvas, queried, 1.0, inside, end=end)
        assert [(int(w.positions[0]), int(w.positions[-1]) + 1) for w in model.windows] == spans
        assert forward.positions.tolist() == [[0, 6]] * 2
        assert forward.hidden[:2, 1, 0].tolist() == [16] * 2  # the planted token of a place is its state
        assert forward.hidden[2:, 1, 0].tolist() == [13] * 2
        for tokens, window in zip(canvas.branches(), model.windows, strict=True):
            assert (window.tokens == tokens[:, window.positions]).all()
            assert (window.past is None) == (inside is None)
            assert forward.kept == ()
            assert window.past is None or window.past.keys[0].shape[0] == 2
    assert run_forward(MockDenoiser({0: 9}), canvas, queried, 1.0).hidden[0, 0, 0] == 9


def drawing(settings: ImageSettings, unknown: list[bool]) -> Decoding:
    model = MockDenoiser({p: p % 32 for p in range(60)}, {p: (p * 5 % 16 + 0.5) / 17 for p in range(60)})
    return draw(model, [SPECIAL.t2i, 5, SPECIAL.soi], range(len(unknown)), unknown, settings, VOCABULARY, seed=5)


def test_a_drawing_takes_no_more_steps_than_it_has_codes_to_draw() -> None:
    for count in (1, 2):
        unknown = [place < count for place in range(6)]
        assert len(list(drawing(ImageSettings(4), unknown).steps)) == count
        assert len(list(drawing(ImageSettings(4, mode="reference"), unknown).steps)) == 4


def test_the_reference_keeps_given_codes_through_any_noise_and_one_mask() -> None:
    given = [place >= 8 for place in range(16)]
    for noise in (1.0, 100.0, 1000.0):
        decoding = drawing(ImageSettings(6, temperature=noise, mode="reference"), [not each for each in given])
        list(decoding.steps)
        assert decoding.codes[0, 8:].tolist() == list(range(8, 16))
    one = [place == 3 for place in range(6)]
    assert [step.remaining for step in drawing(ImageSettings(4, mode="reference"), one).steps] == [1] * 4


def test_confidence_is_bounded_as_the_references_is() -> None:
    """By the largest float32 for what is given, and by 1e-20 for what is not at all likely."""
    assert np.float32(88.72284) == image._KNOWN
    assert np.float32(-46.0517) == image._LEAST


def test_a_drawing_is_compared_with_no_prompt_where_it_is_guided() -> None:
    for guidance in (0.0, 0.5, 3.0):
        rows = drawing(ImageSettings(2, guidance), [True] * 6).canvas.unconditional
        assert (rows is not None) == (guidance > 0)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_what_is_drawn_first_is_the_surest_once_the_noise_is_added(temperature: float) -> None:
    settings = ImageSettings(4, 0.0, "linear", temperature, 0.0)
    decoding = drawing(settings, [True] * 12)
    places = np.arange(3, 15)
    sure = np.log(np.array([(p * 5 % 16 + 0.5) / 17 for p in places], dtype=np.float32))
    noise = gumbel(PhiloxSampler(5, 0.0, 3).order("image", 0, places[None]))[0]
    wanted = places[np.argsort(-(sure + temperature * 0.75 * noise))[:3]]
    step = next(decoding.steps)
    assert sorted(step.positions) == sorted(wanted)
    assert step.tokens.tolist() == [112 + p % 32 for p in step.positions]
    assert step.remaining == 9
    assert step.predicted_codes is not None
    assert step.predicted_codes.tolist() == [(places % 32).tolist()]
    np.testing.assert_allclose(step.log_probabilities, sure[step.positions - 3], rtol=1e-6)
