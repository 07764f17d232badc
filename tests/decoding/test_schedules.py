"""Laws of the schedules and of the addressed random numbers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_denoiser import MockDenoiser

from mmada_lite import Error
from mmada_lite.decoding.sampling import PhiloxSampler, Stream, gumbel, philox, uniform
from mmada_lite.decoding.schedules import masked_after, noise_temperatures, schedule, transfers


@given(st.integers(0, 500), st.integers(1, 64))
def test_transfers_share_every_mask_out(masks, steps):
    counts = transfers(masks, steps)
    assert counts.sum() == masks
    assert counts.max() - counts.min() <= 1
    assert (np.diff(counts) <= 0).all()


def test_masked_after_is_the_recorded_table(golden):
    for entry in json.loads((golden / "t2i" / "mask_len_table.json").read_text())["table"]:
        masked = masked_after(entry["schedule"], entry["seq_len"], entry["timesteps"])
        assert masked.tolist() == entry["floor_N_times_ratio"], entry["schedule"]


def test_the_floor_is_taken_in_float32():
    assert masked_after("cosine", 16, 6)[3] == 7  # cos(pi / 3) * 16 is 8 on paper
    assert masked_after("cosine", 1024, 12)[7] == 511


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid", "pow2", "pow0.5", "pow3"])
def test_schedules_fall_from_all_to_none(name):
    law = schedule(name)
    values = [float(law(np.float32(r))) for r in np.linspace(0, 1, 33)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[-1] == (pytest.approx(0, abs=1e-7) if name == "cosine" else np.float32(1e-6))  # the reference's least
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("name", ["cosin", "pow", "powx", "pow-1", "pownan", ""])
def test_an_unknown_schedule_names_the_known(name):
    with pytest.raises(Error, match="cosine, linear"):
        schedule(name)


def test_noise_temperature_is_cumulative():
    expected = [0.875, 0.65625, 0.41015625, 0.205078125, 0.076904296875, 0.01922607421875, 0.00240325927734375, 0.0]
    assert noise_temperatures(1.0, 8).tolist() == expected


def test_philox_gives_its_published_answers():
    """Known answers of the Random123 library for philox4x32-10."""
    zeros = philox(np.zeros(4, dtype=np.uint32), 0)
    assert [f"{w:08x}" for w in zeros] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = philox(np.full(4, 0xFFFFFFFF, dtype=np.uint32), 2**64 - 1)
    assert [f"{w:08x}" for w in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    digits = philox(np.array([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], dtype=np.uint32), 0x299F31D0A4093822)
    assert [f"{w:08x}" for w in digits] == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


@pytest.mark.parametrize("seed", [0, 127, 128, 2**64 - 1])
def test_a_draw_is_one_word_of_philox(seed):
    """What other languages must give bit for bit: the top 23 bits of a word, in the middle of their interval."""
    for row, position in ((0, 0), (1, 3), (2, 4), (5, 31), (0, 2**32 - 1)):
        counter = np.array([position // 4, row, 9, int(Stream.SCORE_COUNT)], dtype=np.uint32)
        word = int(philox(counter, seed)[position % 4])
        assert float(uniform(seed, Stream.SCORE_COUNT, 9, row, position)) == (word // 2**9 + 0.5) / 2**23


def test_noise_is_gumbels_and_finite_at_the_ends():
    u = np.array([0.0, 0.25, 0.5, 1.0], dtype=np.float32)
    least = -np.log(1e-20)
    expected = [-np.log(least), -np.log(-np.log(0.25)), -np.log(-np.log(0.5)), least]
    np.testing.assert_allclose(gumbel(u), expected, rtol=1e-6)
    many = uniform(3, Stream.TEXT_ORDER, 0, 0, np.arange(20_000))
    once = (-np.log(many.astype(np.float64))).astype(np.float32)  # by float64, whatever float32's logarithm is here
    twice = (-np.log(once.astype(np.float64))).astype(np.float32)
    assert gumbel(many).dtype == np.float32
    assert (gumbel(many) == twice).all()


def test_a_sampler_counts_places_from_its_start():
    seen = []

    class Seeing(MockDenoiser):
        def predict(self, head, hidden, mix, temperature, uniform):
            seen.append((temperature, uniform))

    places, rows = np.array([[5, 6, 2], [7, 5, 9]]), np.arange(2)[:, None]
    from_start = np.array([[0, 1, 2**32 - 3], [2, 0, 4]])
    for temperature in (0.0, 0.5, 1.0, 2.0):
        sampler = PhiloxSampler(11, temperature, 5)
        assert (sampler.order("image", 3, places) == uniform(11, Stream.IMAGE_CONFIDENCE, 3, rows, from_start)).all()
        assert (sampler.order("text", 3, places) == uniform(11, Stream.TEXT_ORDER, 3, rows, from_start)).all()
        sampler.draw(Seeing({}), "text", np.zeros(0), np.zeros(0), 4, places)
    assert [temperature for temperature, _ in seen] == [0.0, 0.5, 1.0, 2.0]
    assert seen[0][1] is None
    assert all((draws == uniform(11, Stream.TEXT_TOKEN, 4, rows, from_start)).all() for _, draws in seen[1:])


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(1, 40))
def test_draws_are_addressed_not_consumed(seed, step, count):
    together = uniform(seed, Stream.IMAGE_CODE, step, 0, np.arange(count))
    alone = np.array([uniform(seed, Stream.IMAGE_CODE, step, 0, p) for p in range(count)])
    assert (together == alone).all()
    assert together.min() > 0
    assert together.max() < 1


def test_draws_are_uniform_and_differ_between_purposes():
    a = uniform(1, Stream.TEXT_TOKEN, 0, np.arange(8)[:, None], np.arange(4096))
    b = uniform(1, Stream.TEXT_ORDER, 0, np.arange(8)[:, None], np.arange(4096))
    counts = np.histogram(a, bins=16, range=(0, 1))[0]
    assert abs(a.mean() - 0.5) < 0.01
    assert counts.min() > 0.9 * a.size / 16
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert np.isfinite(gumbel(a)).all()


def test_each_purpose_has_its_own_number():
    """Those of the runtime in C++ and of the browser: the same seed draws the same there."""
    names = ("TEXT_TOKEN", "TEXT_ORDER", "IMAGE_CODE", "IMAGE_CONFIDENCE", "SCORE_COUNT", "SCORE_PLACES")
    assert [(each.name, each.value) for each in Stream] == [(name, number) for number, name in enumerate(names)]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_said(seed):
    with pytest.raises(Error, match="seed"):
        uniform(seed, Stream.TEXT_TOKEN, 0, 0, 0)
