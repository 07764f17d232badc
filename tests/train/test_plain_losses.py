"""Losses and gradients against a second implementation in numpy, written from the formulas alone: L_unify with the departures
of docs/training.md, and J_UniGRPO (MMaDA, arXiv 2505.15809, equations 3 and 5, algorithm 1). A token at a time, gradients by
hand."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import TASKS, config_of, policy_settings

from mmada_lite.train.data.masking import Rows, answer_rows, picture_rows
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.objectives import Corrupted, unified_loss
from mmada_lite.train.stage_three import Policy, Responses, StageThree

Floats = NDArray[np.float64]
CLIP, BETA, UPDATES, COPIES = 0.2, 0.01, 3, 4


class Linear(nn.Module):
    """A model whose gradient is easily written: each place reads its own token and the mean of all."""

    def __init__(self, vocabulary, width: int = 6) -> None:
        super().__init__()
        self.config = config_of(vocabulary)
        draws = torch.Generator().manual_seed(0)
        self.embedding, self.head = (
            nn.Parameter(torch.randn(vocabulary.size, width, generator=draws, dtype=torch.float64)) for _ in range(2)
        )

    def hidden_at(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        own = self.embedding[tokens]
        return (own + own.mean(1, keepdim=True))[chosen]

    def logits(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        return hidden @ (self.head if columns is None else self.head[columns]).T


@dataclass
class Plain:
    """The same model in numpy, with what its gradient has come to."""

    embedding: Floats
    head: Floats

    @classmethod
    def of(cls, model: Linear) -> "Plain":
        return cls(model.embedding.detach().numpy().copy(), model.head.detach().numpy().copy())

    def zero(self) -> "Plain":
        return Plain(np.zeros_like(self.embedding), np.zeros_like(self.head))

    def state(self, tokens: NDArray, place: int) -> Floats:
        return self.embedding[tokens[place]] + self.embedding[tokens].mean(axis=0)

    def back(self, gradient: "Plain", tokens: NDArray, place: int, columns: slice, of_logits: Floats) -> None:
        gradient.head[columns] += np.outer(of_logits, self.state(tokens, place))
        of_state = of_logits @ self.head[columns]
        gradient.embedding[tokens[place]] += of_state
        for token in tokens:
            gradient.embedding[token] += of_state / len(tokens)


def log_softmax(x: Floats) -> Floats:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@dataclass
class Case:
    """Responses by hand: prompt, tokens that count, then (of a text) ends; how the codes are guided."""

    targets: NDArray
    start: int
    counts: list[int]
    columns: slice
    guidance: float = 0.0
    nothing: tuple[int, ...] = ()

    def logits(self, model: Plain, tokens: NDArray, place: int) -> Floats:
        conditional = model.head[self.columns] @ model.state(tokens, place)
        if not self.guidance:
            return conditional
        other, moved = self.plain(tokens, place)
        return (1 + self.guidance) * conditional - self.guidance * (model.head[self.columns] @ model.state(other, moved))

    def plain(self, tokens: NDArray, place: int) -> tuple[NDArray, int]:
        """The row without its prompt, and where the place is in it."""
        return np.concatenate([self.nothing, tokens[self.start :]]).astype(int), place - self.start + len(self.nothing)


def objective(
    case: Case, new: Plain, old: Plain, reference: Plain, first: Floats, uniform: Floats, turn: int, gains: Floats, mask: int
) -> tuple[float, Plain]:
    """Minus J_UniGRPO of one update and its gradient."""
    loss, gradient, begin = 0.0, new.zero(), case.columns.start or 0
    for copy, (r, draws) in enumerate(zip(first, uniform, strict=True)):
        row, gain = copy // COPIES, gains[copy // COPIES]
        share = r + (1 - r) * turn / (UPDATES - 1)  # algorithm 1, line 13
        end = case.start + case.counts[row]
        hidden = [place for place in range(case.start, end) if draws[place] < share]
        noisy = case.targets[row].copy()
        noisy[hidden] = mask
        if case.columns.start is None:  # a text: what follows its end is hidden too
            noisy[end:] = mask
        for place in hidden:
            token = case.targets[row, place] - begin
            scores = log_softmax(case.logits(new, noisy, place))
            ours, before, there = scores[token], *(log_softmax(case.logits(m, noisy, place))[token] for m in (old, reference))
            ratio = np.exp(ours - before)
            held = np.clip(ratio, 1 - CLIP, 1 + CLIP)
            divergence = np.exp(there - ours) - 1 + ours - there
            scale = 1 / case.counts[row] / len(first)
            loss -= scale * (min(ratio * gain, held * gain) - BETA * divergence)
            slope = ratio * gain if ratio * gain <= held * gain else 0.0
            of_score = -scale * (slope - BETA * (1 - np.exp(there - ours)))
            of_logits = -np.exp(scores) * of_score
            of_logits[token] += of_score
            new.back(gradient, noisy, place, case.columns, of_logits * (1 + case.guidance))
            if case.guidance:
                other, moved = case.plain(noisy, place)
                new.back(gradient, other, moved, case.columns, of_logits * -case.guidance)
    return loss, gradient


@pytest.mark.parametrize("guidance", [None, 0.0, 2.5], ids=["text", "drawing", "guided drawing"])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_unigrpo_and_its_gradient(toy_sequences: Sequences, tmp_path: Path, guidance: float | None, turn: int) -> None:
    vocabulary, rng = toy_sequences.vocabulary, np.random.default_rng(turn)
    model, special, rows, offset = Linear(vocabulary), vocabulary.special, 4, vocabulary.image_code_offset
    settings = replace(policy_settings(("shades",), UPDATES, updates=UPDATES), copies=COPIES)
    image, rewards = settings.image.replace(guidance=guidance or 0.0), {"shades": {"background": 1.0}}
    settings = replace(settings, image=image, rewards=rewards)
    policy = Policy(model, toy_sequences.tokenizer, vocabulary)  # type: ignore[arg-type]
    run = StageThree(policy, tmp_path, settings, TASKS)
    length = 65 if guidance is not None else 9
    targets = np.full((rows, 5 + length), special.eos)
    targets[:, :5] = rng.integers(10, 400, size=5)
    if guidance is None:
        counts, columns = [3, 9, 6, 1], slice(None)
        for row, count in enumerate(counts):
            targets[row, 5 : 5 + count] = [*rng.integers(10, 400, size=count - 1), special.eot]
    else:
        counts, columns = [64] * rows, slice(offset, offset + vocabulary.codebook_size)
        targets[:, 5:69], targets[:, 69] = rng.integers(offset, vocabulary.size, size=(rows, 64)), special.eoi
    counted = np.arange(5 + length)[None] - 5
    counted = (counted >= 0) & (counted < np.array(counts)[:, None])
    region = counted if guidance is not None else np.broadcast_to(np.arange(5 + length) >= 5, targets.shape)
    parts = (torch.from_numpy(np.ascontiguousarray(part)) for part in (targets, counted, region, np.zeros_like(targets)))
    responses, gains = Responses(*parts), torch.tensor([1.3, -0.7, 0.4, -1.0], dtype=torch.float64)
    first = torch.rand(rows * COPIES, generator=torch.Generator().manual_seed(1))
    copies = run._copies(responses, first, turn, torch.Generator().manual_seed(2))
    with torch.no_grad():
        run.reference.model.head.add_(
            0.1 * torch.randn(run.reference.model.head.shape, generator=torch.Generator().manual_seed(3))
        )
    old, reference = Plain.of(model), Plain.of(run.reference.model)  # type: ignore[arg-type]
    piece = run._piece(copies, responses, gains, guidance is not None)
    with torch.no_grad():  # as after an update
        model.head.add_(0.1 * torch.randn(model.head.shape, generator=torch.Generator().manual_seed(4)))
    loss, logged = run.objective(**piece)
    torch.autograd.backward(loss)
    uniform = torch.rand(rows * COPIES, targets.shape[1], generator=torch.Generator().manual_seed(2))
    case = Case(targets, 5, counts, columns, guidance or 0.0, run.objective.guided.nothing)
    expected, gradient = objective(
        case, Plain.of(model), old, reference, first.numpy(), uniform.numpy(), turn, gains.numpy(), special.mask
    )
    assert float(logged["clipped"][0]) > 0.1  # what is held by the clip is compared too
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for ours, theirs in ((model.embedding.grad, gradient.embedding), (model.head.grad, gradient.head)):
        assert ours is not None
        assert ours.numpy() == pytest.approx(theirs, abs=1e-5 * np.abs(theirs).max())


def of_rows(rows: Rows, logits: Tensor) -> tuple[float, NDArray]:
    """Our loss and its gradient by logits at the places that weigh something."""
    corrupted = Corrupted(*(torch.from_numpy(part) for part in (rows.tokens, rows.targets, rows.weight)))
    logits.requires_grad_()
    loss = unified_loss(logits, corrupted)
    torch.autograd.backward(loss)
    assert logits.grad is not None
    return float(loss.detach()), logits.grad.numpy()


def compare(rows: Rows, weight: Floats) -> None:
    """With cross-entropies, a place at a time, times the weights that the formula gives."""
    places, size = np.argwhere(rows.weight > 0), int(rows.targets.max()) + 1
    scores = np.random.default_rng(1).normal(size=(len(places), size))
    loss, slope = of_rows(rows, torch.from_numpy(scores.copy()).float())
    expected = 0.0
    for number, (row, place) in enumerate(places):
        chances, token = log_softmax(scores[number]), rows.targets[row, place]
        expected -= weight[row, place] * chances[token]
        gradient = weight[row, place] * np.exp(chances)
        gradient[token] -= weight[row, place]
        assert slope[number] == pytest.approx(gradient, abs=1e-6)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (weight[rows.weight == 0] == 0).all()


def test_the_loss_of_texts(toy_sequences: Sequences) -> None:
    """-1/rows sum over rows and masks of i log p / (t sum of i): i is a tenth for ends of text, four after a thought."""
    special, close = toy_sequences.vocabulary.special, 301
    answers = np.full((6, 14), special.eos)
    answers[:, :10] = np.random.default_rng(0).integers(310, 400, size=(6, 10))
    answers[:, 6], answers[:, 9] = close, special.eot
    prompts = np.full((6, 3), 305)
    rows = answer_rows(
        "sum", prompts, answers, toy_sequences.vocabulary, np.random.default_rng(5), close=close, answer_alone=0.0
    )
    rng = np.random.default_rng(5)  # the draws again: one part of 0..1 a row, then a chance a token
    t = 0.999 * np.sqrt((rng.permutation(6) + rng.random(6)) / 6) + 0.001
    rng.random((6, 1))
    masked = rng.random(answers.shape) < t[:, None]
    importance = [1.0] * 7 + [4.0] * 3 + [0.1] * 4
    weight = np.zeros(rows.weight.shape)
    for row in range(6):
        for place in range(14):
            weight[row, 3 + place] = masked[row, place] * importance[place] / (t[row] * sum(importance) * 6)
    compare(rows, weight)


def test_the_loss_of_pictures(toy_sequences: Sequences) -> None:
    """The mean of -log p over all masked codes of the rows; of N codes round(N cos(pi t / 2)) are masked."""
    vocabulary = toy_sequences.vocabulary
    codes = np.random.default_rng(0).integers(vocabulary.codebook_size, size=(5, 64))
    rows = picture_rows("paint", np.full((5, 2), 305), codes, vocabulary, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    t = (rng.permutation(5) + rng.random(5)) / 5
    amounts = [max(1, round(64 * np.cos(np.pi * each / 2))) for each in t]
    masked = rows.tokens == vocabulary.special.mask
    assert masked.sum(axis=1).tolist() == amounts
    compare(rows, masked / sum(amounts))
