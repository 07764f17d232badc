"""How many processor cores this process may use: fewer than the machine has where it is tied to some of them, or where its
container has a share of their time alone. It knows Linux's control groups, of both versions."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Those that this process may run on, and no more than it is given the time of, rounded up: of one and a half cores two
    threads take all, and one would leave a third."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _shares())]))


def _shares() -> Iterator[float]:
    """Cores' time that each group around this process may take, where it is bounded."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / controllers if controllers else _GROUPS
        own = root / path.lstrip("/")
        # in a container the path may be that of the machine, which is not there: its own group is the root
        for folder in (own, *own.parents):
            yield from _share(folder)
            if folder == root:
                break


def _share(folder: Path) -> Iterator[float]:
    """Version 2 has one file, "max" or microseconds a period; version 1 two, below zero for no bound."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return
