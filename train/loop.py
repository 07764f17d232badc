"""The one loop of all trainings: pieces of a batch -> gradients -> Muon and AdamW -> a state that resumes and a log. On
`accelerate`, so that one process, several on a CPU, many GPUs, FSDP and DeepSpeed are one command. Knows no task and no data.

A batch is a list of pieces; a piece is a dictionary of tensors whose first axis is rows. Every process computes its own rows of
every piece, so that the sum over processes is the loss of the whole batch, whatever their number.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mmada_lite.errors import Error
from mmada_lite.train.optimizer import Average, optimizers, set_rates
from mmada_lite.train.progress import Log

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("mmada_lite")

Piece = Mapping[str, Tensor]
Parts = dict[str, Tensor]  # name -> [sum, count], to be logged as a mean


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how fast. Rates are the highest ones; `rate` gives the factor of a step. Raises Error for `seconds` that are
    no time."""

    steps: int
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    average: float = 0.998
    clip: float = 2.0
    save_seconds: float = 120.0
    seconds: float | None = None  # no step is begun after so many of training, however many are left
    align: int = 1  # states are saved at multiples of this step: stage three learns several times from the same responses

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise Error(f"a training of {self.seconds:g} seconds cannot be: give --seconds a number above 0")

    def scaled(self, steps: int | None = None, rate: float = 1.0) -> LoopSettings:
        """Other steps, `rate` times the learning rates. Raises Error unless `rate` is positive."""
        if not 0 < rate < float("inf"):
            raise Error(f"the learning rate cannot be {rate:g} times the recipe's: give --rate a number above 0, such as 0.5")
        return replace(
            self, steps=self.steps if steps is None else steps, muon_lr=self.muon_lr * rate, adam_lr=self.adam_lr * rate
        )


