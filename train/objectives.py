"""The unified masked-diffusion objective (MMaDA, arXiv 2505.15809, equation L_unify): masking and losses as pure functions.

Nearly all of it is the reference's arithmetic to the letter, for parity; `unified_loss` at the end is what our training
uses. Nothing here knows a model, an optimizer or a prompt; every draw is passed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmada_lite.decoding.schedules import schedule
from mmada_lite.train.prompting import IGNORED

_LEAST = 1e-3  # smallest probability of being masked, so that 1 / p stays finite


@dataclass(frozen=True, slots=True)
class MaskedPicture:
    """A picture half hidden as the reference does it; `weight` is only read when all tokens are predicted."""

    input_ids: Tensor  # int64 [B, N]
    labels: Tensor  # int64 [B, N], IGNORED where not predicted
    weight: Tensor  # float32 [B, N]
    probability: Tensor  # float32 [B]


@dataclass(frozen=True, slots=True)
class TextRows:
    """Consecutive rows of one text task in a batch of the reference, L the length of the batch."""

    p_mask: Tensor  # float32 [B, L] probability with which a position was masked
    answer_lengths: Tensor | None = None  # int64 [B, L]; without: the mean over rows and positions


def mask_picture(
    codes: Tensor,  # int64 [B, N] tokens
    timestep: Tensor,  # float32 [B] uniform in 0..1
    order: Tensor,  # float32 [B, N] uniform in 0..1; its sorting decides which positions are hidden
    mask_id: int,
    law: str = "cosine",
    least: float = 0.0,
    predict_all: bool = False,
) -> MaskedPicture:
    """Hide round(N * schedule(t)) positions, at least one; what stays visible weighs 0.3 + 0.7 * probability."""
    probability = masked_share(timestep, law).clamp(min=least)
    count = (codes.shape[1] * probability).round().clamp(min=1)
    hidden = order.argsort(dim=-1) < count[:, None]
    labels = codes if predict_all else torch.where(hidden, codes, IGNORED)
    weight = 1 - (~hidden).float() * (1 - probability)[:, None] * 0.7
    return MaskedPicture(torch.where(hidden, mask_id, codes), labels, weight, probability)


def masked_share(timestep: Tensor, law: str) -> Tensor:
    """The schedule's float32 law, one value per row."""
    function = schedule(law)
    return torch.tensor([float(function(np.float32(t))) for t in timestep.tolist()], dtype=torch.float32)


def mask_probability(timestep: Tensor) -> Tensor:
    """Text: p = 0.999 t + 0.001 of being masked, each position on its own."""
    return (1 - _LEAST) * timestep + _LEAST


def reference_bias(t2i_masks: Tensor, rows: int) -> Tensor:
    """The float bias of the reference's training, [rows, 1, L, L]: +1 where both tokens are real; for other tasks everywhere.

    It is added to the scores: pads are attended to in training, only e times less. Generation masks them (a bool bias).
    """
    count, length = t2i_masks.shape
    bias = torch.ones(rows, 1, length, length)
    bias[:count, 0] = (t2i_masks[:, :, None] * t2i_masks[:, None, :]).float()
    return bias


def reference_losses(
    logits: Tensor,  # [B, L, V]: first the rows of text to image, then each of `texts` in order
    input_ids: Tensor,  # int64 [B, L]
    labels: Tensor,  # int64 [B, L]
    mask_id: int,
    t2i_rows: int,
    max_seq_length: int,
    texts: Mapping[str, TextRows],
) -> dict[str, Tensor]:
    """The reference's loss of each task: "t2i" and the keys of `texts`.

    A task without rows costs 0, where the reference would take all rows for it if it is the last (a slice from -0).
    """
    losses = {"t2i": picture_loss(logits[:t2i_rows, max_seq_length + 1 :], labels[:t2i_rows, max_seq_length + 1 :])}
    start = t2i_rows
    for task, rows in texts.items():
        own = slice(start, start + rows.p_mask.shape[0])
        losses[task] = text_loss(logits[own], labels[own], input_ids[own] == mask_id, rows)
        start = own.stop
    return losses


def picture_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labels that are not IGNORED. (The reference's slice also holds soi and eoi, never masked.)"""
    if not bool((labels != IGNORED).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def text_loss(logits: Tensor, labels: Tensor, masked: Tensor, rows: TextRows) -> Tensor:
    """Cross-entropy / p over masked positions: summed, over rows * L; with answer lengths: each over its own, over rows."""
    if not bool(masked.any()):
        return logits.sum() * 0.0
    terms = F.cross_entropy(logits[masked].float(), labels[masked], reduction="none") / rows.p_mask[masked]
    if rows.answer_lengths is None:
        return terms.sum() / masked.numel()
    return (terms / rows.answer_lengths[masked]).sum() / masked.shape[0]


@dataclass(frozen=True, slots=True)
class Corrupted:
    """Rows with some tokens hidden, as `train.data.sequences` makes them. `weight` multiplies each position's
    cross-entropy; the sum of products is the loss."""

    tokens: Tensor  # int64 [B, L] with masks
    targets: Tensor  # int64 [B, L]
    weight: Tensor  # float32 [B, L], zero where nothing is hidden


def unified_loss(logits: Tensor, rows: Corrupted) -> Tensor:
    """Weighted cross-entropy at the hidden positions: `logits` [hidden positions, V] in the order of weight > 0.

    Only those rows of the head need to be computed: `model.logits(hidden[rows.weight > 0])`.
    """
    chosen = rows.weight > 0
    return (F.cross_entropy(logits.float(), rows.targets[chosen], reduction="none") * rows.weight[chosen]).sum()
