"""The curves of a training as a picture: the log of every stage, smoothed, a panel a stage. Knows only log.jsonl.

`mmada-lite train curves --folder runs/emoji-work -o docs/curves.png`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.errors import Error
from mmada_lite.files import require_readable

LEFT_OUT = ("step", "seconds", "norm", "loss")
Series = dict[str, tuple[list[float], list[float]]]  # name -> steps and values


def read(file: Path) -> Series:
    """Every value of a log by name. Raises Error where it is missing or is no log."""
    series: Series = {}
    try:
        require_readable(file)
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except Error:
        raise
    except (OSError, ValueError) as error:
        raise Error(f"{file} cannot be read as a training's log ({error}); give the --folder of a training") from error
    for record in records:
        for name, value in record.items():
            if name not in LEFT_OUT:
                steps, values = series.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return series


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return [float(v) for v in (sums[ends] - sums[starts]) / (ends - starts)]


def plot(stages: Mapping[str, Series], target: Path, window: int = 25) -> None:
    """One panel a stage, logarithmic where all values are above zero."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Error('drawing curves needs matplotlib: pip install "mmada-lite[bench]"') from error
    figure = Figure(figsize=(5.2 * len(stages), 3.8), layout="constrained")
    for panel, (name, series) in zip(np.atleast_1d(figure.subplots(1, len(stages))), stages.items(), strict=True):
        for label, (steps, values) in series.items():
            panel.plot(steps, smooth(values, min(window, max(1, len(values) // 8))), label=label, linewidth=1.2)
        if all(min(values) > 0 for _, values in series.values()):
            panel.set_yscale("log")
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Plot what there is. 0, 2 after a fault of the user, or 130 when it is interrupted."""
    return exit_code(lambda: _plot_all(argv))


def _plot_all(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="mmada-lite train curves", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of a training")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/curves.png"), help="the PNG (%(default)s)")
    arguments = parser.parse_args(argv)
    names = ["vq", "stage-one", "stage-two", *(f"policy/{f.name}" for f in sorted(arguments.folder.glob("policy/seed-*")))]
    logs = {name: arguments.folder / name / "log.jsonl" for name in names}
    stages = {name: read(file) for name, file in logs.items() if file.exists()}
    if not stages:
        raise Error(f"{arguments.folder} holds no log of a training; give the --folder of one")
    plot(stages, arguments.output)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
