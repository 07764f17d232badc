"""Shares, means and ratios with their uncertainty, also where cases come in clusters: one icon on many backgrounds, one caption
with many seeds. Knows nothing of what is counted.

Cases of one cluster are alike, so that a hundred of them tell less than a hundred others. Their variance is that of the sums
of clusters; as many independent cases as would have it go into Wilson's and Newcombe's limits: the count over the design effect
(Kish 1965), fewer by Student's t where clusters are few. Where all cases came out alike nothing tells of that, and each counts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # of 95%
Floats = NDArray[np.float64]
Clusters = Sequence[Hashable]  # of each case that which it repeats


def interval(right: int, total: int) -> dict[str, float]:
    """Counts, share and its 95% Wilson interval."""
    if total == 0:
        return {"right": 0, "total": 0, "share": 0.0, "low": 0.0, "high": 1.0}
    low, high = _wilson(right / total, total)
    return {"right": right, "total": total, "share": round(right / total, 4), "low": round(low, 4), "high": round(high, 4)}


def tally(outcomes: Iterable[bool], of: str = "", ids: Iterable[int] | None = None) -> dict[str, float | str]:
    """The same of cases that were right or not, and `cases`: a 1 or a 0 for each, so that two tallies of the same cases can be
    told apart case by case. ids: of each case which icon or caption (`of`, one word) it repeats, kept in `clusters` and minded
    by the interval."""
    cases = "".join("1" if right else "0" for right in outcomes)
    found: dict[str, float | str] = {**interval(cases.count("1"), len(cases)), "cases": cases}
    if ids is None or not cases:
        return found
    clusters = [int(each) for each in ids]
    assert len(clusters) == len(cases), "a cluster for each case"
    low, high = _wilson(cases.count("1") / len(cases), effective(_ones(cases), clusters))
    return {**found, "low": round(low, 4), "high": round(high, 4), "clusters": _packed(of, clusters)}


def clusters_of(report: Mapping[str, object]) -> list[str] | None:
    """What each case of a tally repeats; None where that is not said."""
    if "clusters" not in report:
        return None
    of, *ids = str(report["clusters"]).split(" ")
    if ids[0] == "%":
        return [f"{of} {number % int(ids[1])}" for number in range(len(str(report["cases"])))]
    return [f"{of} {number}" for number in ids]


def pooled(report: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """One tally of several of a task, which it names in `pools`."""
    right, clusters = cases_of(report, names)
    low, high = _wilson(right.count("1") / len(right), effective(_ones(right), clusters)) if right else (0.0, 1.0)
    share = {"low": round(low, 4), "high": round(high, 4), "pools": list(names)}
    return {**interval(right.count("1"), len(right)), **share}


def cases_of(report: Mapping[str, object], names: Sequence[str]) -> tuple[str, list[Hashable]]:
    """The cases of several tallies of a task, one behind the other, and what each repeats: itself where that is not said."""
    right, clusters = "", list[Hashable]()
    for name in names:
        tallied = report[name]
        assert isinstance(tallied, Mapping), f"{name} was not counted case by case"
        own = str(tallied["cases"])
        clusters += clusters_of(tallied) or [(name, number) for number in range(len(own))]
        right += own
    return right, clusters


def paired(before: str, after: str, clusters: Clusters | None = None) -> tuple[float, float, float]:
    """The change of the share between two tallies of the same cases and its 95% interval (Newcombe 1998, Statistics in
    Medicine 17, 2635, method 10: Wilson's limits with the correlation of the two)."""
    assert len(before) == len(after) > 0, "not the same cases"
    pairs = list(zip(before, after, strict=True))
    weight = effective(_ones(after) - _ones(before), clusters) / len(pairs)
    both, neither = weight * pairs.count(("1", "1")), weight * pairs.count(("0", "0"))
    lost, won = weight * pairs.count(("1", "0")), weight * pairs.count(("0", "1"))
    total = weight * len(pairs)
    shares = (both + won) / total, (both + lost) / total
    first, second = ([round(each, 4) for each in _wilson(share, total)] for share in (shares[1], shares[0]))
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    crossed = float(both * neither - lost * won)
    if crossed > 0:
        crossed = max(0.0, crossed - total / 2)  # Newcombe's correction for continuity
    phi = crossed / math.sqrt(margins) if margins else 0.0
    change = (won - lost) / total

    def reach(mine: float, theirs: float) -> float:
        return math.sqrt(max(0.0, mine * mine - 2 * phi * mine * theirs + theirs * theirs))

    below = reach(shares[0] - second[0], first[1] - shares[1])
    above = reach(second[1] - shares[0], shares[1] - first[0])
    return change, change - below, change + above


def mean_of(values: Iterable[float], clusters: Clusters | None = None) -> dict[str, float]:
    """A mean and its 95% interval."""
    numbers = np.asarray(list(values), dtype=np.float64)
    return ratio_of(numbers, np.ones_like(numbers), clusters)


def ratio_of(above: Iterable[float], below: Iterable[float], clusters: Clusters | None = None) -> dict[str, float]:
    """The sum of `above` over the sum of `below`, as `mean`, and its 95% interval (linearized, of the sums of clusters)."""
    upper, lower = (np.asarray(list(each), dtype=np.float64) for each in (above, below))
    whole = float(lower.sum())
    ratio = float(upper.sum()) / whole if whole else 0.0
    sums = _sums(upper - ratio * lower, clusters)
    count = len(sums)
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / whole if count > 1 and whole else 0.0
    reach = student(count - 1) * error if count > 1 else 0.0
    return {
        "mean": round(ratio, 4),
        "low": round(ratio - reach, 4),
        "high": round(ratio + reach, 4),
        "total": len(upper),
    }


def effective(values: Floats, clusters: Clusters | None = None) -> float:
    """As how many independent cases the mean of values [N] is certain: N where no cluster comes twice."""
    sums = _sums(values - values.mean(), clusters)
    if len(sums) == len(values):
        return float(len(values))
    if len(sums) == 1:
        return 1.0
    alone = float(((values - values.mean()) ** 2).sum())
    if alone == 0.0:
        return float(len(values))
    effect = max(1.0, len(sums) / (len(sums) - 1) * float((sums**2).sum()) / alone)
    return max(1.0, len(values) / effect * (Z / student(len(sums) - 1)) ** 2)


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t (Abramowitz and Stegun 26.7.5), to a thousandth from 4 degrees of freedom on."""
    z = Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (order + 1) for order, term in enumerate(terms)))


def _wilson(share: float, total: float) -> tuple[float, float]:
    z = Z
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ones(cases: str) -> Floats:
    return np.array([each == "1" for each in cases], dtype=np.float64)


def _sums(values: Floats, clusters: Clusters | None) -> Floats:
    """The sum of each cluster's values [C]; of the values themselves where there are none."""
    if clusters is None:
        return values
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    sums: Floats = np.zeros(len(numbers))
    np.add.at(sums, [numbers[name] for name in clusters], values)
    return sums


def _packed(of: str, ids: Sequence[int]) -> str:
    """`icon % 64` where they come in turn, else each: `icon 3 17 3`."""
    assert of.isalnum(), "one word"
    turn = max(ids) + 1
    if all(each == number % turn for number, each in enumerate(ids)):
        return f"{of} % {turn}"
    return " ".join([of, *map(str, ids)])
