"""Laws of `bench quality --frontier` and `--presets` on a tiny model that means nothing: every policy is timed and examined,
none on the frontier is beaten, what a model forbids is named, faults are one line."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from toys import write_place

from mmada_lite.bench import policies, record
from mmada_lite.bench.policies import Policy
from mmada_lite.bench.quality import choice, evaluate, frontier
from mmada_lite.bench.quality.context import EvalContext
from mmada_lite.bench.quality.frontier import Timed, alternate, pareto, times, ways_of
from mmada_lite.bench.quality.models import open_model
from mmada_lite.bench.quality.tasks import TASKS
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.train.loop import fast_type

REFERENCE = frontier.REFERENCES[fast_type(torch.device("cpu"))]


@pytest.fixture(scope="module")
def place(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("frontier"), toy_tokenizer)


def words(place: Path, *more: str) -> list[str]:
    own = ["--folder", str(place), "--judge", str(place / "judge"), "--count", "4", "--device", "cpu"]
    return [str(place / "bundle"), *own, "--prompts", "2", "--rounds", "1", *more]


@pytest.fixture(scope="module")
def swept(place: Path) -> dict:
    target, chart = place / "frontier.json", place / "frontier.png"
    chosen = ["--policies", "steps=0.25", "cache=dual threshold=0.8", "speculative_steps=2"]
    assert evaluate.main(words(place, "--frontier", *chosen, "-o", str(target), "--plot", str(chart))) == 0
    assert chart.read_bytes().startswith(b"\x89PNG")
    return record.load(target)


@pytest.fixture(scope="module")
def named(place: Path) -> dict:
    target = place / "presets.json"
    assert evaluate.main(words(place, "--presets", "--checkpoint", str(place / "checkpoint"), "-o", str(target))) == 0
    return record.load(target)


def test_the_reference_in_bf16_is_run_where_it_is_asked_for(place: Path) -> None:
    target = place / "with-bf16-presets.json"
    given = ["--presets", "--checkpoint", str(place / "checkpoint"), "--bf16", "-o", str(target)]
    assert evaluate.main(words(place, *given)) == 0
    names = {row["policy"] for row in record.load(target)["rows"] if row["policy"].startswith("torch")}
    assert names == {"torch bf16"}


def test_every_policy_is_timed_and_examined(swept: dict) -> None:
    for kind, tasks in frontier.METRICS.items():
        mine = [row for row in swept["rows"] if row["kind"] == kind]
        assert len(mine) > 1
        assert mine[0]["changes"] == ({"cache": "none"} if kind == "text" else {})
        for row in mine:
            assert set(row["quality"]) == set(tasks)
            assert row["share"] == pytest.approx(sum(q["share"] for q in row["quality"].values()) / len(tasks))
            assert row["count"] == {"text": 4, "image": 16}[kind]
            assert not any("cases" in report for report in row["quality"].values())
            for task, points in row["points"].items():
                gained = 100 * (row["quality"][task]["share"] - mine[0]["quality"][task]["share"])
                assert points["change"] == pytest.approx(gained, abs=0.02)
                assert points["low"] <= points["change"] <= points["high"]
            assert row["seconds"]["median"] > 0
            assert row["model_calls"] >= 1


def test_none_on_the_frontier_is_beaten(swept: dict) -> None:
    for kind in frontier.UNITS:
        mine = [row for row in swept["rows"] if row["kind"] == kind]
        best = [row for row in mine if row["frontier"]]
        assert best
        for row in best:
            assert not any(
                other["seconds"]["median"] < row["seconds"]["median"] and other["share"] > row["share"] for other in mine
            )


def test_every_way_is_asked_few_cases_and_the_fastest_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures, until what the rule takes is sure; what decodes alike is asked once."""
    target, asked, gains = place / "halved.json", list[tuple[str, str, int]](), frontier.gained

    def examined(context: EvalContext, policy: Policy, kind: str) -> dict:
        asked.append((kind, policy.name, context.count))
        worse = policy.of_image.get("steps", 1) < 0.3 and context.count > 10
        right = "0" * 20 if worse else "1" * 20
        return {task: {"share": right.count("1") / 20, "cases": right} for task in frontier.METRICS[kind]}

    monkeypatch.setattr(frontier, "quality", examined)
    monkeypatch.setattr(frontier, "alternate", in_seconds_of_their_steps)
    assert evaluate.main([*words(place, "--frontier", "-o", str(target)), "--count", "40"]) == 0
    content = record.load(target)
    rows = {row["policy"]: row for row in content["rows"] if row["kind"] == "image"}
    assert {(kind, count) for kind, _, count in asked} == {("text", 10), ("text", 40), ("image", 10), ("image", 160)}
    assert len(asked) == len(set(asked))
    assert rows["steps=0.25"]["count"] == 160  # few cases did not tell
    all_lost = gains({"cases": "1" * 20}, {"cases": "0" * 20})["change"]
    assert rows["steps=0.25"]["points"]["drawing"]["change"] == -100 == all_lost
    assert rows["steps=1.5"]["count"] == rows["guidance=0.0"]["count"] == 10  # no speed is chosen of these
    assert content["presets"] == choice.presets(content["rows"])
    assert content["presets"]["fast"]["image"] == {"steps": 0.75}  # of two steps, smaller shares are one
    assert not any("speculative_steps" in name for _, name, _ in asked[1:])