def fast_type(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it (elsewhere it was a hundred times slower than float32), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else torch.float32


def open_accelerator() -> Accelerator:
    """The accelerator of this process: devices and processes as `accelerate launch` says, the device's fast type."""
    try:
        from accelerate import Accelerator, PartialState
    except ImportError as error:
        raise Error('training needs accelerate: pip install "mmada-lite[train]"') from error
    cpu = not torch.cuda.is_available()  # said aloud, without which several processes on a CPU do not find each other
    precision = "bf16" if fast_type(PartialState(cpu=cpu).device) == torch.bfloat16 else "no"
    return Accelerator(cpu=cpu, mixed_precision=precision)


class Loop:
    """A training and its state on disk, in `folder`: state/ and log.jsonl. Made where a state is, it goes on from there.

    `objective(**piece)` gives the scalar loss of the piece's rows and what to log of it. `matrices` names the parameters of
    Muon. `rate(step)` is the factor on both learning rates.
    """

    def __init__(
        self,
        objective: nn.Module,
        matrices: set[str],
        folder: Path,
        settings: LoopSettings,
        rate: Callable[[int], float],
    ) -> None:
        self.settings, self.folder, self.rate = settings, folder, rate
        self.accelerator = open_accelerator()
        self.step, self.seconds, self._noted = 0, 0.0, dict[str, float]()
        made_optimizers = optimizers(
            objective,
            set() if str(self.accelerator.distributed_type).endswith(("DEEPSPEED", "FSDP")) else matrices,  # want one optimizer
            muon_lr=settings.muon_lr,
            adam_lr=settings.adam_lr,
            decay=settings.weight_decay,
        )
        prepared = self.accelerator.prepare(objective, *made_optimizers)
        self.model, self.optimizers = prepared[0], list(prepared[1:])
        self.average = Average(self.inner, settings.average)
        self.accelerator.register_for_checkpointing(self.average, _Progress(self))
        self._resume()

    @property
    def inner(self) -> nn.Module:
        """The objective without what `accelerate` wraps around it."""
        inner: nn.Module = self.accelerator.unwrap_model(self.model)
        return inner

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Whole parameters on every process while the model is used beside its wrapped forward (stage three under FSDP)."""
        sharded = [module for module in self.inner.modules() if isinstance(module, FSDPModule)]
        for module in sharded:
            module.unshard()
        try:
            yield
        finally:
            for module in sharded:
                module.reshard()

    def run(
        self,
        batch: Callable[[int], Sequence[Piece]],
        until: int | None = None,
        check: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Go on to the last step (or stop before step `until`), saving on the way and at the end, each time after `check`."""
        settings = self.settings
        records = Log(self.folder / "log.jsonl", self.step) if self.accelerator.is_main_process else None
        saved = time.monotonic()
        while self.step < min(settings.steps, until or settings.steps) and not self._over():
            began = time.monotonic()
            parts = self.update(batch(self.step)) | self._noted
            self._noted = {}
            self.seconds += time.monotonic() - began
            if records:
                records.write({"step": self.step, "seconds": round(self.seconds, 1), **parts})
                if self.step % 50 == 0:
                    log.info("step %d of %d, %.0f s: %s", self.step, settings.steps, self.seconds, json.dumps(parts))
            self.step += 1
            if self.step % settings.align == 0 and self._all_agree(time.monotonic() - saved > settings.save_seconds):
                self._pause(records, check)
                saved = time.monotonic()
        self._pause(records, check)

    def _over(self) -> bool:
        """Whether the time of this training is used up; several steps on the same responses are always made together."""
        limit = self.settings.seconds
        return limit is not None and self.step % self.settings.align == 0 and self._all_agree(self.seconds >= limit)

    def note(self, values: Mapping[str, float]) -> None:
        """Values for the record of the step that is being made."""
        self._noted |= {name: round(value, 4) for name, value in values.items()}

    def update(self, pieces: Sequence[Piece]) -> dict[str, float]:
        """One step on a batch. Returns the means to be logged. Raises Error when the loss is not a finite number."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        if not pieces:  # tasks that come in a share of the steps alone, or copies that hide nothing
            return {}
        fewest = min(len(next(iter(piece.values()))) for piece in pieces)
        if fewest < world:
            raise Error(f"a group of {fewest} rows cannot be shared by {world} processes: launch fewer, or use larger groups")
        factor, logged = self.rate(self.step), list[Parts]()
        for optimizer in self.optimizers:
            set_rates(optimizer, factor)
        for number, piece in enumerate(pieces):
            rows = {name: value[rank::world].to(self.accelerator.device) for name, value in piece.items()}
            last = number + 1 == len(pieces)
            self.accelerator.gradient_state._set_sync_gradients(last)  # what DeepSpeed asks; the others are told by no_sync
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    loss, parts = self.model(**rows)
                self.accelerator.backward(loss * world)  # gradients are averaged over processes, losses add up
            logged.append({"loss": torch.stack([loss.detach().float(), loss.new_tensor(1.0 / world)]), **parts})
        means = self._means(logged)
        if not math.isfinite(means["loss"]):
            raise Error(
                f"the loss of step {self.step} is {means['loss']}: lower the learning rate, or look at the data of that step"
            )
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip))
        if not math.isfinite(norm):
            raise Error(f"the gradient of step {self.step} is not finite: lower the learning rate, or look at that step's data")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.inner, self.step)
        return means | {"norm": round(norm, 3)}

    def _means(self, logged: Sequence[Parts]) -> dict[str, float]:
        total: dict[str, Tensor] = {}
        for parts in logged:
            for name, pair in parts.items():
                total[name] = total[name] + pair.detach().float() if name in total else pair.detach().float()
        table = torch.stack(list(total.values()))  # [names, 2]
        table = self.accelerator.reduce(table, reduction="sum")
        table[:, 1] = torch.where(table[:, 1] > 0, table[:, 1], 1.0)
        means = {name: float(pair[0] / pair[1]) for name, pair in zip(total, table, strict=True)}
        means["loss"] *= float(len(logged))
        return {name: round(value, 4) for name, value in means.items()}

    def _all_agree(self, flag: bool) -> bool:
        """What the first process says, so that none waits for another in vain."""
        if self.accelerator.num_processes == 1:
            return flag
        vote = torch.tensor([float(flag and self.accelerator.is_main_process)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(vote, reduction="sum").item())

    def _pause(self, records: Log | None, check: Callable[[], Mapping[str, float]] | None) -> None:
        if check is not None and records is not None:
            values = dict(check())
            records.write({"step": self.step - 1, **values})
            log.info("step %d: %s", self.step, values)
        self.save()

    def save(self) -> None:
        """Write the whole state; a kill at any moment leaves the previous one or this one."""
        state, partial, old = (self.folder / name for name in ("state", "state.partial", "state.old"))
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()  # each writes its own part
        weights = self.accelerator.get_state_dict(self.model)
        averaged = self.average.full()
        if self.accelerator.is_main_process:
            torch.save({"model": weights, "average": averaged, "step": self.step}, partial / "weights.pt")
            if state.exists():
                shutil.rmtree(old, ignore_errors=True)
                state.rename(old)
            partial.rename(state)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder = whole_state(self.folder)
        if folder is None:
            return
        try:
            self.accelerator.load_state(str(folder))
        except Exception as error:  # of another shape, or cut: torch, pickle, zip and safetensors raise what they like
            line = str(error).strip().splitlines()[-1][:160]
            raise Error(f"{folder} does not fit this training ({line}): remove it, or give another --folder") from error


class _Progress:
    """Step and seconds of a loop, as `accelerate` saves them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.loop.step, "seconds": self.loop.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loop.step, self.loop.seconds = int(state["step"]), float(state["seconds"])


def whole_state(folder: Path) -> Path | None:
    """The last state that was written whole: state/, or state.old/ where a kill fell between two renames."""
    return next((folder / name for name in ("state", "state.old") if (folder / name / "weights.pt").exists()), None)


def trained_weights(folder: Path, averaged: bool = True) -> tuple[dict[str, Tensor], int]:
    """Parameters by name, as the objective names them, of a training's last state, and its steps. Raises Error without one."""
    state_folder = whole_state(folder)
    if state_folder is None:
        raise Error(f"{folder} holds no training state: run that stage first (mmada-lite train --help lists them in order)")
    file = state_folder / "weights.pt"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return (state["average"] if averaged else state["model"]), int(state["step"])
    except Exception as error:  # a cut file is an error of zip or pickle, a foreign one a KeyError
        raise Error(f"{file} cannot be read ({type(error).__name__}): remove its folder and run that stage again") from error
