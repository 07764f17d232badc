"""Shares with their uncertainty. Knows nothing of what is counted."""

from __future__ import annotations

import math


def interval(right: int, total: int) -> dict[str, float]:
    """Counts, share and its 95% Wilson interval."""
    if total == 0:
        return {"right": 0, "total": 0, "share": 0.0, "low": 0.0, "high": 1.0}
    z, share = 1.959964, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return {
        "right": right,
        "total": total,
        "share": round(share, 4),
        "low": round(max(0.0, middle - half), 4),
        "high": round(min(1.0, middle + half), 4),
    }
