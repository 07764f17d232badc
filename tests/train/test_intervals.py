"""Laws of intervals over cases that come in clusters: copies of a case tell nothing new, other cases do, and what is true lies
inside as often as is promised. What has no clusters has the laws of test_law and test_quality."""

import numpy as np
import pytest

from mmada_lite.train.intervals import (
    cases_of,
    clusters_of,
    effective,
    interval,
    mean_of,
    paired,
    pooled,
    ratio_of,
    student,
    tally,
)


def told(outcomes: np.ndarray) -> str:
    return "".join("01"[int(each)] for each in outcomes)


def test_the_quantile_of_student_is_that_of_the_tables() -> None:
    for freedom, quantile in ((4, 2.776), (11, 2.201), (30, 2.042), (63, 1.998), (1000, 1.962)):
        assert student(freedom) == pytest.approx(quantile, abs=1e-3)


def test_clusters_of_one_change_nothing() -> None:
    outcomes = [True] * 30 + [False] * 10
    plain = {**interval(30, 40), "cases": told(np.array(outcomes))}
    assert tally(outcomes) == plain
    assert tally(outcomes, "icon", range(40)) == {**plain, "clusters": "icon % 40"}
    before, after = told(np.arange(40) % 3 > 0), told(np.arange(40) % 4 > 0)
    assert paired(before, after, range(40)) == paired(before, after)


def test_ten_copies_of_every_case_are_no_more_certain_than_one() -> None:
    """Nor much less: Student's t for the few clusters there are."""
    single = np.arange(60) % 4 > 0
    own, copied = interval(int(single.sum()), 60), tally(np.tile(single, 10), "icon", [n % 60 for n in range(600)])
    assert copied["share"] == own["share"]
    width = float(copied["high"]) - float(copied["low"])
    assert own["high"] - own["low"] < width < 1.1 * (own["high"] - own["low"])
    before, after = told(single), told(np.arange(60) % 5 > 0)
    change, low, high = paired(before, after)
    again = paired(before * 10, after * 10, [n % 60 for n in range(600)])
    assert again[0] == pytest.approx(change)
    assert again[2] - again[1] == pytest.approx(high - low, rel=0.1)
    assert again[2] - again[1] > high - low
    naive = paired(before * 10, after * 10)
    assert naive[2] - naive[1] < 0.5 * (high - low)


def test_cases_that_clusters_do_not_bind_count_each() -> None:
    """Every cluster has the same share: nothing is alike within, and the interval is that of as many cases."""
    outcomes = np.arange(400) % 4 > 0
    ids = [n // 4 for n in range(400)]
    found = tally(outcomes, "icon", ids)
    assert effective(outcomes.astype(float), ids) == pytest.approx(400, rel=0.03)
    assert (found["low"], found["high"]) == pytest.approx((interval(300, 400)["low"], interval(300, 400)["high"]), abs=2e-3)
    assert tally([True] * 40, "icon", [n % 4 for n in range(40)])["low"] == interval(40, 40)["low"]


def test_what_is_true_lies_inside_where_cases_are_clustered() -> None:
    """64 icons, each with a chance of its own, 15 times: nineteen times in twenty, and far from it with each case alone."""
    rng, held, naive, change_held = np.random.default_rng(0), 0, 0, 0
    ids = [n % 64 for n in range(960)]
    for _ in range(400):
        chance = np.tile(rng.beta(4.0, 1.0, 64), 15)  # 0.8 in the mean
        right = rng.random(960) < chance
        found, alone = tally(right, "icon", ids), interval(int(right.sum()), 960)
        held += float(found["low"]) <= 0.8 <= float(found["high"])
        naive += alone["low"] <= 0.8 <= alone["high"]
        harder = np.tile(rng.random(64) < 0.1, 15)  # a tenth of the icons is never right again
        _, low, high = paired(told(right), told(right & ~harder), ids)
        change_held += low <= -0.08 <= high
    assert held / 400 > 0.92
    assert naive / 400 < 0.75
    assert change_held / 400 > 0.92


def test_clusters_are_kept_in_few_letters() -> None:
    turn = tally([True, False] * 3, "caption", [0, 1, 2, 0, 1, 2])
    assert turn["clusters"] == "caption % 3"
    assert clusters_of(turn) == ["caption 0", "caption 1", "caption 2"] * 2
    others = tally([True, False, True], "icon", [7, 3, 7])
    assert others["clusters"] == "icon 7 3 7"
    assert clusters_of(others) == ["icon 7", "icon 3", "icon 7"]
    assert clusters_of(tally([True])) is None


def test_what_is_pooled_is_counted_together_with_its_clusters() -> None:
    report = {
        "one": tally([True, False, True, True], "icon", [0, 1, 0, 1]),
        "two": tally([True, True], "icon", [1, 2]),
        "three": tally([False, True]),
    }
    found = pooled(report, list(report))
    assert (found["right"], found["total"], found["pools"]) == (6, 8, ["one", "two", "three"])
    cases, clusters = cases_of(report, list(report))
    assert cases == "10111101"
    assert len(set(clusters)) == 5  # three icons, and two cases that repeat nothing
    assert pooled(report, ["three"])["low"] == interval(1, 2)["low"]


def test_a_ratio_is_of_sums_and_holds_what_is_true() -> None:
    assert ratio_of([2.0, 4.0], [4.0, 4.0])["mean"] == pytest.approx(0.75)
    assert mean_of([1.0, 3.0])["mean"] == 2
    same = mean_of([5.0, 5.0, 5.0])
    assert (same["low"], same["high"], same["total"]) == (5, 5, 3)
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        of_cluster = np.tile(rng.normal(10.0, 2.0, 30), 8)
        below = of_cluster + rng.normal(0, 1, 240)
        above = 0.6 * of_cluster + np.tile(rng.normal(0.0, 1.0, 30), 8)
        found = ratio_of(above, below, [n % 30 for n in range(240)])
        held += found["low"] <= 0.6 <= found["high"]
    assert held / 300 > 0.9
