"""Laws of the policy objective. That copies, log-probabilities, losses and gradients equal the reference's is in test_check."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmada_lite.bench.parity.check import check_folder
from mmada_lite.bench.parity.training import LOSS, _size_of_terms
from mmada_lite.errors import Error
from mmada_lite.train import policy
from mmada_lite.train.policy import DLLM_RL, TRACED, UNIGRPO, WHOLE, Draws, MaskedCopies, Objective, policy_loss

MASK, PAD = 99, 98
REWARDS = st.lists(st.floats(-100, 100), min_size=1, max_size=9)
law = settings(deadline=None, database=None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scattered(rows: int = 12, length: int = 20) -> tuple[Tensor, Tensor]:
    """Targets, and responses that lie anywhere in a row: as a picture between text does."""
    targets = torch.randint(0, 90, (rows, length), generator=seeded(1))
    return targets, torch.rand(rows, length, generator=seeded(2)) < 0.6


def some_copies(seed: int = 3, each: int = 4) -> MaskedCopies:
    targets, response = scattered()
    return policy.random_copies(targets, response, MASK, Draws.uniform(len(targets) * each, targets.shape[1], seeded(seed)))


def response_lengths(copies: MaskedCopies) -> Tensor:
    """Of the responses of `scattered`, [C]."""
    _, response = scattered()
    return response.sum(1)[copies.row]


def values(copies: MaskedCopies, seed: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Old log-probabilities, how far the new ones lie from them, and advantages."""
    old = -3 * torch.rand(copies.chosen.shape, generator=seeded(seed))
    change = torch.randn(copies.chosen.shape, generator=seeded(seed + 1))
    return old, change, torch.randn(len(copies.row), generator=seeded(seed + 2))


@law
@given(REWARDS)
def test_advantages_sum_to_zero_with_unit_spread(rewards: list[float]) -> None:
    advantages = policy.group_advantages(torch.tensor(rewards, dtype=torch.float64))
    assert float(advantages.sum()) == pytest.approx(0.0, abs=1e-6)
    expected = 0.0 if max(rewards) - min(rewards) < policy.TIE else 1.0
    assert float(advantages.std(correction=0)) == pytest.approx(expected, abs=1e-6)


@law
@given(REWARDS, st.floats(0.1, 50), st.floats(-50, 50))
def test_advantages_do_not_know_the_scale_of_rewards(rewards: list[float], scale: float, shift: float) -> None:
    raw = torch.tensor(rewards, dtype=torch.float64)
    if max(rewards) - min(rewards) > 1e-3:
        assert torch.allclose(policy.group_advantages(raw), policy.group_advantages(scale * raw + shift), atol=1e-6)


def test_groups_are_apart_and_equal_rewards_give_nothing() -> None:
    first, second = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([5.0, 7.0, 9.0])
    both = policy.group_advantages(torch.stack((first, second)))
    assert torch.equal(both, torch.stack((policy.group_advantages(first), policy.group_advantages(second))))
    assert policy.group_advantages(torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)).tolist() == [0.0] * 3
    with pytest.raises(Error, match="not a finite number"):
        policy.group_advantages(torch.tensor([1.0, float("nan")]))


def test_copies_hide_the_response_only() -> None:
    targets, response = scattered()
    copies = some_copies()
    assert torch.equal(copies.targets, targets[copies.row])
    assert torch.equal(copies.tokens == MASK, copies.chosen)
    assert torch.equal(copies.tokens[~copies.chosen], copies.targets[~copies.chosen])
    assert not bool((copies.chosen & ~response[copies.row]).any())
    assert bool(copies.chosen.any(1).all())


def test_draws_repeat_and_are_in_the_order_of_rows() -> None:
    first, second, third = some_copies(3), some_copies(3), some_copies(5)
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens[:20], third.tokens[:20])
    assert torch.equal(first.row, first.row.sort().values)


def test_a_copy_without_masks_uses_its_draws_and_is_left_out() -> None:
    targets, response = torch.arange(10).repeat(2, 1), torch.ones(2, 10, dtype=torch.bool)
    draws = Draws(torch.tensor([0.0, 0.5, 0.5]).repeat(2), torch.linspace(0.05, 0.95, 10).repeat(6, 1))
    copies = policy.random_copies(targets, response, MASK, draws, WHOLE)
    assert copies.row.tolist() == [0, 0, 1, 1]
    assert copies.chosen.sum(1).tolist() == [5, 5, 5, 5]
    nothing = policy.random_copies(targets, torch.zeros_like(response), MASK, draws, WHOLE)
    assert nothing.tokens.shape == (0, 10)


