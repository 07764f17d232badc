"""What bundles lose against a reference in the same tasks, in points with their interval. It knows reports, and measures
nothing itself.
"""

import math
from collections.abc import Mapping

from mmada_lite.bench.command import markdown
from mmada_lite.train.intervals import paired

Report = Mapping[str, Mapping[str, object]]  # task -> metric -> what was counted
Losses = dict[str, dict[str, dict[str, float]]]  # task -> metric -> change, low, high


def loss(reference: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Other less reference, with its 95% interval. Of shares, points: case by case where both say which were right, else as if
    each had been asked other questions; of means, the difference, and the two intervals' hull."""
    key, unit = ("share", 100) if "share" in reference else ("mean", 1)
    before, after = (str(report.get("cases", "")) for report in (reference, other))
    if before and len(before) == len(after):
        change, low, high = paired(before, after)
    else:
        change = other[key] - reference[key]
        low = change - math.hypot(other[key] - other["low"], reference["high"] - reference[key])
        high = change + math.hypot(other["high"] - other[key], reference[key] - reference["low"])
    return {name: round(unit * value, 3) for name, value in (("change", change), ("low", low), ("high", high))}


def losses(reference: Report, other: Report) -> Losses:
    """Of every metric that has an interval in both."""
    changes: Losses = {}
    for task, metrics in reference.items():
        for name, value in metrics.items():
            theirs = other.get(task, {}).get(name)
            if isinstance(value, dict) and isinstance(theirs, dict) and "low" in value and "low" in theirs:
                changes.setdefault(task, {})[name] = loss(value, theirs)
    return changes


def tasks_table(reference: Report, others: Mapping[str, Losses]) -> str:
    """A line a metric: the reference's value, then what each bundle gains or loses, in points (of decibels: as they are)."""
    lines = []
    for task, metrics in reference.items():
        for name, value in metrics.items():
            cells = [changes.get(task, {}).get(name) for changes in others.values()]
            if isinstance(value, dict) and all(cells):
                shown = f"{value['share']:.1%}" if "share" in value else f"{value['mean']:.2f} dB"
                lines.append(
                    [task, name, shown, *("{change:+.2f} ({low:+.2f} to {high:+.2f})".format(**c) for c in cells if c)]
                )
    return markdown(["task", "metric", "reference", *others], lines)
