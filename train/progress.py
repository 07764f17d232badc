"""What a long training keeps on disk: checkpoints that appear whole or not at all, and a log with a JSON line a record.
Every draw of a step comes from a generator made from (seed, step), so that a resumed run repeats nothing and skips nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of one step: the same numbers whether or not the run was interrupted before it."""
    return np.random.default_rng([seed, step])


def save_state(file: Path, state: dict[str, Any]) -> None:
    """Write a training state beside `file` and rename it over, so that a kill at any moment leaves a whole one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def load_state(file: Path) -> dict[str, Any] | None:
    """The saved training state, or None where there is none."""
    if not file.exists():
        return None
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


class Log:
    """A JSON-lines file. On resuming at `step`, records of that step and later (written after the checkpoint) are dropped."""

    def __init__(self, file: Path, step: int = 0) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        earlier = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
        partial = file.with_name(file.name + ".partial")  # a kill in the middle of writing leaves the old lines
        partial.write_text("".join(line + "\n" for line in earlier), encoding="utf-8")
        partial.replace(file)

    def write(self, record: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