def test_the_share_hidden_is_uniform_within_its_bounds() -> None:
    targets, response = torch.zeros(1, 400, dtype=torch.int64), torch.ones(1, 400, dtype=torch.bool)
    for bounds in (WHOLE, (0.1, 0.9)):
        copies = policy.random_copies(targets, response, MASK, Draws.uniform(1000, 400, seeded(6)), bounds)
        share = copies.chosen.float().mean(1)
        assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(share.std()) == pytest.approx((bounds[1] - bounds[0]) / 12**0.5, abs=0.03)


def test_a_copy_and_its_complement_share_out_the_response() -> None:
    targets, response = scattered()
    late = policy.late_pads(targets.masked_fill(targets > 60, PAD), response, PAD, keep=1)
    copies = policy.random_copies(
        targets, response, MASK, Draws.uniform(len(targets), 20, seeded(7)), complement=True, late=late
    )
    for row in range(len(targets)):
        own = copies.chosen[copies.row == row]
        assert len(own) in (1, 2)  # one when it hides everything that counts
        assert torch.equal(own.sum(0) == 1, response[row] & ~late[row])
    assert bool((copies.tokens == MASK)[late[copies.row]].all())
    assert not bool(copies.chosen[late[copies.row]].any())


def test_late_pads_come_after_the_first_of_the_response() -> None:
    targets = torch.tensor([[PAD, 5, PAD, 6, PAD, PAD]])
    response = torch.tensor([[False, True, True, True, True, True]])
    for keep, expected in ((None, []), (0, [2, 4, 5]), (1, [4, 5]), (9, [])):
        assert policy.late_pads(targets, response, PAD, keep)[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("shrink", [1, 3, 50])
def test_traces_replay_the_decoding(shrink: int) -> None:
    targets, response = scattered(4, 14)
    order = torch.randint(0, 6, targets.shape, generator=seeded(8))
    copies = policy.trace_copies(targets, response, order, MASK, shrink)
    for row in range(len(targets)):
        own = copies.row == row
        assert torch.equal(copies.chosen[own].sum(0) == 1, response[row])  # each position counts once
        written = response[row].clone()
        steps = order[row][response[row]].unique()
        assert int(own.sum()) == -(-len(steps) // shrink)
        for tokens, chosen in zip(copies.tokens[own], copies.chosen[own], strict=True):
            assert torch.equal(tokens == MASK, written)
            assert len(order[row][chosen].unique()) <= shrink
            written &= ~chosen
        assert not bool(written.any())


def test_traces_refuse_a_shrink_of_nothing() -> None:
    targets, response = scattered(2, 5)
    with pytest.raises(Error, match="shrink is 0"):
        policy.trace_copies(targets, response, targets, MASK, shrink=0)


def test_spaced_ratios_begin_where_they_are_told_and_end_hidden() -> None:
    ratios = policy.spaced_ratios(torch.tensor([0.0, 0.4]), 3)
    assert torch.allclose(ratios, torch.tensor([[0.0, 0.5, 1.0], [0.4, 0.7, 1.0]]))
    assert policy.spaced_ratios(torch.tensor([0.4]), 1)[0].tolist() == pytest.approx([0.4])


def test_log_probabilities_are_of_the_targets_of_any_columns() -> None:
    copies = some_copies()
    logits = torch.randn(*copies.chosen.shape, 90, generator=seeded(9))
    everywhere = logits.log_softmax(-1).gather(-1, copies.targets[..., None])[..., 0]
    log_probabilities = policy.token_log_probabilities(logits[copies.chosen], copies.targets, copies.chosen)
    assert torch.allclose(log_probabilities, everywhere.masked_fill(~copies.chosen, 0.0))
    moved = policy.token_log_probabilities(logits[copies.chosen], copies.targets + 1000, copies.chosen, first=1000)
    assert torch.equal(log_probabilities, moved)


@pytest.mark.parametrize("objective", [DLLM_RL, UNIGRPO])
def test_an_unchanged_policy_loses_minus_the_mean_advantage(objective: Objective) -> None:
    """Of dLLM-RL over the masked tokens; of the paper over the whole response, where those that are shown add nothing."""
    copies = some_copies()
    old, _, advantages = values(copies)
    new, length = old.clone().requires_grad_(), response_lengths(copies)
    loss = policy_loss(new, old, copies.chosen, advantages, objective, length=length)
    over = copies.chosen.sum(1) if objective is DLLM_RL else length
    shares = advantages[:, None] * copies.chosen / over[:, None] / len(advantages)
    assert float(loss.total.detach()) == pytest.approx(-float(shares.sum()), abs=1e-6)
    assert float(loss.divergence.detach()) == 0.0
    assert float(loss.clipped) == 0.0
    torch.autograd.backward(loss.total)
    expected = -shares
    assert new.grad is not None
    assert torch.allclose(new.grad, expected, atol=1e-7)  # the plain policy gradient, each copy's tokens sharing its weight


@pytest.mark.parametrize("objective", [Objective(beta=0.5), Objective(beta=0.5, over="response", divergence="mean")])
def test_what_is_not_masked_is_never_read(objective: Objective) -> None:
    copies = some_copies()
    old, change, advantages = values(copies)
    length = response_lengths(copies)
    plain = policy_loss(old + change, old, copies.chosen, advantages, objective, length=length).total
    spoilt = (old + change).masked_fill(~copies.chosen, 900.0).requires_grad_()
    loss = policy_loss(spoilt, old, copies.chosen, advantages, objective, length=length).total
    torch.autograd.backward(loss)
    assert float(loss.detach()) == float(plain)
    assert spoilt.grad is not None
    assert bool((spoilt.grad[~copies.chosen] == 0).all())
    assert bool(spoilt.grad.isfinite().all())


def test_the_clip_bounds_the_gradient() -> None:
    """Nothing more is earned by going further: beyond the clip, on the gaining side, there is no gradient."""
    clip, chosen = 0.2, torch.ones(1, 1, dtype=torch.bool)
    for ratio in (0.1, 0.5, 0.79, 0.9, 1.0, 1.1, 1.21, 2.0, 9.0):
        for gain in (-1.5, 1.5):
            new = torch.tensor([[ratio]]).log().requires_grad_()
            loss = policy_loss(new, torch.zeros(1, 1), chosen, torch.tensor([gain]), Objective(clip, beta=0.0))
            torch.autograd.backward(loss.total)
            assert new.grad is not None
            slope, beyond = float(new.grad), ratio > 1 + clip if gain > 0 else ratio < 1 - clip
            assert slope == pytest.approx(0.0 if beyond else -ratio * gain, rel=1e-5)
            assert bool(loss.clipped) == beyond
            if gain > 0:
                assert float(loss.policy.detach()) >= -(1 + clip) * gain - 1e-6
                assert abs(slope) <= (1 + clip) * gain


def test_clipping_never_makes_the_loss_smaller() -> None:
    copies = some_copies()
    old, change, advantages = values(copies)
    tight, loose = (policy_loss(old + change, old, copies.chosen, advantages, Objective(clip, beta=0.0)) for clip in (0.1, 1e6))
    assert float(tight.total) >= float(loose.total)
    assert float(tight.clipped) > 0.1
    assert float(loose.clipped) == 0.0


@law
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8))
def test_k3_is_never_negative_and_zero_at_equality(changes: list[float]) -> None:
    change = torch.tensor([changes])
    chosen, nothing = torch.ones_like(change, dtype=torch.bool), torch.zeros(1)
    for divergence in ("sum", "mean"):
        objective = Objective(divergence=divergence)  # type: ignore[arg-type]
        estimate = float(policy_loss(change, torch.zeros_like(change), chosen, nothing, objective).divergence)
        assert estimate >= 0.0
        assert estimate > 0.0 or max(map(abs, changes)) < 0.01
        assert float(policy_loss(change, change, chosen, nothing, objective).divergence) == 0.0


