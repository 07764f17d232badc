"""Do tasks help each other? One joint run against one run a task, the same number of updates for each task, the same first
weights; cross-entropy at hidden positions on pictures of the validation style and problems that were held out, along the way.

    mmada-lite train synergy --plot docs/synergy.png
    mmada-lite train synergy --updates 1500 --every 150 --rows 48 --seeds 0 1 --jobs 4    # on a GPU

The model is the recipe's small transformer from nothing. A run that is cut goes on where it was (in FOLDER/synergy).
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmada_lite import __version__
from mmada_lite.arguments import Parser, exit_code
from mmada_lite.errors import Error

if TYPE_CHECKING:
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.model import MMaDA

TASKS = ("paint", "ask", "sum")
JOINT = "joint"
SCHEMA = 1  # of the JSON, as a benchmark's record has one
HELD_OUT_PICTURES = 1024
MOST_ROWS = 4096  # of a task in an update: they are made and computed together
Curve = list[dict[str, float]]  # a record every few updates: update, and the mean cross-entropy of each task, nats
Curves = Mapping[str, Sequence[Mapping[str, float]]]  # by run: joint, or the task that it has alone


@dataclass(frozen=True, slots=True)
class Run:
    """One training: `name` is a task, or joint. every: updates between measurements; rows: of a task in an update."""

    folder: Path  # working folder of the training
    name: str
    seed: int
    updates: int
    every: int
    rows: int

    @property
    def tasks(self) -> tuple[str, ...]:
        return TASKS if self.name == JOINT else (self.name,)

    @property
    def state_folder(self) -> Path:
        """Where its state is kept."""
        return self.folder / "synergy" / f"updates-{self.updates}-rows-{self.rows}" / f"{self.name}-{self.seed}"


def train(run: Run, threads: int | None = None) -> Curve:
    """Train, or go on where the run was left, and measure its tasks every so many updates."""
    import torch

    from mmada_lite.train.data.pool import read_pool
    from mmada_lite.train.data.sequences import Sequences
    from mmada_lite.train.loop import LoopSettings
    from mmada_lite.train.recipe import new_model
    from mmada_lite.train.stages import Share, StageSettings, load_trained, train_stage
    from mmada_lite.train.workspace import Workspace

    if threads:
        torch.set_num_threads(threads)
    workspace, curve = Workspace(run.folder), _read(run.state_folder / "curve.json")
    model, tokenizer, vocabulary = new_model(workspace.tokenizer, run.seed)
    measured, _, _ = new_model(workspace.tokenizer)
    seen = Sequences(tokenizer, vocabulary, read_pool(workspace.pool, "single"))
    held_out = Sequences(tokenizer, vocabulary, read_pool(_held_out_folder(run.folder), "single"), held_out=True)
    settings = StageSettings(
        {task: Share(1.0) for task in run.tasks},
        LoopSettings(run.updates, save_seconds=1e9),
        rows=run.rows,
        warmup=30,
        seed=5 + run.seed,
    )
    for update in range(run.every, run.updates + 1, run.every):
        if curve and update <= curve[-1]["update"]:
            continue
        train_stage(model, seen, run.state_folder, settings, until=update)
        load_trained(run.state_folder, measured)
        curve.append({"update": float(update)} | {task: held_loss(measured, held_out, task) for task in run.tasks})
        partial = run.state_folder / "curve.json.partial"
        partial.write_text(json.dumps(curve), encoding="utf-8")
        partial.replace(run.state_folder / "curve.json")
        print(f"{run.name}, seed {run.seed}: {json.dumps(curve[-1])}", file=sys.stderr, flush=True)
    return curve


def _read(file: Path) -> Curve:
    try:
        curve: Curve = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    except ValueError as error:
        raise Error(f"{file} cannot be read ({error}): remove its folder, and the run begins anew") from error
    return curve


def held_loss(model: MMaDA, sequences: Sequences, task: str, groups: int = 12) -> float:
    """Mean cross-entropy at hidden positions over fixed groups of rows, nats."""
    import torch
    import torch.nn.functional as F

    from mmada_lite.train.progress import step_generator

    total, count = 0.0, 0
    with torch.no_grad():
        for number in range(groups):
            rows = sequences.tasks[task](16, step_generator(77, number))
            chosen = torch.from_numpy(rows.weight > 0)
            logits = model.logits(model(torch.from_numpy(rows.tokens)).hidden[chosen])
            total += float(F.cross_entropy(logits, torch.from_numpy(rows.targets)[chosen], reduction="sum"))
            count += int(chosen.sum())
    return round(total / count, 4)


def _held_out_folder(folder: Path) -> Path:
    return folder / "synergy" / "held"


def prepare(folder: Path) -> None:
    """Encode pictures of the validation style, which no training sees, once."""
    from mmada_lite.train.data import emoji
    from mmada_lite.train.data.pool import read_pool
    from mmada_lite.train.shards import write_shard
    from mmada_lite.train.vq import MagViT
    from mmada_lite.train.workspace import Workspace

    workspace, file = Workspace(folder), _held_out_folder(folder) / "single-00000.npz"
    if not workspace.tokenizer.exists():
        raise Error(f"{workspace.tokenizer} is missing: run `python -m mmada_lite.train render` first")
    read_pool(workspace.pool, "single", limit=1)  # what is missing is said before anything is made
    if not file.exists():
        icons = emoji.load_concepts(workspace.concepts, "validation").pixels
        write_shard(file, "single", icons, MagViT.load(workspace.vq_model).eval(), HELD_OUT_PICTURES, 1)


def rows_of(curves: Mapping[int, Curves]) -> list[dict[str, Any]]:
    """The table: a row a task, the last losses alone and jointly, nats, the mean over seeds and the difference of each."""
    table_rows = []
    for task in TASKS:
        alone = [by_run[task][-1][task] for by_run in curves.values()]
        joint = [by_run[JOINT][-1][task] for by_run in curves.values()]
        differences = [round(j - a, 4) for a, j in zip(alone, joint, strict=True)]
        means = {"alone": statistics.fmean(alone), "joint": statistics.fmean(joint)}
        rounded = {name: round(value, 4) for name, value in means.items()}
        table_rows.append({"task": task, **rounded, "differences": differences})
    return table_rows


def save(target: Path | None, given: Sequence[str], rows: Sequence[Mapping[str, Any]], curves: Mapping[int, Curves]) -> None:
    """Write what was measured as JSON, whole or not at all. Raises Error where it cannot be written."""
    if target is None:
        return
    command = shlex.join(["mmada-lite", "train", "synergy", *given])
    about = {
        "schema": SCHEMA,
        "bench": "synergy",
        "command": command,
        "versions": {"mmada-lite": __version__},
        "complete": True,
    }
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(about | {"curves": curves, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise Error(f"{target}: cannot be written ({error.strerror}); choose another --output") from error


def check_plot(target: Path) -> None:
    """Say before the training what would keep its plot from being drawn. Raises Error without matplotlib or a folder."""
    if find_spec("matplotlib") is None:
        raise Error('drawing curves needs matplotlib: pip install "mmada-lite[bench]"')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{target}: its folder cannot be made ({error.strerror}); choose another --plot") from error


def plot(curves: Mapping[int, Curves], target: Path) -> None:
    """A panel a task: held-out cross-entropy against updates, alone and jointly, a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(TASKS), 3.6), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        for seed, by_run in curves.items():
            for name, label, colour in ((task, "alone", "tab:blue"), (JOINT, "jointly", "tab:red")):
                places = [point["update"] for point in by_run[name]]
                legend = label if seed == next(iter(curves)) else None
                panel.plot(places, [point[task] for point in by_run[name]], "o-", ms=3, lw=1.2, color=colour, label=legend)
        panel.set(title=task, xlabel="updates of this task", ylabel="held-out cross-entropy, nats")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(target, dpi=110)


