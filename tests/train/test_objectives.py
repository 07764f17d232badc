"""Laws of the objectives. That losses, gradients and maskings equal the reference's is compared in test_check."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmada_lite.train import objectives
from mmada_lite.train.model import MMaDA
from mmada_lite.train.objectives import TextRows

GOLDEN = Path(__file__).parents[1] / "golden"
CASE = json.loads((GOLDEN / "loss" / "case.json").read_text())
EXPECTED = CASE["expected"]


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


def test_the_unified_loss_needs_only_hidden_rows() -> None:
    draws = torch.Generator().manual_seed(6)
    targets = torch.randint(0, 50, (3, 24), generator=draws)
    weight = torch.rand(3, 24, generator=draws) * (torch.rand(3, 24, generator=draws) < 0.5)
    rows = objectives.Corrupted(torch.where(weight > 0, 7, targets), targets, weight)
    logits = torch.randn(3, 24, 50, generator=draws)
    chosen = objectives.unified_loss(logits[weight > 0], rows)
    everywhere = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    assert float(chosen) == pytest.approx(float((everywhere * weight.flatten()).sum()), rel=1e-5)