def test_divergence_is_from_the_reference_model_if_there_is_one() -> None:
    copies = some_copies()
    old, change, advantages = values(copies)
    new = old + change
    for objective in (Objective(beta=0.3), Objective(beta=0.3, divergence="mean"), Objective(beta=0.3, estimator="difference")):
        same = policy_loss(new, old, copies.chosen, advantages, objective, reference=new)
        assert float(same.divergence) == 0.0
        other = policy_loss(new, old, copies.chosen, advantages, objective, reference=old)
        assert torch.equal(other.total, policy_loss(new, old, copies.chosen, advantages, objective).total)
        size = float(other.policy.abs() + 0.3 * other.divergence.abs())  # the two may cancel
        assert float(other.total) == pytest.approx(float(other.policy + 0.3 * other.divergence), abs=1e-6 * size)
        assert torch.equal(other.policy, same.policy)


@pytest.mark.parametrize("objective", [Objective(beta=0.04, estimator="difference"), Objective(beta=0.01), TRACED])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_rounding_is_no_fault_of_a_loss_however_small_its_sum(objective: Objective, gain: float) -> None:
    """Log-probabilities off by their rounding, where new and old are close and what is won is lost again."""
    copies = some_copies()
    old, change, advantages = values(copies)
    new, advantages = old + 1e-3 * change, gain * (advantages - advantages.mean())
    rounded = new * (1 + 2e-6 * torch.sign(change))
    one, other = (float(policy_loss(x, old, copies.chosen, advantages, objective).total) for x in (new, rounded))
    size = _size_of_terms(new, old, copies, advantages, objective)
    assert abs(one - other) <= LOSS * size < 0.01


