"""Laws of what one model loses against another: case by case, clusters minded, pooled by task, and in the mean over tasks."""

import math

import pytest

from mmada_lite.bench.quality.compare import families, families_table, losses, tasks_table
from mmada_lite.train.intervals import interval, paired, pooled, tally


def told(*outcomes: int, ids: list[int] | None = None) -> dict[str, object]:
    return dict(tally(map(bool, outcomes), "icon", ids))


OLD = {
    "what": {"names": told(1, 1, 0, 1, ids=[0, 1, 0, 1]), "backgrounds": told(1, 1), "missed": ["bell"]},
    "sums": {"right": told(1, 1, 1, 0)},
    "codes": {"psnr": {"mean": 22.0, "low": 21.5, "high": 22.5, "total": 4}, "used": interval(3, 4)},
}
NEW = {
    "what": {"names": told(1, 1, 1, 1, ids=[0, 1, 0, 1]), "backgrounds": told(0, 1), "missed": []},
    "sums": {"right": told(1, 0, 0, 0)},
    "codes": {"psnr": {"mean": 21.9, "low": 21.5, "high": 22.3, "total": 4}, "used": interval(3, 4)},
}


def test_a_metric_is_compared_case_by_case_and_by_cluster() -> None:
    found = losses(OLD, NEW)
    change, low, high = paired("1101", "1111", ["a", "b", "a", "b"])
    assert found["what"]["names"] == {
        "change": pytest.approx(25),
        "low": pytest.approx(100 * low, abs=1e-3),
        "high": pytest.approx(100 * high, abs=1e-3),
    }
    assert change == 0.25
    alone = paired("1101", "1111")
    assert high - low > alone[2] - alone[1]
    assert found["codes"]["psnr"]["change"] == pytest.approx(-0.1)
    assert "missed" not in found["what"]
    assert "| codes | psnr | 22.00 dB | -0.10" in tasks_table(OLD, {"new": found})


def test_a_task_is_all_of_its_cases_and_the_mean_weighs_tasks_alike() -> None:
    found = families(OLD, NEW)
    assert set(found) == {"what", "sums", "mean"}
    assert (found["what"]["cases"], found["what"]["share"], found["what"]["change"]) == (6, 0.8333, 0)
    assert (found["sums"]["cases"], found["sums"]["change"]) == (4, -50)
    assert (found["mean"]["change"], found["mean"]["cases"]) == (-25, 10)
    reach = math.hypot(*(found[task]["change"] - found[task]["low"] for task in ("what", "sums"))) / 2
    assert found["mean"]["low"] == pytest.approx(-25 - reach, abs=1e-3)
    lines = families_table({"new": found}).splitlines()
    assert lines[-1].startswith("| mean of 2 | 10 | 79.2% | -25.00 (")


def test_what_is_pooled_is_compared_case_by_case_and_counted_once() -> None:
    old, new = ({"what": dict(each["what"])} for each in (OLD, NEW))
    for each in (old, new):
        each["what"]["all"] = pooled(each["what"], ["names", "backgrounds"])
    assert losses(old, new)["what"]["all"] == {name: families(old, new)["what"][name] for name in ("change", "low", "high")}
    assert families(old, new)["what"]["cases"] == 6


def test_other_cases_are_no_family() -> None:
    assert families({"sums": {"right": told(1, 1)}}, {"sums": {"right": told(1, 1, 0)}}) == {}
    assert losses({"sums": {"right": told(1, 1)}}, {"sums": {"right": told(1, 0, 0)}})["sums"]["right"]["change"] < 0
