"""Stage one: the unified masked-diffusion objective over caption to picture, picture to answer and text to text, in every batch
(MMaDA, arXiv 2505.15809, equation L_unify). Knows the loop and the loss; rows come from train/data/sequences.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmada_lite.train.data.sequences import Rows, Sequences
from mmada_lite.train.model import MMaDA
from mmada_lite.train.objectives import Corrupted, unified_loss
from mmada_lite.train.optimizer import Average, Optimizer, trapezoid
from mmada_lite.train.parallel import Workers
from mmada_lite.train.progress import Log, load_state, save_state, step_generator

log = logging.getLogger("mmada_lite")


@dataclass(frozen=True, slots=True)
class StageOneSettings:
    """Length and balance of stage one. A batch is `paint_groups` + `ask_groups` + `text_groups` groups of equal length."""

    steps: int = 3300
    rows: int = 16  # of a group
    paint_groups: int = 3
    ask_groups: int = 4
    text_groups: int = 1
    paint_weight: float = 1.0
    ask_weight: float = 4.0
    text_weight: float = 1.5
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    average: float = 0.998
    seed: int = 11
    threads: int = 2
    save_seconds: float = 120.0


def rows_loss(model: MMaDA, rows: Rows, weight: float) -> tuple[Tensor, dict[str, float]]:
    """The unified objective on one group, bf16 autocast; and the plain mean of its cross-entropies for the log."""
    hidden_rows = Corrupted(*(torch.from_numpy(array) for array in (rows.tokens, rows.targets, rows.weight)))
    chosen = hidden_rows.weight > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(model(hidden_rows.tokens).hidden[chosen])  # [masked positions, V]
    with torch.no_grad():
        mean = F.cross_entropy(logits.float(), hidden_rows.targets[chosen]).item() if chosen.any() else 0.0
    return weight * unified_loss(logits, hidden_rows), {rows.task: mean}


def batch(sequences: Sequences, settings: StageOneSettings, step: int) -> list[tuple[Rows, float]]:
    """The groups of one step with their weights, longest first."""
    rng = step_generator(settings.seed, step)
    shares = (
        (sequences.ask, settings.ask_groups, settings.ask_weight),
        (sequences.paint, settings.paint_groups, settings.paint_weight),
        (sequences.text, settings.text_groups, settings.text_weight),
    )
    return [(make(settings.rows, rng), weight / groups) for make, groups, weight in shares for _ in range(groups)]


class StageOne:
    """A run of stage one: model, optimizer, averaged weights, and their state on disk in `folder`."""

    def __init__(self, model: MMaDA, sequences: Sequences, folder: Path, settings: StageOneSettings) -> None:
        self.model, self.sequences, self.folder, self.settings = model, sequences, folder, settings
        matrices = {name for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}
        self.optimizer = Optimizer(
            model, matrices, muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, decay=settings.weight_decay
        )
        self.average = Average(model, settings.average)
        self.step, self.seconds = 0, 0.0
        self._resume()

    def train(self, until: int | None = None) -> None:
        """Go on to the last step (or stop before step `until`), saving on the way and at the end."""
        settings, workers = self.settings, Workers(self.settings.threads)
        records = Log(self.folder / "log.jsonl", self.step)
        self.optimizer.muon.workers = workers
        saved = time.monotonic()
        while self.step < min(settings.steps, until or settings.steps):
            began = time.monotonic()
            parts = self._one_step(workers)
            self.seconds += time.monotonic() - began
            records.write({"step": self.step, "seconds": round(self.seconds, 1), **parts})
            if self.step % 50 == 0:
                log.info("step %d of %d, %.0f s: %s", self.step, settings.steps, self.seconds, parts)
            self.step += 1
            if time.monotonic() - saved > settings.save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
        workers.close()

    def _one_step(self, workers: Workers) -> dict[str, float]:
        groups = batch(self.sequences, self.settings, self.step)
        results = workers.gradients(self.model, [partial(rows_loss, self.model, rows, weight) for rows, weight in groups])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step(trapezoid(self.step, self.settings.steps, self.settings.warmup))
        self.average.update(self.model, self.step)
        means: dict[str, list[float]] = {}
        for part in results:
            for task, value in part.items():
                means.setdefault(task, []).append(value)
        return {task: round(sum(v) / len(v), 4) for task, v in means.items()} | {"norm": round(float(norm), 3)}

    def save(self) -> None:
        """Write the whole state; a kill at any moment leaves the previous one or this one."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "step": self.step,
            "seconds": self.seconds,
        }
        save_state(self.folder / "state.pt", state)

    def _resume(self) -> None:
        state = load_state(self.folder / "state.pt")
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = state["average"]
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def averaged_weights(folder: Path, model: MMaDA) -> int:
    """Put the averaged weights of a run's last checkpoint into the model; returns the steps it was trained for."""
    state = load_state(folder / "state.pt")
    assert state is not None, f"no training state in {folder}"
    model.load_state_dict(state["average"], strict=True)
    return int(state["step"])