def test_mean_and_sum_of_the_divergence_differ_by_the_masks() -> None:
    old, chosen = torch.zeros(3, 6), torch.ones(3, 6, dtype=torch.bool)
    new, advantages = old + 0.4, torch.zeros(3)
    added, averaged = (policy_loss(new, old, chosen, advantages, o).divergence for o in (DLLM_RL, TRACED))
    assert float(added) == pytest.approx(6 * float(averaged), rel=1e-5)


def test_no_copies_cost_nothing() -> None:
    nothing = torch.zeros(0, 7, requires_grad=True)
    loss = policy_loss(nothing, nothing.detach(), nothing > 0, torch.zeros(0))
    torch.autograd.backward(loss.total)
    assert float(loss.total.detach()) == 0.0
    assert float(loss.clipped) == 0.0


def test_gradient_steps_raise_the_better_response() -> None:
    """The whole objective on a table of logits: what is rewarded becomes probable, what is not does not."""
    targets = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 4]])
    response = torch.tensor([[False, True, True, False]]).repeat(2, 1)
    table = torch.zeros(4, 10, requires_grad=True)
    advantages, generator = policy.group_advantages(torch.tensor([1.0, 0.0])), seeded(10)
    for _ in range(30):
        copies = policy.random_copies(targets, response, MASK, Draws.uniform(2 * 4, 4, generator), WHOLE)
        logits = table.expand(len(copies.row), -1, -1)[copies.chosen]
        new = policy.token_log_probabilities(logits, copies.targets, copies.chosen)
        loss = policy_loss(
            new, new.detach(), copies.chosen, advantages[copies.row], UNIGRPO, length=response.sum(1)[copies.row]
        ).total
        (slope,) = torch.autograd.grad(loss, table)
        table = (table - 0.5 * slope).detach().requires_grad_()
    chance = table.detach().softmax(-1)
    for position, good, bad in ((1, 2, 5), (2, 3, 6)):
        assert float(chance[position, good]) > 0.4
        assert float(chance[position, bad]) < 0.1
    assert torch.allclose(chance[[0, 3]], torch.full((2, 10), 0.1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"estimator": "k2"}, "estimator is 'k2'; use one of k3, difference"),
        ({"over": "word"}, "over is 'word'; use one of masked, response"),
        ({"divergence": "max"}, "divergence is 'max'; use one of sum, mean"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(Error, match=message):
        Objective(**setting)


def test_a_changed_recording_is_found(golden: Path, tmp_path: Path) -> None:
    """`check` on the section alone; and that it can fail in each of its parts."""
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "gqa").symlink_to(golden / "llm" / "gqa")
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "case.safetensors").symlink_to(golden / "rl" / "case.safetensors")
    case = json.loads((golden / "rl" / "case.json").read_text())
    case["cases"] = [case["cases"][k] for k in (0, 3)]
    case["cases"][0]["losses"][0]["loss"] *= 1.001
    case["cases"][0]["losses"][1]["global_grad_norm"] *= 1.1
    case["cases"][1]["shrink"] = 5
    case["z_score"][0]["advantages"][0] += 0.01
    (tmp_path / "rl" / "case.json").write_text(json.dumps(case))
    own = [c.comparison for c in check_folder(tmp_path, ["torch"]) if c.comparison.name.startswith("rl/")]
    failed = [f"{c.name}: {c.what}" for c in own if not c.passed]
    assert failed == [
        "rl/p0 random_masking: clip 0.2 beta 0.0 k3: loss, relative to its terms",
        "rl/p0 random_masking: clip 0.2 beta 0.01 k3: gradient norm, relative",
        "rl/p3 TraceRL: 9 masked copies and their rewards",
        "rl/z_score 0: advantages of a group",
    ]
    assert len(own) == 8 + 1 + 3
