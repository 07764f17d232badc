"""The benchmark of peers, whole, at a tiny shape: who takes part, what is said of it, that turns alternate. Never how fast."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmada_lite.bench import record
from mmada_lite.bench.policies import Policy, for_peers
from mmada_lite.bench.record import Row
from mmada_lite.bench.speed import contestants, peers
from mmada_lite.bench.speed.contestants import Contest, Plan, TaskRun, Tasks
from mmada_lite.bench.speed.peers import alternate, table, turn
from mmada_lite.errors import Error
from mmada_lite.export.synthetic import SIZES
from mmada_lite.ort.devices import choose_device
from mmada_lite.train.model import MMaDA

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


def contest(work: Path) -> Contest:
    return Contest("tiny", TINY, Plan.of(TINY), work, 1)


@pytest.fixture(scope="module")
def result(work: Path) -> dict:
    words = ["--shape", "tiny", "--work", str(work), "--rounds", "2", "--steps", "2", "--threads", "1"]
    words += ["--contestants", "torch fp32", "torch bf16", "ours", "bitsandbytes", "optimum", "openvino", "torch dynamic"]
    assert peers.main([*words, "-o", str(work / "peers.json")]) == 0
    content: dict = json.loads((work / "peers.json").read_text())
    return content


def test_every_contestant_does_every_task(result: dict) -> None:
    did = {(row["task"], row["contestant"]) for row in result["rows"]}
    plan = Plan.of(TINY)
    for reference in ("torch fp32", "torch bf16"):
        assert {task for task, name in did if name == reference} == set(plan.tasks)
    for policy in for_peers():
        tasks = {task for task, name in did if name == f"ours int8 {policy.name}"}
        assert {"text", "understanding"} <= tasks
    for precision in peers.PRECISIONS["cpu"]:
        assert {task for task, name in did if name == f"ours {precision}"} == {f"forward {n}" for n in plan.forwards}
    everyone = set(contest(Path()).makers(peers.PRECISIONS["cpu"]))
    assert everyone == set(result["missing"]) | {name for _, name in did}
    assert {"bitsandbytes int8", "bitsandbytes nf4", "optimum dynamic int8"} <= everyone
    assert {"torch dynamic int8", "openvino", "openvino int8 weights"} <= everyone
    assert all("pip install" in why for name, why in result["missing"].items() if "not installed" in why)


def test_what_is_scaled_is_said(result: dict) -> None:
    plan = Plan.of(TINY)
    for row in result["rows"]:
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert set(row["times"]) == {"torch fp32", "torch bf16"} - {row["contestant"]}
        whole = {"text": plan.steps, "understanding": plan.steps, "drawing": plan.drawing_steps}.get(row["task"], 1)
        if row["contestant"].startswith("torch") or row["contestant"].endswith("exact"):
            by_blocks = row["contestant"].startswith("ours") and row["task"] in ("text", "understanding")
            timed = plan.block * plan.steps // plan.answer if by_blocks else 2
            assert row["scaled_from"] == ({"steps": timed, "total_steps": whole} if whole > timed else None)
            assert row["steps"] == row["model_calls"] == whole
        if row["contestant"].endswith(("prefix", "dual")):
            assert row["scaled_from"] is None
            assert row["model_calls"] == plan.steps


def test_forwards_say_how_far_they_are_off(result: dict) -> None:
    """Against torch in fp32: a form of less is farther off, and a decode says nothing."""
    errors = {row["contestant"]: row["rms_error"] for row in result["rows"] if row["task"] == "forward 16"}
    assert errors["torch fp32"] is None
    assert errors["ours fp32"] < 1e-5 < errors["torch bf16"] < 0.1
    assert errors["ours fp32"] < errors["torch dynamic int8"] < errors["ours int4"]
    assert errors.get("openvino", 0.0) < errors["torch bf16"]
    assert {row["rms_error"] for row in result["rows"] if not row["task"].startswith("forward")} == {None}


def test_the_table_has_every_row(result: dict) -> None:
    lines = table(result["rows"]).splitlines()
    assert len(lines) == 2 + len(result["rows"])
    assert lines[0].endswith("| rms error | x torch fp32 | x torch bf16 |")
    for row, line in zip(result["rows"], lines[2:], strict=True):
        assert line.startswith(f"| {row['task']} | {row['contestant']} |")
        assert ("of" in line) == (row["scaled_from"] is not None)


def test_contestants_alternate_and_warm_up() -> None:
    calls: list[str] = []

    def steps(name: str) -> Iterator[None]:
        for _ in range(8):
            calls.append(name)
            yield

    runs = {name: TaskRun(lambda name=name: steps(name), 8) for name in "ab"}  # type: ignore[misc]
    turns, failures = alternate(runs, 2, 1)
    assert failures == {}
    assert "".join(calls) == "aabb" + "aabb" + "bbaa"  # in every turn a step that does not count, then the one that does
    assert {len(each) for each in turns.values()} == {2}


def test_only_equal_steps_are_scaled() -> None:
    steps = turn(TaskRun(lambda: iter(range(8)), 8), 2)
    assert (steps.steps, steps.model_calls, steps.timed) == (8, 8, 2)
    assert turn(TaskRun(lambda: iter(range(8)), 8, 4), 2).timed == 4
    assert turn(TaskRun(lambda: iter(range(8)), 8, 8), 2).timed == 8
    assert turn(TaskRun(lambda: iter(range(8)), None), 2).timed == 8
    assert turn(TaskRun(lambda: iter(range(8)), 8), 100).timed == 8


def test_torch_and_ours_compute_the_same_model(work: Path) -> None:
    """torch and our fp32 graphs hold the same random weights, so their answers agree token for token."""
    plan, mask, makers = Plan.of(TINY), TINY.vocabulary.special.mask, contest(work).makers(["fp32"])
    with torch.inference_mode():
        *_, row = makers["torch fp32"]()["text"].begin()
    ours = {}
    for step in makers["ours fp32 exact"]()["text"].begin():
        ours |= dict(zip(step.positions.tolist(), step.tokens.tolist(), strict=True))  # type: ignore[attr-defined]
    assert isinstance(row, torch.Tensor)
    answer = row[0, plan.prompt :].tolist()
    assert mask not in answer
    assert [ours[plan.prompt + n] for n in range(plan.answer)] == answer


def test_bf16_without_its_instructions_is_left_out_aloud(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "fast_type", lambda device: torch.float32)
    words = ["--shape", "tiny", "--work", str(work), "--rounds", "1", "--contestants", "torch", "--only", "forward 8"]
    assert peers.main([*words, "-o", str(work / "bf16.json")]) == 0
    content = json.loads((work / "bf16.json").read_text())
    assert {row["contestant"] for row in content["rows"]} == {"torch fp32", "torch dynamic int8"}
    assert '--contestants "torch bf16" measures it' in content["missing"]["torch bf16"]


def test_on_a_gpu_torch_and_ours_take_part_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU in these tests: the CPU stands in for it."""
    monkeypatch.setitem(contestants.TORCH_DEVICES, "cuda", "cpu")
    for module in (peers, contestants):
        monkeypatch.setattr(module, "choose_device", lambda name: choose_device("cpu"))
    target = work / "cuda.json"
    words = ["--shape", "tiny", "--device", "cuda", "--work", str(work), "--rounds", "1", "--only", "drawing"]
    words += ["--contestants", "torch bf16", "torch fp32", "ours"]
    assert peers.main([*words, "-o", str(target)]) == 0
    content = json.loads(target.read_text())
    assert {row["contestant"].split()[0] for row in content["rows"]} == {"torch", "ours"}
    assert {row["contestant"] for row in content["rows"]} >= {"torch fp32", "torch bf16", "ours fp16 exact"}
    assert (content["device"], content["missing"]) == ("cuda", {})
    assert (work / "tiny-fp16-cuda").is_dir()


