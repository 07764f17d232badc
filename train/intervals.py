"""Shares with their uncertainty. Knows nothing of what is counted."""

from __future__ import annotations

import math
from collections.abc import Iterable

Z = 1.959964  # of 95%


def interval(right: int, total: int) -> dict[str, float]:
    """Counts, share and its 95% Wilson interval."""
    if total == 0:
        return {"right": 0, "total": 0, "share": 0.0, "low": 0.0, "high": 1.0}
    z, share = Z, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return {
        "right": right,
        "total": total,
        "share": round(share, 4),
        "low": round(max(0.0, middle - half), 4),
        "high": round(min(1.0, middle + half), 4),
    }


def tally(outcomes: Iterable[bool]) -> dict[str, float | str]:
    """The same of cases that were right or not, and `cases`: a 1 or a 0 for each, so that two tallies of the same cases can be
    told apart case by case."""
    cases = "".join("1" if right else "0" for right in outcomes)
    return {**interval(cases.count("1"), len(cases)), "cases": cases}


def paired(before: str, after: str) -> tuple[float, float, float]:
    """The change of the share between two tallies of the same cases and its 95% interval (Newcombe 1998, Statistics in
    Medicine 17, 2635, method 10: Wilson's limits with the correlation of the two)."""
    assert len(before) == len(after) > 0, "not the same cases"
    pairs = list(zip(before, after, strict=True))
    both, neither = pairs.count(("1", "1")), pairs.count(("0", "0"))
    lost, won = pairs.count(("1", "0")), pairs.count(("0", "1"))
    first, second = interval(both + lost, len(pairs)), interval(both + won, len(pairs))
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    crossed = float(both * neither - lost * won)
    if crossed > 0:
        crossed = max(0.0, crossed - len(pairs) / 2)  # Newcombe's correction for continuity
    phi = crossed / math.sqrt(margins) if margins else 0.0
    change = (won - lost) / len(pairs)

    def reach(mine: float, theirs: float) -> float:
        return math.sqrt(max(0.0, mine * mine - 2 * phi * mine * theirs + theirs * theirs))

    shares = (both + won) / len(pairs), (both + lost) / len(pairs)
    below = reach(shares[0] - second["low"], first["high"] - shares[1])
    above = reach(second["high"] - shares[0], shares[1] - first["low"])
    return change, change - below, change + above
