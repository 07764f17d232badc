"""Stages one and two: the unified masked-diffusion objective over a mixture of tasks in every batch (MMaDA, arXiv 2505.15809,
equations L_unify and L_Mixed-SFT). A stage is a mixture, a length and a start; train/loop is the loop, train/data/sequences
makes the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmada_lite.errors import Error, did_you_mean
from mmada_lite.train.code_bits import CodeBits, leaning, merge
from mmada_lite.train.data.masking import Rows
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.grow import stack
from mmada_lite.train.loop import Loop, LoopSettings, Piece, trained_weights
from mmada_lite.train.model import MMaDA
from mmada_lite.train.objectives import Corrupted, unified_loss
from mmada_lite.train.optimizer import trapezoid
from mmada_lite.train.progress import step_generator

TASKS = (
    *("paint", "pair", "thought_to_image", "edit", "caption_to_thought"),
    *("ask", "list", "scene", "answer_from_thought", "sum", "fact", "turn", "fill"),
)


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a batch is a task: groups of equal length, on average, and the weight of their loss."""

    groups: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StageSettings:
    """A stage: which tasks, how many rows a group, how fast and how long."""

    mixture: Mapping[str, Share]
    loop: LoopSettings
    rows: int = 12  # of a group
    warmup: int = 100
    decay: float = 0.6  # share of the steps over which the learning rate falls to nothing
    seed: int = 11

    def __post_init__(self) -> None:
        for task, share in self.mixture.items():
            if task not in TASKS:
                raise Error(f"no task is called {task!r}; {did_you_mean(task, TASKS, 'use some of ' + ', '.join(TASKS))}")
            if not 0 <= share.groups < float("inf"):
                raise Error(f"the task {task!r} cannot have {share.groups:g} groups in a batch; give a number from 0 on")
        if not any(share.groups > 0 for share in self.mixture.values()):
            raise Error("the mixture of this stage is empty: give at least one task more than 0 groups")

    def scaled(
        self,
        steps: int | None = None,
        rate: float = 1.0,
        seed: int | None = None,
        groups: Mapping[str, float] | None = None,
        rows: int | None = None,
    ) -> StageSettings:
        """The same stage: other steps or draws, `rate` times its learning rate, other groups of some tasks in a batch (what a
        task weighs where it has a group stays), other rows in a group. Raises Error unless `rate` is positive and the mixture
        one of known tasks."""
        other = {task: Share(count, self.mixture.get(task, Share(0.0)).weight) for task, count in (groups or {}).items()}
        return replace(
            self,
            mixture={**self.mixture, **other},
            rows=rows or self.rows,
            seed=self.seed if seed is None else seed,
            loop=self.loop.scaled(steps, rate),
        )


STAGE_ONE = StageSettings(
    {
        "paint": Share(2.0),
        "pair": Share(1.0, 0.7),
        "ask": Share(2.5, 3.0),
        "list": Share(0.75, 2.0),
        "sum": Share(1.0, 1.5),
        "fact": Share(0.25, 0.5),
    },
    LoopSettings(780, muon_lr=0.012, adam_lr=2e-3),
    decay=0.0,
)
STAGE_TWO = StageSettings(
    {
        "paint": Share(1.5, 1.5),
        "pair": Share(1.25, 1.25),
        "thought_to_image": Share(1.25, 1.25),
        "edit": Share(1.5, 1.5),
        "caption_to_thought": Share(0.25),
        "ask": Share(4.5, 4.5),
        "scene": Share(3.0, 4.0),
        "answer_from_thought": Share(1.5, 2.5),
        "sum": Share(2.5, 3.0),
        "fact": Share(1.0),
        "turn": Share(3.0, 3.5),
        "fill": Share(1.5, 1.5),
    },
    LoopSettings(1800, muon_lr=0.012, adam_lr=2e-3),
    warmup=20,
    decay=0.7,
    seed=12,
)
STAGES: dict[str, StageSettings] = {"one": STAGE_ONE, "two": STAGE_TWO}