def compare(arguments: argparse.Namespace) -> dict[int, dict[str, Curve]]:
    """Every run, some at once: by seed and by name, the curve."""
    prepare(arguments.folder)
    runs = [
        Run(arguments.folder, name, seed, arguments.updates, arguments.every, arguments.rows)
        for seed in arguments.seeds
        for name in (JOINT, *TASKS)
    ]
    if arguments.jobs == 1:
        curves = list(map(train, runs))
    else:
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as workers:
            curves = list(workers.map(train, runs, [1] * len(runs)))
    by_seed: dict[int, dict[str, Curve]] = {seed: {} for seed in arguments.seeds}
    for run, curve in zip(runs, curves, strict=True):
        by_seed[run.seed][run.name] = curve
    return by_seed


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite train synergy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of the training (%(default)s)"
    )
    parser.add_argument("--updates", type=int, default=400, help="updates a task (%(default)s)")
    parser.add_argument("--every", type=int, default=50, help="updates between measurements (%(default)s)")
    parser.add_argument("--rows", type=int, default=12, help="rows of a task in an update (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="first weights and draws of the runs (0)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a core each beside a GPU (%(default)s)")
    parser.add_argument("--plot", type=Path, help="draw the curves here (PNG)")
    parser.add_argument("-o", "--output", type=Path, help="write JSON here too")
    return parser


def require_sound(arguments: argparse.Namespace) -> None:
    """Raise Error for numbers that no run can have, before anything is trained."""
    for name in ("updates", "every", "rows", "jobs"):
        if getattr(arguments, name) < 1:
            raise Error(f"--{name} {getattr(arguments, name)} cannot be; give a whole number from 1 on")
    if arguments.updates % arguments.every:
        raise Error(f"--updates {arguments.updates} is no multiple of --every {arguments.every}; use one")
    if len(set(arguments.seeds)) < len(arguments.seeds) or min(arguments.seeds) < 0:
        raise Error(f"--seeds {' '.join(map(str, arguments.seeds))}: give different whole numbers from 0 on")
    if arguments.rows > MOST_ROWS:
        raise Error(f"--rows {arguments.rows} is more than an update holds; give {MOST_ROWS} at most")
    if arguments.plot:
        check_plot(arguments.plot)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all, print the table, write JSON and the plot. 0, 2 after a fault of the user, or 130 when it is interrupted."""
    return exit_code(lambda: _run_all(list(sys.argv[1:] if argv is None else argv)), "docs/training.md")


def _run_all(given: Sequence[str]) -> int:
    arguments = build_parser().parse_args(given)
    require_sound(arguments)
    curves = compare(arguments)
    rows = rows_of(curves)
    save(arguments.output, given, rows, curves)
    if arguments.plot:
        plot(curves, arguments.plot)
    print("| task | alone | jointly | difference by seed, nats |\n|---|---|---|---|")
    for row in rows:
        differences = ", ".join(f"{value:+.3f}" for value in row["differences"])
        print(f"| {row['task']} | {row['alone']:.3f} | {row['joint']:.3f} | {differences} |")
    if arguments.output:
        print(f"\n{arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
