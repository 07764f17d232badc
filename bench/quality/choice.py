"""The rule that the named speeds are chosen by, from the rows of `bench quality --frontier` (told in docs/speed.md).

A way may be a speed where it changes what saves work alone (of pictures the share of steps, too), and of texts keeps keys and
values, as every host can, and ends with the answer, by which larger models gain more. Of those that lose no more than the
speed allows in any family, case by case, the one of least seconds is taken; of those within a tenth of it the one that changes
least, then the one that loses least. It decodes and measures nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmada_lite.decoding.setting_fields import settings_of
from mmada_lite.decoding.settings import ImageAcceleration, TextAcceleration

ALIKE = 0.9  # of the times as fast: what is nearer is noise, of seconds and of what a setting gains
CACHES = ("dual",)  # which every host decodes with
LAYERS = {"text": TextAcceleration, "image": ImageAcceleration}
Measured = Mapping[str, Any]  # a row of a frontier: kind, policy, changes, times, points, count


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a speed may lose in a family: points, and whether a loss that can be told from none is too much."""

    points: float
    told: bool

    def bears(self, row: Measured) -> bool:
        found = row["points"].values()
        return all(each["change"] >= -self.points and (self.told or each["high"] >= 0) for each in found)


SPEEDS: Mapping[str, Allowed] = {"balanced": Allowed(0.5, told=False), "fast": Allowed(1.0, told=True)}
MOST = max(allowed.points for allowed in SPEEDS.values())


def may_be_chosen(row: Measured) -> bool:
    """Whether a speed may change what this way changes: nothing, or what saves work."""
    changes, saving = row["changes"], {each.name for each in settings_of(LAYERS[row["kind"]])}
    if row["kind"] == "image":
        return set(changes) <= saving | {"steps"} and not changes.get("steps", 0) > 1
    return is_exact(row) or (set(changes) <= saving and changes.get("cache") in CACHES and changes.get("early_stop") == 1)


def is_exact(row: Measured) -> bool:
    """Whether a way changes nothing, as the first of every table."""
    return row["changes"] in ({}, {"cache": "none"})


def hopeful(rows: Sequence[Measured]) -> list[Measured]:
    """Exact, then those that may be chosen, fastest first, without those of which some family surely loses more points than
    any speed may, by the 95% interval."""
    fit = [row for row in rows if may_be_chosen(row) and all(each["high"] >= -MOST for each in row["points"].values())]
    return sorted(fit, key=lambda row: (not is_exact(row), -_times(row)))


def chosen(rows: Iterable[Measured], speed: str) -> Measured:
    """Of the rows of one kind, one of them exact, that of a speed. Those that were asked fewer cases take no part."""
    rows = [row for row in rows if "points" in row]
    most = max(row["count"] for row in rows)
    borne = [row for row in rows if row["count"] == most and may_be_chosen(row) and SPEEDS[speed].bears(row)]
    fastest = max(_times(row) for row in borne)
    near = [row for row in borne if _times(row) >= ALIKE * fastest]
    return min(near, key=lambda row: (len(row["changes"]), -_worst(row), -_times(row)))


def too_slow(row: Measured, known: Sequence[Measured]) -> bool:
    """Whether a way could be taken for no speed in the place of some whose losses are known, one of them exact."""
    taken = [max(_times(each) for each in known if may_be_chosen(each) and allowed.bears(each)) for allowed in SPEEDS.values()]
    return _times(row) < ALIKE * min(taken)


def presets(rows: Sequence[Measured]) -> dict[str, dict[str, dict[str, Any]]]:
    """Speed -> kind -> what it changes, of rows of several kinds."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    return {speed: {kind: dict(chosen(mine, speed)["changes"]) for kind, mine in of_kind.items()} for speed in SPEEDS}


def in_words(rows: Sequence[Measured]) -> list[str]:
    """A line for each speed and kind: what is taken, how much faster it is, and the largest loss of a family."""
    lines = []
    for speed, of_kind in presets(rows).items():
        for kind in of_kind:
            row = chosen([row for row in rows if row["kind"] == kind], speed)
            family = min(row["points"], key=lambda name: row["points"][name]["change"])
            loss = "{change:+.2f} ({low:+.2f} to {high:+.2f})".format(**row["points"][family])
            lines.append(f"{speed}, {kind}: {row['policy']}: {_times(row):.2f} times as fast, {family} {loss} points")
    return lines


def _times(row: Measured) -> float:
    return float(row["times"]["median"])


def _worst(row: Measured) -> float:
    return min(float(each["change"]) for each in row["points"].values())