class UnifiedObjective(nn.Module):
    """The weighted cross-entropy at a piece's hidden positions (`train.objectives.Corrupted`), and its plain mean by task."""

    def __init__(self, model: MMaDA) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.code_bits = CodeBits(config.vocab_size, config.codebook_size, config.d_model)  # codes are its last rows

    def forward(self, tokens: Tensor, targets: Tensor, weight: Tensor, task: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rows = Corrupted(tokens, targets, weight)
        chosen = weight > 0
        with leaning(self.model, self.code_bits):
            hidden = self.model.hidden_at(tokens, chosen)
        logits = self.model.logits(hidden) + self.code_bits.logits(hidden)  # [masked positions, V]
        with torch.no_grad():
            total = F.cross_entropy(logits.float(), targets[chosen], reduction="sum")
        pair = torch.stack([total, total.new_tensor(float(chosen.sum()))])
        return unified_loss(logits, rows), {TASKS[int(task[0])]: pair}


def piece(rows: Rows, weight: float) -> Piece:
    """A group of rows for `UnifiedObjective`."""
    return {
        "tokens": torch.from_numpy(rows.tokens),
        "targets": torch.from_numpy(rows.targets),
        "weight": torch.from_numpy(rows.weight) * weight,
        "task": torch.full((len(rows.tokens),), TASKS.index(rows.task)),
    }


def batch(sequences: Sequences, settings: StageSettings, step: int) -> list[Piece]:
    """The groups of one step. A task with a fraction of a group has one in that share of the steps, evenly spaced."""
    return [piece(rows, weight) for rows, weight in groups(sequences, settings, step)]


def groups(sequences: Sequences, settings: StageSettings, step: int) -> list[tuple[Rows, float]]:
    """The rows of the groups of one step, each with its weight."""
    rng = step_generator(settings.seed, step)
    weighted: list[tuple[Rows, float]] = []
    for task, share in settings.mixture.items():
        count = int((step + 1) * share.groups) - int(step * share.groups)
        weight = share.weight / max(share.groups, 1.0)
        weighted += [(sequences.tasks[task](settings.rows, rng), weight) for _ in range(count)]
    return weighted


class _Batches(Dataset[list[tuple[Rows, float]]]):
    """The groups of the steps from `first` on, for processes that make them ahead of the training."""

    def __init__(self, sequences: Sequences, settings: StageSettings, first: int, last: int) -> None:
        self.sequences, self.settings, self.first, self.last = sequences, settings, first, last

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, number: int) -> list[tuple[Rows, float]]:
        return groups(self.sequences, self.settings, self.first + number)


def _ahead(sequences: Sequences, settings: StageSettings, first: int, last: int, workers: int) -> Callable[[int], list[Piece]]:
    """`batch`, made by so many processes ahead of the step that asks; the draws are the same."""
    batches = iter(
        DataLoader(
            _Batches(sequences, settings, first, last),
            batch_size=None,
            collate_fn=list,  # as they are: arrays, not tensors in shared memory
            num_workers=workers,
            prefetch_factor=4,
        )
    )
    return lambda step: [piece(rows, weight) for rows, weight in next(batches)]


def train_stage(
    model: MMaDA, sequences: Sequences, folder: Path, settings: StageSettings, until: int | None = None, workers: int = 0
) -> Loop:
    """Train the model, or go on where `folder` was left. Returns the loop, which holds the averaged weights. `workers`: so many
    processes make the rows of coming steps, for which a GPU would wait (0: none but this one)."""
    objective = UnifiedObjective(model)
    matrices = {name for name, p in objective.named_parameters() if ".blocks." in name and p.ndim == 2}
    steps, limit = settings.loop.steps, settings.loop.seconds

    def rate(step: int) -> float:
        made = steps if limit is None or not loop.seconds else min(steps, round(step * limit / loop.seconds))
        return trapezoid(step, max(made, step), settings.warmup, settings.decay)  # where time ends it: steps at this pace

    loop = Loop(objective, matrices, folder, settings.loop, rate)
    stop = min(steps, until or steps)
    ahead = _ahead(sequences, settings, loop.step, stop, workers) if workers else lambda step: batch(sequences, settings, step)
    loop.run(ahead, until)
    return loop


def load_trained(folder: Path, model: MMaDA, averaged: bool = True, deepen: bool = False) -> int:
    """Put the weights of a stage's last state into the model; returns the steps that it was trained for. `deepen`: a state of
    fewer blocks is stacked (`train.grow.stack`). Raises Error for a state of another shape."""
    weights, steps = trained_weights(folder, averaged)
    plain = merge(weights)
    try:
        model.load_state_dict(stack(plain, model.config.n_layers) if deepen else plain, strict=True)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()[:160]
        mend = "remove it, give another --folder, or its --layers"
        raise Error(f"{folder} was trained with another shape ({line}): {mend}") from error
    return steps
