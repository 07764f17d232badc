"""Laws of `bench quality`: every task counts what it asked, a checkpoint and its bundle are judged alike, faults are one
line. The model is tiny and means nothing; icons are noise; the judge has its first weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys import write_place

from mmada_lite.bench import record
from mmada_lite.bench.quality import evaluate
from mmada_lite.bench.quality.context import EvalContext, Report
from mmada_lite.bench.quality.tasks import TASKS
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.train.intervals import clusters_of, interval, paired

COUNT = 6
PROBLEMS = ("sum2", "difference2", "sum3", "difference3")


@pytest.fixture(scope="module")
def place(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with noise for icons, a judge, and a checkpoint with its bundle."""
    return write_place(tmp_path_factory.mktemp("quality"), toy_tokenizer)


def measure(place: Path, subject: str, *arguments: str) -> int:
    own = ["--folder", str(place), "--judge", str(place / "judge"), "--count", str(COUNT)]
    output = () if "-o" in arguments else ("-o", str(place / "out.json"))
    return evaluate.main([str(place / subject), *own, *output, *arguments])


def report_of(content: dict) -> dict:
    return {row["task"]: row["report"] for row in content["rows"]}


@pytest.fixture(scope="module")
def reports(place: Path) -> dict[str, dict]:
    """Of the checkpoint and of the bundle."""
    for name in ("checkpoint", "bundle"):
        assert measure(place, name, "--device", "cpu", "-o", str(place / "results" / f"{name}.json")) == 0
    return {name: record.load(place / "results" / f"{name}.json") for name in ("checkpoint", "bundle")}


