"""Laws of the rule that the named speeds are chosen by, on rows that are made up, and on the record of the packaged model."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmada_lite.bench import policies
from mmada_lite.bench.quality import choice
from mmada_lite.decoding.settings import PRESETS

RECORD = Path(__file__).parents[2] / "bench" / "results" / "frontier.json"
WHOLE = {"cache": "dual", "early_stop": 1.0}


def row(
    times: float, *points: float, kind: str = "image", sure: float = 0.2, count: int = 480, **changes: Any
) -> dict[str, Any]:
    """A row of a frontier: its families gain so many points, each known within `sure`."""
    families = {f"{n}": {"change": each, "low": each - sure, "high": each + sure} for n, each in enumerate(points or (0.0,))}
    name = " ".join(f"{key}={value}" for key, value in changes.items()) or "exact"
    seen = {"policy": name, "times": {"median": times}, "points": families, "count": count}
    return {"kind": kind, "changes": changes, **seen}


EXACT = row(1.0)


def test_the_fastest_that_loses_no_more_than_a_speed_may_is_taken() -> None:
    rows = [EXACT, row(4, -1.2, steps=0.25), row(3, -0.9, steps=0.375), row(2, -0.1, steps=0.5), row(1.2, 2.0, refresh=2)]
    assert choice.chosen(rows, "fast")["changes"] == {"steps": 0.375}
    assert choice.chosen(rows, "balanced")["changes"] == {"steps": 0.5}


def test_every_family_counts_and_not_their_mean() -> None:
    rows = [EXACT, row(4, 3.0, -1.1, steps=0.25), row(3, 0.0, -1.0, steps=0.375)]
    assert choice.chosen(rows, "fast")["changes"] == {"steps": 0.375}


def test_balanced_bears_no_loss_that_can_be_told_from_none() -> None:
    told, noise = row(3, -0.4, sure=0.3, steps=0.375), row(2, -0.4, sure=0.5, steps=0.5)
    assert choice.chosen([EXACT, told, noise], "balanced") is noise
    assert choice.chosen([EXACT, told, noise], "fast") is told
    assert choice.chosen([EXACT, told], "balanced") is EXACT


def test_of_ways_that_are_alike_the_simpler_is_taken_then_the_better() -> None:
    rows = [EXACT, row(4.0, steps=0.25, unconditional_every=2), row(3.7, -0.5, steps=0.25), row(3.65, 0.1, steps=0.3)]
    assert choice.chosen(rows, "fast") is rows[3]
    assert choice.chosen(rows[:3], "fast") is rows[2]
    assert choice.chosen([*rows[:2], row(3.5, steps=0.25)], "fast") is rows[1]


@pytest.mark.parametrize(
    "other",
    [
        {"guidance": 0.0},
        {"steps": 1.5},
        {"steps": 0.25, "guidance": 1.5},
        {"kind": "text", "cache": "dual"},
        {"kind": "text", "threshold": 0.9, "early_stop": 1.0},
        {"kind": "text", "steps": 0.25},
        {"kind": "text", **WHOLE, "block_length": 32},
    ],
)
def test_a_speed_changes_only_what_saves_work_and_helps_larger_models(other: dict[str, Any]) -> None:
    first = EXACT if "kind" not in other else row(1.0, kind="text", cache="none")
    assert choice.chosen([first, row(9, **other)], "fast") is first
    assert choice.hopeful([row(9, **other), first]) == [first]
    good = row(2, kind="text", **WHOLE, threshold=0.9) if "kind" in other else row(2, steps=0.25, refresh=2)
    assert choice.chosen([first, row(9, **other), good], "fast") is good


def test_few_cases_drop_what_is_hopeless_and_choose_nothing() -> None:
    lost, unsure = row(9, -8.0, sure=6.9, count=120, steps=0.1), row(4, -8.0, sure=7.0, count=120, steps=0.25)
    assert choice.hopeful([unsure, lost, EXACT]) == [EXACT, unsure]
    assert choice.chosen([EXACT, row(4, 9.0, count=120, steps=0.25)], "fast") is EXACT


def test_what_is_left_is_too_slow_once_every_speed_has_a_faster_one() -> None:
    known = [EXACT, row(4, -0.9, steps=0.25)]
    assert not choice.too_slow(row(1.0, steps=0.5), known)  # balanced has exact alone
    known.append(row(3, steps=0.375))
    assert choice.too_slow(row(2.69, steps=0.5), known)
    assert not choice.too_slow(row(2.71, steps=0.5), known)


def test_exact_is_the_first_of_every_table() -> None:
    for kind, table in (("text", policies.TEXT), ("image", policies.IMAGE)):
        assert [choice.is_exact({"kind": kind, "changes": each}) for each in table] == [True] + [False] * (len(table) - 1)


def test_what_is_taken_is_said() -> None:
    rows = [EXACT, row(4, -0.7, steps=0.25), row(1.0, kind="text", cache="none"), row(6, 0.5, kind="text", **WHOLE)]
    assert choice.presets(rows)["fast"] == {"image": {"steps": 0.25}, "text": WHOLE}
    assert choice.presets(rows)["balanced"] == {"image": {}, "text": WHOLE}
    assert "fast, image: steps=0.25: 4.00 times as fast, 0 -0.70 (-0.90 to -0.50) points" in choice.in_words(rows)


def test_the_presets_are_what_the_rule_takes_from_the_record() -> None:
    """A record of before the rule holds no paired losses, which it is drawn from."""
    content = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [row for row in content["rows"] if "points" in row]
    if not rows:
        assert "presets" not in content
        return
    assert content["presets"] == choice.presets(rows)
    for speed, of_kind in content["presets"].items():
        for kind, changes in zip(("text", "image"), PRESETS[speed], strict=True):
            named = {name: value for name, value in changes.items() if value is not None}
            assert named == {name: value for name, value in of_kind[kind].items() if of_kind[kind] != {"cache": "none"}}
