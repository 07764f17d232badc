"""The policy objective of stage three: advantages of a group, masked copies of responses, log-probabilities of tokens, clipped
ratios and the divergence. As in dLLM-RL (parity, golden/rl) and as UniGRPO of the paper (MMaDA, arXiv 2505.15809, section 3.3).

Pure functions of tensors. A response is any set of positions of a row (an answer, a thought and an answer, a picture's codes),
so text, understanding and drawing are one case. Nothing here knows a model, a reward, a tokenizer or an optimizer; every draw
is passed in. Axis letters: G responses of a group, B rows (one response each), C masked copies, L sequence, M masked positions
of all copies.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from mmada_lite.errors import Error

TIE = 1e-6  # rewards of a group that lie closer than this are equal: rounding is no reason to prefer one


@dataclass(frozen=True, slots=True)
class Draws:
    """The chance in masked copies: copies k*m .. k*m+m-1 are those of row k."""

    ratio: Tensor  # float32 [C] uniform in 0..1, scaled to a mask ratio
    position: Tensor  # float32 [C, L] uniform in 0..1; a position is masked where it lies below the ratio

    @classmethod
    def uniform(cls, copies: int, length: int, generator: torch.Generator) -> Self:
        """First the ratios, then the positions, from the generator."""
        return cls(torch.rand(copies, generator=generator), torch.rand(copies, length, generator=generator))


@dataclass(frozen=True, slots=True)
class MaskedCopies:
    """Responses with a part hidden, several of each; a copy that would hide nothing is left out."""

    tokens: Tensor  # int64 [C, L] with masks
    targets: Tensor  # int64 [C, L] without
    chosen: Tensor  # bool [C, L] masked and counted in the loss
    row: Tensor  # int64 [C] the row that a copy was made from, so `advantages[row]` are its advantages


@dataclass(frozen=True, slots=True)
class Objective:
    """How log-probabilities become a loss. The defaults are dLLM-RL's.

    clip: a ratio may earn nothing beyond 1 - clip .. 1 + clip. beta: weight of the divergence.
    estimator: "k3" is exp(-d) - 1 + d, never negative; "difference" is d itself (d = new - reference).
    over: what the terms of a copy are averaged over: its "masked" positions, or all tokens of its "response", of which those
    that are shown add nothing (equations 3 and 5). divergence: its "sum" over the masked positions, or that "mean".
    """

    clip: float = 0.2
    beta: float = 0.01
    estimator: Literal["k3", "difference"] = "k3"
    over: Literal["masked", "response"] = "masked"
    divergence: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise Error(f"clip is {self.clip!r}; use a number above 0, usually 0.2")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise Error(f"beta is {self.beta!r}; use a number of at least 0")
        for name, value, choices in (
            ("estimator", self.estimator, ("k3", "difference")),
            ("over", self.over, ("masked", "response")),
            ("divergence", self.divergence, ("sum", "mean")),
        ):
            if value not in choices:
                raise Error(f"{name} is {value!r}; use one of {', '.join(choices)}")


DLLM_RL = Objective()
UNIGRPO = Objective(over="response", divergence="mean")  # equations 3 and 5
TRACED = Objective(divergence="mean")  # of states of a decoding, each of which counts a few tokens
WHOLE = (0.0, 1.0)  # UniGRPO's mask ratios: uniform over everything from nearly clean to nearly hidden


class PolicyLoss(NamedTuple):
    """The loss to minimize, and its parts for the curves."""

    total: Tensor  # scalar
    policy: Tensor  # scalar, minus the clipped gain
    divergence: Tensor  # scalar, before beta; never negative under "k3"
    clipped: Tensor  # scalar, share of masked positions whose gain is held by the clip


def group_advantages(rewards: Tensor) -> Tensor:
    """(r - mean) / population standard deviation within each group [..., G]; a group of equals gets zeros (equation 15).

    Raises Error when a reward is not finite.
    """
    if not bool(rewards.isfinite().all()):
        raise Error("a reward is not a finite number; look at the reward functions that gave it")
    centred = rewards - rewards.mean(-1, keepdim=True)
    tied = rewards.amax(-1, keepdim=True) - rewards.amin(-1, keepdim=True) < TIE
    spread = rewards.std(-1, correction=0, keepdim=True)
    return torch.where(tied, 0.0, centred / torch.where(tied, 1.0, spread))


def spaced_ratios(first: Tensor, updates: int) -> Tensor:
    """Mask ratios over the updates of a batch [B, updates]: from `first` [B] in equal parts up to 1 (algorithm 1, line 13)."""
    return first[:, None] + (1 - first[:, None]) * torch.linspace(0, 1, updates, device=first.device)


def late_pads(targets: Tensor, response: Tensor, pad_id: int, keep: int | None) -> Tensor:
    """Pads of the response beyond its first `keep`, bool [B, L]: they teach nothing. None: no pad is late."""
    pads = (targets == pad_id) & response
    return torch.zeros_like(pads) if keep is None else pads & (pads.cumsum(1) > keep)


def random_copies(
    targets: Tensor,  # int64 [B, L]
    response: Tensor,  # bool [B, L]
    mask_id: int,
    draws: Draws,  # C = B * copies of each
    bounds: tuple[float, float] = (0.1, 0.9),
    complement: bool = False,
    late: Tensor | None = None,  # bool [B, L]: always masked, never counted
) -> MaskedCopies:
    """Each copy hides the response's positions with a probability of its own, drawn uniformly within `bounds`.

    complement: each copy is followed by the one that hides exactly what it shows ("coupled" in dLLM-RL).
    """
    assert len(draws.ratio) % len(targets) == 0, "every row has as many copies"
    row = torch.arange(len(targets), device=targets.device).repeat_interleave(len(draws.ratio) // len(targets))
    late = torch.zeros_like(response) if late is None else late
    free = (response & ~late)[row]
    hit = (draws.position < (bounds[0] + (bounds[1] - bounds[0]) * draws.ratio)[:, None]).to(targets.device)
    chosen = hit & free
    if complement:
        chosen = torch.stack((chosen, ~hit & free), 1).flatten(0, 1)
        row = row.repeat_interleave(2)
    return _copies(targets, chosen, chosen | late[row], row, mask_id)


def noised_copies(
    targets: Tensor,  # int64 [B, L]
    counted: Tensor,  # bool [B, L] the response up to its first end
    region: Tensor,  # bool [B, L] all of it
    mask_id: int,
    draws: Draws,  # C = B * copies of each; the ratios are of the first update
    turn: int,
    updates: int,
    bounds: tuple[float, float] = WHOLE,
) -> MaskedCopies:
    """UniGRPO's copies of update number `turn` from 0 (algorithm 1). What follows the first end is masked in all of them and
    never counted, since the length of a response would be given away by it."""
    spaced = Draws(spaced_ratios(draws.ratio, updates)[:, turn], draws.position)
    return random_copies(targets, region, mask_id, spaced, bounds, late=region & ~counted)


def trace_copies(
    targets: Tensor,  # int64 [B, L]
    response: Tensor,  # bool [B, L]
    order: Tensor,  # int64 [B, L] the decoding step that wrote a position
    mask_id: int,
    shrink: int = 1,
    late: Tensor | None = None,  # bool [B, L]: never counted
    draws: Tensor | None = None,  # float32 [B * copies of each] uniform in 0..1: which states; None: all of them
) -> MaskedCopies:
    """TraceRL (arXiv 2509.06949): the states of the decoding itself, one copy per `shrink` distinct steps, or those drawn.

    A copy hides what was not yet written when its steps began, and counts what they wrote.
    """
    if shrink < 1:
        raise Error(f"shrink is {shrink}; use a whole number of at least 1")
    group = torch.zeros_like(order)  # 1, 2, ... in the order of decoding; 0 outside the response
    for k in range(len(targets)):
        first = torch.unique(order[k][response[k]])[::shrink].contiguous()  # the first step of each group
        group[k] = torch.searchsorted(first, order[k], right=True) * response[k]
    count = group.amax(1)
    every = torch.arange(len(targets), device=targets.device)
    if draws is None:
        row = every.repeat_interleave(count)
        number = torch.arange(len(row), device=targets.device) - (count.cumsum(0) - count)[row] + 1
    else:
        assert len(draws) % len(targets) == 0, "every row has as many copies"
        row = every.repeat_interleave(len(draws) // len(targets))
        number = (draws.to(targets.device) * count[row]).long().clamp(max=count[row] - 1) + 1
    chosen, hidden = group[row] == number[:, None], group[row] >= number[:, None]
    return _copies(targets, chosen if late is None else chosen & ~late[row], hidden, row, mask_id)


def _copies(targets: Tensor, chosen: Tensor, hidden: Tensor, row: Tensor, mask_id: int) -> MaskedCopies:
    counts = chosen.any(1)  # [C] copies that hide something
    own_targets = targets[row[counts]]
    return MaskedCopies(torch.where(hidden[counts], mask_id, own_targets), own_targets, chosen[counts], row[counts])


def token_log_probabilities(logits: Tensor, targets: Tensor, chosen: Tensor, first: int = 0) -> Tensor:
    """Natural-log probabilities [C, L] of the targets at the chosen positions, 0 elsewhere, in float32.

    logits [M, V]: only the chosen positions', row by row (`model.logits(hidden[chosen])`), of the columns from token `first` on
    (drawing: the image codes alone, as they are sampled).
    """
    tokens = targets[chosen]
    flat = logits.float().log_softmax(-1).gather(-1, (tokens - first)[:, None])[:, 0]
    return torch.zeros(chosen.shape, dtype=flat.dtype, device=flat.device).masked_scatter(chosen, flat)


def policy_loss(
    new: Tensor,  # [C, L] log-probabilities under the policy, with gradient
    old: Tensor,  # [C, L] under the policy that wrote the responses, on the same copies
    chosen: Tensor,  # bool [C, L]; what the others hold elsewhere is not read
    advantages: Tensor,  # [C]
    objective: Objective = DLLM_RL,
    reference: Tensor | None = None,  # [C, L] under the reference model; None: the divergence is from `old` (dLLM-RL)
    length: Tensor | None = None,  # int64 [C] tokens of the whole response; read where the mean is over them
) -> PolicyLoss:
    """Minus the clipped gain plus beta * divergence: a mean over tokens, and then over copies (equation 5)."""
    if objective.over == "response":
        assert length is not None, "a mean over the response needs its length"
        count = length.clamp(min=1)
    else:
        count = chosen.sum(1).clamp(min=1)
    copies = max(1, len(chosen))
    change = (new - old).masked_fill(~chosen, 0.0)
    ratio, gain = change.exp(), advantages[:, None]
    free, clipped_gain = ratio * gain, ratio.clamp(1 - objective.clip, 1 + objective.clip) * gain
    policy = -(torch.minimum(free, clipped_gain).masked_fill(~chosen, 0.0).sum(1) / count).sum() / copies
    apart = (new - (old if reference is None else reference)).masked_fill(~chosen, 0.0)
    estimate = torch.expm1(-apart) + apart if objective.estimator == "k3" else apart
    per_copy = estimate.sum(1) / count if objective.divergence == "mean" else estimate.sum(1)
    divergence = per_copy.sum() / copies
    clipped = ((clipped_gain < free) & chosen).sum() / chosen.sum().clamp(min=1)
    total = policy + objective.beta * divergence if objective.beta > 0 else policy
    return PolicyLoss(total, policy, divergence, clipped)
