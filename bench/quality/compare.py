"""Bundles told against a reference: the same tasks side by side with what was lost in points, and how near they stay along the
reference's own decodings. It knows reports and rows of `quantization`; it measures nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mmada_lite.bench.quality.quantization import percent, table
from mmada_lite.bench.record import Row
from mmada_lite.train.intervals import paired

Report = Mapping[str, Mapping[str, object]]  # task -> metric -> what was counted


def loss(reference: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Other less reference, with its 95% interval. Of shares, points: case by case where both say which were right, else as if
    each had been asked other questions; of means, the difference, and the two intervals' hull."""
    key, unit = ("share", 100) if "share" in reference else ("mean", 1)
    before, after = (str(report.get("cases", "")) for report in (reference, other))
    if before and len(before) == len(after):
        change, low, high = paired(before, after)
        return {name: round(100 * value, 3) for name, value in (("change", change), ("low", low), ("high", high))}
    change = other[key] - reference[key]
    below = math.hypot(other[key] - other["low"], reference["high"] - reference[key])
    above = math.hypot(other["high"] - other[key], reference[key] - reference["low"])
    parts = {"change": change, "low": change - below, "high": change + above}
    return {name: round(unit * value, 3) for name, value in parts.items()}


def losses(reference: Report, other: Report) -> dict[str, dict[str, dict[str, float]]]:
    """Task -> metric -> loss, of every metric that has an interval in both."""
    changes: dict[str, dict[str, dict[str, float]]] = {}
    for task, metrics in reference.items():
        for name, value in metrics.items():
            theirs = other.get(task, {}).get(name)
            if isinstance(value, dict) and isinstance(theirs, dict) and "low" in value and "low" in theirs:
                changes.setdefault(task, {})[name] = loss(value, theirs)
    return changes


def tasks_table(reference: Report, others: Mapping[str, Report]) -> str:
    """A line a metric: the reference's value, then what each bundle gains or loses, in points (of decibels: as they are)."""
    lines = ["| task | metric | reference | " + " | ".join(others) + " |", "|---" * (3 + len(others)) + "|"]
    changes = {name: losses(reference, report) for name, report in others.items()}
    for task, metrics in reference.items():
        for name, value in metrics.items():
            cells = [changes[other].get(task, {}).get(name) for other in others]
            if isinstance(value, dict) and all(cells):
                shown = f"{value['share']:.1%}" if "share" in value else f"{value['mean']:.2f} dB"
                told = ["{change:+.2f} ({low:+.2f} to {high:+.2f})".format(**cell) for cell in cells if cell]
                lines.append("| " + " | ".join([task, name, shown, *told]) + " |")
    return "\n".join(lines)


def trajectories_table(rows: Sequence[Row]) -> str:
    """The table of quantization, then agreement and writes that stayed the same, a line a bundle and a column a task."""
    tasks = list(rows[0]["tasks"]) if rows else []
    heads = [f"{task}: agreement %, same writes %" for task in tasks]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(tasks)) + "|"]
    for row in rows:
        losses_of = [row["tasks"][task] for task in tasks]
        cells = [f"{percent(each['agreement'])}, {percent(_kept(*each['flips']))}" for each in losses_of]
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return table(rows) + "\n\n" + "\n".join(lines)


def _kept(mean: float, low: float, high: float) -> tuple[float, float, float]:
    return 1 - mean, 1 - high, 1 - low