def in_seconds_of_their_steps(runs: dict, asked: Sequence, rounds: int) -> dict[str, list[Timed]]:
    """Each way takes as long as the share of steps that its name says."""
    return {name: [Timed(float(name.partition("steps=")[2].split()[0] or 1) if "steps=" in name else 1, 1, 1)] for name in runs}


def test_a_sweep_that_was_stopped_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, quality, examined = place / "stopped.json", frontier.quality, list[str]()
    given = words(place, "--frontier", "--policies", "kv_commit_every=1", "early_stop=0.95", "-o", str(target))

    def killed_at_the_second(context: EvalContext, policy: Policy, kind: str) -> dict:
        examined.append(policy.name)
        if len(examined) == 2:
            raise KeyboardInterrupt
        return quality(context, policy, kind)

    monkeypatch.setattr(frontier, "quality", killed_at_the_second)
    assert evaluate.main(given) == 130
    left = record.load(record.unfinished(target))
    assert not left["complete"]
    monkeypatch.setattr(frontier, "alternate", lambda runs, *more: alternate({"exact": runs["exact"]}, *more))
    assert evaluate.main(given) == 0
    content = record.load(target)
    assert examined[0] not in examined[1:]
    texts = [row for row in content["rows"] if row["kind"] == "text"]
    assert [row["seconds"] for row in texts] == [row["seconds"] for row in next(iter(left["tasks"].values()))]
    assert len(texts) > 2  # which only the first run has timed


def test_ratios_are_of_turns_and_of_all_their_seconds() -> None:
    theirs, ours = [[Timed(s, 1, 1) for s in each] for each in ((1.0, 2.0, 9.0), (1.0, 1.0, 1.0))]
    found = times(theirs, ours)
    assert (found["median"], found["max"], found["whole"]) == (2.0, 9.0, 4.0)


def test_pareto_keeps_what_nothing_beats() -> None:
    assert pareto([(1, 0.5), (2, 0.9), (3, 0.8), (0.5, 0.1), (2, 0.5)]) == [True, True, False, True, False]
    assert pareto([(1, 1), (1, 1)]) == [True, True]


def test_the_table_has_every_policy(swept: dict) -> None:
    shown = frontier.table(swept["rows"])
    assert all(f"| {row['policy']} |" in shown for row in swept["rows"])
    assert shown.count("| * |") == sum(row["frontier"] for row in swept["rows"]) > 0


def test_presets_stand_beside_their_quality(named: dict) -> None:
    names = [policy.name for policy in policies.presets()]
    for kind in frontier.UNITS:
        mine = {row["policy"]: row for row in named["rows"] if row["kind"] == kind}
        assert list(mine) == [*names, REFERENCE]
        assert "quality" not in mine[REFERENCE]
        assert {points["change"] for points in mine[names[0]]["points"].values()} == {0}
        assert all(row["times_reference"]["median"] > 0 for row in mine.values())
    shown = frontier.table(named["rows"])
    assert "arithmetic %" in shown
    assert "drawing %" in shown
    assert f"| {REFERENCE} |" in shown


def test_turns_alternate() -> None:
    calls: list[str] = []

    def run(name: str, prompt: Sequence[int]) -> tuple[int, int]:
        calls.append(f"{name}{prompt[0]}")
        return 1, 1

    taken = alternate({name: partial(run, name) for name in "ab"}, [[0], [1]], 2)
    assert {len(found) for found in taken.values()} == {4}
    assert calls == ["a0", "b0", "a0", "b0", "a1", "b1", "b1", "a1", "b0", "a0"]


def test_metrics_are_those_of_the_tasks() -> None:
    assert {task for tasks in frontier.METRICS.values() for task in tasks} <= set(TASKS)
    assert set(frontier.METRICS) == set(frontier.UNITS)


def test_tables_of_policies_are_sound() -> None:
    """Each can be made of the defaults, and no two policies of a table are the same."""
    for table, kind in ((policies.TEXT, "text"), (policies.IMAGE, "image")):
        known = policies.grid(table, kind)
        assert len(known) == len(table)
        for policy in known:
            policy.text(TextSettings()), policy.image(ImageSettings())
    assert Policy("half", {"steps": 0.5}).text(TextSettings(steps=64)).steps == 32
    assert Policy("more", of_image={"steps": 1.5}).image(ImageSettings(steps=16)).steps == 24
    with pytest.raises(Error):
        Policy("wrong", {"cache": "some"}).text(TextSettings())


def test_settings_that_a_model_forbids_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "presets", lambda: [Policy("fine"), Policy("short", {"steps": 100})])
    good, bad = ways_of("text", "presets", (), open_model(place / "bundle", "cpu"))
    assert [policy.name for policy in good] == ["fine"]
    assert bad[0].startswith("text short: 100 steps for 8 tokens")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--checkpoint", "judge"), "is neither a bundle"),
        (("--checkpoint", "bundle"), "is no checkpoint of bundle"),
        (("--count", "1"), "use at least 4 cases"),
        (("--rounds", "0"), "at least 1"),
    ],
)
def test_faults_are_one_line(place: Path, more: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [more[0], str(place / more[1]) if more[0] == "--checkpoint" else more[1]]
    assert evaluate.main(words(place, "--presets", *given, "-o", str(place / "fault.json"))) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("mmada-lite: ")
    assert message in complaint
    assert not (place / "fault.json").exists()


def test_no_matplotlib_is_said(swept: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Error, match=r'pip install "mmada-lite\[bench\]"'):
        frontier.plot(swept["rows"], tmp_path / "frontier.png")
    assert json.dumps(swept)
