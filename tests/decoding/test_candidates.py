"""Laws of what a text's model calls give: the candidates and how sure they are."""

import pytest
from mock_denoiser import MockDenoiser
from small_attention import Shifted
from test_decoding import text
from test_fewer_forwards import PLAIN, decoded, prompts

from mmada_lite.decoding.settings import TextSettings


@pytest.mark.parametrize("change", [{"select": "margin"}, {"select": "entropy"}, {"entropy_bound": 0.5}])
def test_only_differences_of_logits_count(change):
    for prompt in prompts(5):
        chosen = TextSettings(answer_length=8, steps=8, block_length=8).replace(**change)
        assert decoded(chosen, prompt, model=Shifted(says_entropy=False))[0] == decoded(chosen, prompt)[0]


def test_a_head_whose_prediction_says_all_is_not_asked_for_logits(monkeypatch):
    monkeypatch.delattr(MockDenoiser, "logits")
    assert len(text(PLAIN)[2]) == 16
