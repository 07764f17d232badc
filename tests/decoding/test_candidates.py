"""Laws of what a text's model calls give: the candidates and how sure they are."""

import math

import numpy as np
import pytest
from mock_denoiser import MockDenoiser
from small_attention import Shifted
from test_decoding import SPECIAL, text
from test_fewer_forwards import PLAIN, decoded, prompts

from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.decoding.settings import TextSettings


@pytest.mark.parametrize("change", [{"select": "margin"}, {"select": "entropy"}, {"entropy_bound": 0.5}])
def test_only_differences_of_logits_count(change):
    for prompt in prompts(5):
        chosen = TextSettings(answer_length=8, steps=8, block_length=8).replace(**change)
        assert decoded(chosen, prompt, model=Shifted(says_entropy=False))[0] == decoded(chosen, prompt)[0]


def test_a_head_whose_prediction_says_all_is_not_asked_for_logits(monkeypatch):
    monkeypatch.delattr(MockDenoiser, "logits")
    assert len(text(PLAIN)[2]) == 16


def test_beside_a_mask_that_is_not_written_the_others_stay_as_they_are():
    planted = {3: SPECIAL.mask, 4: 9, 5: SPECIAL.mask, 6: 11}
    canvas, _, steps = text(TextSettings(answer_length=4, steps=1, block_length=4), planted=planted)
    assert canvas.tokens[0, 3:].tolist() == [7, 9, 7, 11]
    assert steps[0].log_probabilities[[1, 3]].tolist() == pytest.approx([math.log(0.5)] * 2)


def test_a_random_order_is_the_samplers():
    chosen = TextSettings(answer_length=8, steps=8, block_length=8, order="random")
    sampler, places = PhiloxSampler(4, 0.0, 3), list(range(3, 11))
    written = [int(step.positions[0]) for step in text(chosen, certainty={3: 0.9}, sampler=sampler)[2]]
    for step, place in enumerate(written):
        assert place == places[int(sampler.order("text", step, np.array([places])).argmax())]
        places.remove(place)