def test_why_no_contestant_can_run_is_said(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(module: str) -> None:
        raise Error(f"{module} is not installed; pip install {module}")

    monkeypatch.setattr(contestants.third_party, "need", absent)
    words = ["--shape", "tiny", "--work", str(work), "--contestants", "bitsandbytes int8", "-o", str(work / "no.json")]
    assert peers.main(words) == 2
    assert "here; bitsandbytes int8: bitsandbytes is not installed; pip install" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_was_stopped_goes_on_and_opens_nothing_for_what_is_done(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rows = work / "stopped.json", peers.rows
    words = [
        "--shape",
        "tiny",
        "--work",
        str(work),
        "--rounds",
        "1",
        "--contestants",
        "torch fp32",
        "--only",
        "forward 8",
        "text",
    ]

    def killed(task: str, *given: Any) -> Iterator[Row]:
        return rows(task, *given) if task == "forward 8" else pytest.fail("killed")

    monkeypatch.setattr(peers, "rows", killed)
    with pytest.raises(pytest.fail.Exception):
        peers.main([*words, "-o", str(target)])
    left = record.load(record.unfinished(target))
    assert (left["complete"], list(left["tasks"])) == (False, ["forward 8"])
    monkeypatch.setattr(peers, "rows", rows)
    assert peers.main([*words, "-o", str(target)]) == 0
    content = json.loads(target.read_text())
    assert content["rows"][0] == left["tasks"]["forward 8"][0]
    assert [row["task"] for row in content["rows"]] == ["forward 8", "text"]


def test_a_contestant_that_fails_is_data(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that cannot be opened, and one that fails on the way, are lines of what did not run; the rest goes on."""
    model, ours = Contest.torch_model, Contest.decoding

    def torch_model(self: Contest, dtype: torch.dtype) -> MMaDA:
        if dtype == torch.bfloat16:
            raise RuntimeError("out of memory:\nno more is to be had")
        return model(self, dtype)

    def failing(self: Contest, precision: str, policy: Policy) -> Tasks:
        text = {"text": TaskRun(fails_at_the_second_step)} if policy.name == "dual" else {}
        return ours(self, precision, policy) | text

    def fails_at_the_second_step() -> Iterator[None]:
        yield
        raise ValueError("a shape that does not fit")

    monkeypatch.setattr(Contest, "torch_model", torch_model)
    monkeypatch.setattr(Contest, "decoding", failing)
    asked = [
        "--contestants",
        "torch fp32",
        "torch bf16",
        "ours int8 exact",
        "ours int8 dual",
        "--only",
        "text",
        "understanding",
    ]
    target = work / "fails.json"
    assert peers.main(["--shape", "tiny", "--work", str(work), "--rounds", "1", *asked, "-o", str(target)]) == 0
    out, error = capsys.readouterr()
    content = record.load(target)
    did = {(row["task"], row["contestant"]) for row in content["rows"]}
    assert did == {
        *((task, name) for task in ("text", "understanding") for name in ("torch fp32", "ours int8 exact")),
        ("understanding", "ours int8 dual"),
    }
    assert content["missing"] == {
        "torch bf16": "out of memory: no more is to be had",
        "ours int8 dual, text": "a shape that does not fit",
    }
    assert "not run: ours int8 dual, text: a shape that does not fit" in out.splitlines()
    assert error.splitlines()[0] == "1 of 3: text"
    assert any(line.startswith("3 of 3: what did not run") for line in error.splitlines())


def test_where_all_fail_there_is_no_record(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> Iterator[None]:
        raise ValueError("broken")
        yield

    monkeypatch.setattr(contestants, "write_text", broken)
    target = work / "none.json"
    asked = ["--contestants", "torch fp32", "--only", "text"]
    assert peers.main(["--shape", "tiny", "--work", str(work), *asked, "-o", str(target)]) == 2
    assert "nothing could be measured (torch fp32, text: broken)" in capsys.readouterr().err.splitlines()[-1]
    assert not target.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "singing"], "no task of this shape is called 'singing'"),
        (
            ["--contestants", "nobody"],
            "no contestant is called 'nobody'; use the beginning of torch fp32, torch bf16, ours int8, ",
        ),
        (["--shape", "huge"], "no shape is called 'huge'"),
        (["--rounds", "0"], "at least 1"),
        (["--precisions", "int9"], "no precision is called 'int9'"),
        (["--whole"], "has no option --whole"),
    ],
)
def test_faults_are_one_line(work: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = work / "fault.json"
    assert peers.main(["--shape", "tiny", "--work", str(work), "-o", str(target), *words]) == 2
    (complaint,) = capsys.readouterr().err.splitlines()  # before any line of progress
    assert complaint.startswith("mmada-lite: ")
    assert message in complaint
    assert not target.exists()
