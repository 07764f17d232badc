"""What one model gains or loses against another in the same cases: metric by metric, task by task, and in the mean over tasks.
Knows reports alone: neither models nor how they were asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmada_lite.bench.command import markdown
from mmada_lite.train.intervals import cases_of, clusters_of, paired

Reports = Mapping[str, Mapping[str, Any]]  # task -> metric -> what was counted
Change = dict[str, float]  # change, low, high: points of a share, a mean as it is
Losses = dict[str, dict[str, Change]]  # task -> metric
MEAN = "mean"  # of all tasks, beside their names


def loss(reference: Mapping[str, Any], other: Mapping[str, Any]) -> Change:
    """Other less reference, with its 95% interval. Of shares, points: case by case where both say which were right, clusters
    minded, else as if each had been asked other questions; of means, the difference, and the two intervals' hull."""
    key, unit = ("share", 100) if "share" in reference else ("mean", 1)
    before, after = (str(report.get("cases", "")) for report in (reference, other))
    if before and len(before) == len(after):
        return _points(*paired(before, after, clusters_of(reference)))
    change = other[key] - reference[key]
    low = change - math.hypot(other[key] - other["low"], reference["high"] - reference[key])
    high = change + math.hypot(other["high"] - other[key], reference[key] - reference["low"])
    return _points(change, low, high, unit)


def losses(reference: Reports, other: Reports) -> Losses:
    """Of every metric that has an interval in both; of one that pools others, case by case too."""
    changes: Losses = {}
    for task, metrics in reference.items():
        for name, value in metrics.items():
            theirs = other.get(task, {}).get(name)
            if isinstance(value, dict) and isinstance(theirs, dict) and "low" in value and "low" in theirs:
                pools = value.get("pools", ())
                found = _of_cases(metrics, other[task], pools) if pools else None
                changes.setdefault(task, {})[name] = found or loss(value, theirs)
    return changes


def families(reference: Reports, other: Reports) -> dict[str, Change]:
    """Of every task the change over all of its cases together, how many they are (`cases`) and the share that is right of the
    reference; and the mean over tasks, each of which weighs alike."""
    found = dict[str, Change]()
    for task, metrics in reference.items():
        names = [name for name in counted(metrics) if name in counted(other.get(task, {}))]
        change = _of_cases(metrics, other.get(task, {}), names)
        if change:
            cases, _ = cases_of(metrics, names)
            found[task] = {**change, "cases": len(cases), "share": round(cases.count("1") / len(cases), 4)}
    if found:
        sides = [[each[MIDDLE] - each["low"], each["high"] - each[MIDDLE]] for each in found.values()]
        below, above = (math.hypot(*side) / len(found) for side in zip(*sides, strict=True))
        middle = sum(each[MIDDLE] for each in found.values()) / len(found)
        share = sum(each["share"] for each in found.values()) / len(found)
        found[MEAN] = {
            **_points(middle, middle - below, middle + above, 1),
            "cases": sum(each["cases"] for each in found.values()),
            "share": round(share, 4),
        }
    return found


def counted(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of a task that say which cases were right, each case in one of them."""
    return [name for name, value in metrics.items() if isinstance(value, dict) and "cases" in value]


def tasks_table(reference: Reports, others: Mapping[str, Losses]) -> str:
    """A line a metric: the reference's value, then what each other gains or loses, in points (of means: as they are)."""
    lines = []
    for task, metrics in reference.items():
        for name, value in metrics.items():
            cells = [changes.get(task, {}).get(name) for changes in others.values()]
            if isinstance(value, dict) and all(cells):
                lines.append([task, name, valued(value), *(_said(each) for each in cells if each)])
    return markdown(["task", "metric", "reference", *others], lines)


def families_table(others: Mapping[str, Mapping[str, Change]]) -> str:
    """A line a task, and the mean of all: cases, what is right of the reference, what each other gains or loses, in points."""
    first = next(iter(others.values()))
    lines = []
    for task, own in first.items():
        name = f"{MEAN} of {len(first) - 1}" if task == MEAN else task
        changes = [_said(each[task]) for each in others.values()]
        lines.append([name, f"{own['cases']:,}", f"{own['share']:.1%}", *changes])
    return markdown(["task, all its cases", "cases", "reference", *others], lines)


def valued(value: Mapping[str, Any], digits: int = 2) -> str:
    """90.1% of a share, 22.13 dB of a mean, or in its own unit."""
    if "share" in value:
        return f"{value['share']:.1%}"
    return f"{value['mean']:.{digits}f} {value.get('unit', 'dB')}"


MIDDLE = "change"


def _of_cases(reference: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> Change | None:
    """The change over the cases of several metrics together; None where these are not the same cases."""
    if not names or not all(name in other for name in names):
        return None
    before, clusters = cases_of(reference, names)
    after, _ = cases_of(other, names)
    return _points(*paired(before, after, clusters)) if len(before) == len(after) > 0 else None


def _points(change: float, low: float, high: float, unit: int = 100) -> Change:
    return {name: round(unit * value, 3) for name, value in ((MIDDLE, change), ("low", low), ("high", high))}


def _said(each: Change) -> str:
    return "{change:+.2f} ({low:+.2f} to {high:+.2f})".format(**each)