def test_every_task_counts_what_it_asked(reports: dict[str, dict]) -> None:
    report = report_of(reports["checkpoint"])
    assert set(report) == set(TASKS)
    counted = {(t, name): value for t, metrics in report.items() for name, value in metrics.items() if "right" in value}
    for value in counted.values():
        assert 0 <= value["right"] <= value["total"]
        assert value["low"] <= value["share"] <= value["high"]
        plain = interval(value["right"], value["total"])
        assert (value["right"], value["total"], value["share"]) == (plain["right"], plain["total"], plain["share"])
        own = clusters_of(value)
        assert own is None or len(own) == value["total"]
        if own is None and "pools" not in value:
            assert (value["low"], value["high"]) == (plain["low"], plain["high"])
        if "cases" in value:
            assert (len(value["cases"]), value["cases"].count("1")) == (value["total"], value["right"])
    totals = {key: value["total"] for key, value in counted.items()}
    assert totals["what", "what_validation"] == totals["drawing", "concept"] == totals["drawing", "background"] == COUNT
    assert {totals["scenes", f"{k}_train"] for k in ("background", "position", "count", "compare")} == {COUNT // 2}
    assert {totals["arithmetic", kind] for kind in PROBLEMS} == {COUNT // 2}
    assert {totals["editing", name] for name in ("inpaint_same", "extend_same")} == {COUNT // 2}
    assert {totals["thinking", name] for name in report["thinking"]} == {COUNT // 2}
    arithmetic = sum(counted["arithmetic", kind]["right"] for kind in PROBLEMS)
    assert totals["arithmetic", "thought_exact_where_right"] == arithmetic
    assert totals["yes_no", "yes_no_validation"] == 2 * totals["yes_no", "is_yes_validation"] == COUNT
    assert totals["growing", "new_thing"] == totals["growing", "background"] == COUNT // 2
    per_concept = [tuple(map(int, value.split("/"))) for value in report["drawing"]["per_concept"].values()]
    assert sum(right for right, _ in per_concept) == counted["drawing", "concept"]["right"]
    assert sum(total for _, total in per_concept) == COUNT
    assert totals["tokenizer", "codebook_used"] == 256
    assert report["tokenizer"]["psnr_validation"]["total"] == COUNT
    assert 0 < report["tokenizer"]["sharpness_validation"]["mean"] < 2
    assert report["drawing"]["concept"]["clusters"] == f"caption % {COUNT}"


def test_the_card_s_half_has_the_test_styles_alone(place: Path) -> None:
    assert measure(place, "checkpoint", "--split", "test", "--only", "what", "tokenizer", "-o", str(place / "test.json")) == 0
    found = report_of(json.loads((place / "test.json").read_text()))
    assert found["what"]["what_test"]["total"] == 2 * COUNT
    assert not [name for metrics in found.values() for name in metrics if "validation" in name]


def test_a_checkpoint_and_its_bundle_are_judged_alike(reports: dict[str, dict]) -> None:
    one, other = (report_of(reports[name]) for name in ("checkpoint", "bundle"))
    for task in TASKS:
        for name, value in one[task].items():
            if "mean" in value:
                assert value == pytest.approx(other[task][name], abs=0.05)
            else:
                assert value == other[task][name], (task, name)
    settings = [[row["decoding"] for row in reports[name]["rows"]] for name in ("checkpoint", "bundle")]
    assert settings[0] == settings[1]


def test_some_tasks_alone_give_the_same_and_are_shown_in_a_table(
    place: Path, reports: dict[str, dict], capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(place, "checkpoint", "--only", "drawing", "arithmetic", "-o", str(place / "some.json")) == 0
    found = report_of(json.loads((place / "some.json").read_text()))
    assert found == {task: report_of(reports["checkpoint"])[task] for task in ("drawing", "arithmetic")}
    lines = capsys.readouterr().out.strip().splitlines()[:-1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert {(row[0], row[1]) for row in rows} == {(t, n) for t in found for n, v in found[t].items() if "low" in v}
    drawing = next(row for row in rows if row[1] == "concept")
    assert drawing[4] == f"{found['drawing']['concept']['right']} / {COUNT}"


def test_bundles_are_told_against_a_reference(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_checkpoint(place / "checkpoint", place / "int4", precision="int4")
    reference, output = ["--against", str(place / "bundle"), "--device", "cpu"], place / "against.json"
    follow = ["--prompts", "2", "--states", "2", "--plot", str(output.with_suffix(".png")), "-o", str(output)]
    words = [str(place / "bundle"), str(place / "int4"), *reference, *follow]
    own = ["--folder", str(place), "--judge", str(place / "judge"), "--count", str(COUNT)]
    assert evaluate.main([*words, *own, "--only", "trajectory", "drawing"]) == 0
    content, printed = json.loads(output.read_text()), capsys.readouterr().out
    same, coarse = (row for row in content["rows"] if row["task"] == "trajectory")
    assert (same["model"], coarse["model"]) == (str(place / "bundle"), str(place / "int4"))
    assert same["agreement"] == [1, 1, 1]
    assert same["flips"] == [0, 0, 0]
    assert coarse["divergence"][0] > same["divergence"][0]
    assert coarse["bytes"] < same["bytes"]
    assert set(coarse["tasks"]) == {"paint", "ask", "chat"}
    assert coarse["tasks"]["chat"]["divergence"][0] > 0
    assert content["losses"][str(place / "bundle")]["drawing"]["concept"]["change"] == 0
    reports = {(row["model"], row["task"]): row["report"] for row in content["rows"] if "report" in row}
    shares = [reports[str(place / name), "drawing"]["concept"]["share"] for name in ("bundle", "int4")]
    change = content["losses"][str(place / "int4")]["drawing"]["concept"]
    assert change["change"] == pytest.approx(100 * (shares[1] - shares[0]))
    assert change["low"] <= change["change"] <= change["high"]
    assert "| chat % | ask % | paint % |" in printed
    assert "| drawing | concept |" in printed
    assert output.with_suffix(".png").is_file()


def test_other_weights_are_told_against_those_before_case_by_case(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint against a bundle, so that nothing is followed; the mean is that of the tasks."""
    output = place / "weights.json"
    words = [str(place / "checkpoint"), "--against", str(place / "bundle"), "--device", "cpu", "-o", str(output)]
    own = ["--folder", str(place), "--judge", str(place / "judge"), "--count", str(COUNT)]
    assert evaluate.main([*words, *own]) == 0
    content, printed = json.loads(output.read_text()), capsys.readouterr().out
    assert "trajectory: left out, as not all are bundles" in printed
    assert not [row for row in content["rows"] if row["task"] == "trajectory"]
    found = content["families"][str(place / "checkpoint")]
    assert set(found) == set(TASKS) - {"tokenizer"} | {"mean"}  # it has shares and means, and no cases
    assert all(each["change"] == 0 for each in found.values())
    assert f"| mean of {len(found) - 1} |" in printed


def test_several_models_need_a_reference(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(place / "bundle"), str(place / "checkpoint")]) == 2
    assert "several models are measured with --against" in capsys.readouterr().err


def test_what_is_along_decodings_needs_neither_icons_nor_a_judge(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(place / "bundle"), "--against", str(place / "bundle"), "--only", "trajectory", "--prompts", "1"]
    output = ["-o", str(place / "along.json")]
    assert evaluate.main([*words, *output, "--judge", "nowhere", "--folder", "nowhere", "--states", "1"]) == 0
    assert "100.00 (100.00 to 100.00)" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_to_the_same_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, stopped, asked = place / "whole.json", place / "stopped.json", list[str]()
    names = ["drawing", "what", "arithmetic"]
    assert measure(place, "checkpoint", "--only", *names, "-o", str(whole)) == 0

    def watched(name: str) -> Callable[[EvalContext], Report]:
        def task(context: EvalContext) -> Report:
            asked.append(name)
            if asked == ["drawing", "what"]:
                raise KeyboardInterrupt
            return TASKS[name](context)

        return task

    monkeypatch.setattr(evaluate, "TASKS", {name: watched(name) for name in names})
    assert measure(place, "checkpoint", "--only", *names, "-o", str(stopped)) == 130
    left = record.load(record.unfinished(stopped))
    assert (left["complete"], list(left["tasks"])) == (False, [f"drawing of {place / 'checkpoint'}"])
    assert measure(place, "checkpoint", "--only", *names, "-o", str(stopped)) == 0
    assert asked == ["drawing", "what", "what", "arithmetic"]
    assert record.load(stopped)["rows"] == record.load(whole)["rows"]


@pytest.mark.parametrize(
    ("subject", "arguments", "message"),
    [
        ("checkpoint", ("--only", "drawings"), "no task is called 'drawings'; did you mean 'drawing'"),
        ("checkpoint", ("--only", "zzz"), "use some of tokenizer, what"),
        ("checkpoint", ("--count", "3"), "--count is 3; use at least 4 cases"),
        ("checkpoint", ("--count", "2000000"), "at least 4 cases, 20000 at most"),
        ("checkpoint", ("--device", "nowhere"), "nowhere"),
        ("judge", (), "is neither a bundle"),
        ("checkpoint", ("--judge", "nowhere"), "judge.safetensors is missing"),
        ("checkpoint", ("--folder", "nowhere"), "concepts.npz is missing"),
        ("checkpoint", ("--against", "nowhere"), "nowhere is neither a bundle"),
        ("checkpoint", ("--against", "nowhere", "--only", "trajectory"), "nowhere is no bundle"),
        ("checkpoint", ("--against", "nowhere", "--prompts", "0"), "--prompts: 0 cannot be measured"),
        ("checkpoint", ("--against", "nowhere", "--threads", "0"), "--threads: 0 cannot be measured"),
    ],
)
def test_faults_are_one_line(
    place: Path, subject: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(place, subject, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mmada-lite: ")
    assert message in line


def test_wilson_intervals_are_those_of_the_tables() -> None:
    """Wilson 1927, at 95%; by hand and from the usual tables."""
    for right, total, low, high in (
        (8, 10, 0.4902, 0.9433),
        (0, 5, 0.0, 0.4345),
        (5, 5, 0.5655, 1.0),
        (50, 100, 0.4038, 0.5962),
    ):
        found = interval(right, total)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=2e-4)
        assert found["share"] == pytest.approx(right / total)
    assert interval(0, 0) == {"right": 0, "total": 0, "share": 0.0, "low": 0.0, "high": 1.0}
    widths = [interval(n // 2, n)["high"] - interval(n // 2, n)["low"] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


def test_paired_intervals_know_that_the_same_cases_were_asked() -> None:
    """Newcombe 1998: with nothing in common they are as wide as those of two groups; what both answer alike narrows them."""

    def cases(both: int, first: int, second: int, neither: int) -> tuple[str, str]:
        """How many are right in both, in the first alone, in the second alone, in neither."""
        return "1" * (both + first) + "0" * (second + neither), "1" * both + "0" * first + "1" * second + "0" * neither

    change, low, high = paired(*cases(25, 25, 25, 25))  # no correlation
    apart = math.hypot(0.5 - interval(50, 100)["low"], interval(50, 100)["high"] - 0.5)
    assert (change, low, high) == pytest.approx((0, -apart, apart))
    assert paired(*cases(90, 0, 0, 10))[0] == 0
    change, low, high = paired(*cases(85, 5, 0, 10))
    assert change == pytest.approx(-0.05)
    # Wilson's limits of 90 and of 85 in 100, and the correlation (85 * 10 - 0 * 5 - 50) / sqrt(90 * 10 * 85 * 15)
    phi = 800 / math.sqrt(90 * 10 * 85 * 15)
    assert low == pytest.approx(-0.05 - math.sqrt(0.0828**2 - 2 * phi * 0.0828 * 0.0448 + 0.0448**2), abs=2e-3)
    assert high == pytest.approx(-0.05 + math.sqrt(0.0569**2 - 2 * phi * 0.0569 * 0.0744 + 0.0744**2), abs=2e-3)
    assert paired("111", "111")[0] == 0
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):  # the change that is true for cases drawn so lies inside nineteen times in twenty
        before, luck = rng.random(120) < 0.9, rng.random(120)
        after = np.where(before, luck > 0.05, luck < 0.3)
        _, low, high = paired(*("".join("01"[int(right)] for right in each) for each in (before, after)))
        held += low <= 0.9 * 0.95 + 0.1 * 0.3 - 0.9 <= high
    assert held / 400 > 0.92
