"""Laws of the objectives. That losses, gradients and maskings equal the reference's is compared in test_check."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmada_lite.train import objectives
from mmada_lite.train.model import MMaDA
from mmada_lite.train.objectives import TextRows

GOLDEN = Path(__file__).parent / "golden"
CASE = json.loads((GOLDEN / "loss" / "case.json").read_text())
EXPECTED = CASE["expected"]
MASK = 7


@pytest.fixture(scope="module")
def model() -> MMaDA:
    return MMaDA.load(GOLDEN / CASE["model"])


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
    return load_file(GOLDEN / "loss" / "inputs.safetensors")


def test_a_true_mask_gives_another_loss(model: MMaDA, data: dict[str, Tensor]) -> None:
    ids, labels, after = data["input_ids"][:2], data["labels"][:2], CASE["max_seq_length"] + 1
    bias = objectives.reference_bias(data["t2i_masks"], 2) > 0
    logits = model.logits(model(ids, bias=bias).hidden)
    loss = objectives.picture_loss(logits[:, after:], labels[:, after:])
    assert float(loss.detach()) == pytest.approx(EXPECTED["for_information_t2i_loss_with_hard_mask"], rel=1e-5)


def test_no_masked_position_costs_nothing() -> None:
    logits = torch.randn(2, 5, 9, requires_grad=True)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    labels = torch.full((2, 5), objectives.IGNORED)
    assert float(objectives.picture_loss(logits, labels).detach()) == 0.0
    assert float(objectives.text_loss(logits, labels, nothing, TextRows(torch.ones(2, 5))).detach()) == 0.0


def rows(count: int) -> tuple[Tensor, Tensor]:
    targets = torch.arange(20, 44).repeat(count, 1)
    part = torch.zeros(count, 24, dtype=torch.bool)
    part[:, 6:22] = True
    return targets, part


@pytest.mark.parametrize("corrupt", [objectives.corrupt_answers, objectives.corrupt_pictures])
def test_only_the_asked_part_is_hidden_and_draws_repeat(corrupt: Any) -> None:
    targets, part = rows(64)
    first, second = (corrupt(targets, part, MASK, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    hidden = first.tokens == MASK
    assert not bool((hidden & ~part).any())
    assert torch.equal(hidden, first.weight > 0)
    assert torch.equal(first.tokens[~hidden], targets[~hidden])


def test_pictures_hide_the_cosine_share_and_average() -> None:
    targets, part = rows(4000)
    corrupted = objectives.corrupt_pictures(targets, part, MASK, torch.Generator().manual_seed(4))
    counts = (corrupted.tokens == MASK).sum(1)
    assert int(counts.min()) >= 1
    assert float(counts.float().mean() / 16) == pytest.approx(2 / torch.pi, abs=0.02)  # the mean of cos(pi t / 2)
    assert float(corrupted.weight.sum()) == pytest.approx(1.0, rel=1e-5)
    places = (corrupted.tokens == MASK)[:, 6:22].float().mean(0)
    assert float(places.std()) < 0.02  # no position is preferred


def test_the_weight_of_answers_is_an_unbiased_mean() -> None:
    """However many tokens are hidden, the expected weight of a row is 1 / rows: that is what 1 / t is for."""
    targets, part = rows(20000)
    corrupted = objectives.corrupt_answers(targets, part, MASK, torch.Generator().manual_seed(5))
    assert float(corrupted.weight.sum()) == pytest.approx(1.0, abs=0.05)
    assert float((corrupted.tokens == MASK).float().sum() / part.sum()) == pytest.approx(0.5, abs=0.02)


def test_the_unified_loss_needs_only_hidden_rows() -> None:
    targets, part = rows(3)
    corrupted = objectives.corrupt_answers(targets, part, MASK, torch.Generator().manual_seed(6))
    logits = torch.randn(3, 24, 50, generator=torch.Generator().manual_seed(7))
    chosen = objectives.unified_loss(logits[corrupted.weight > 0], corrupted)
    everywhere = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    assert float(chosen) == pytest.approx(float((everywhere * corrupted.weight.flatten()).sum()), rel=1e-5)
