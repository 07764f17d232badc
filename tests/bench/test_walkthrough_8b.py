"""Laws of the walk-through: parts are done once and a stopped run goes on, costs are those of the process, and the whole of it
runs on a tiny model."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from mmada_lite.bench import record, walkthrough_8b
from mmada_lite.bench.timed import run_module
from mmada_lite.bench.walkthrough_8b import main
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint


def test_what_a_process_takes_is_seen_from_outside(tiny_bundle: Path, tmp_path: Path) -> None:
    row = run_module("mmada_lite", "info", tiny_bundle, "--json")
    assert 10**7 < row["peak_bytes"] < 2 * 10**9
    assert min(row["seconds"], row["processor_seconds"]) > 0
    assert row["command"].startswith("python -m mmada_lite info")
    assert row["printed"]["architecture"]["n_layers"] == 2
    with pytest.raises(Error, match=r"info .*nowhere.* failed: mmada-lite: "):
        run_module("mmada_lite", "info", tmp_path / "nowhere")


@pytest.fixture
def planted(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that take nothing, and their words as they were run."""
    ran: list[str] = []
    seconds = iter((14.0, 8.0, 9.0, *range(100)))

    def take(module: str, *words: object) -> record.Row:
        ran.append(f"{module.rsplit('.', 1)[-1]} {' '.join(Path(str(word)).name for word in words)}")
        if "quantize" in words:
            (Path(str(words[3])) / "part").mkdir(parents=True)
            (Path(str(words[3])) / "part" / "weights.bin").write_bytes(b"x" * 2_000_000)
        printed = {"seconds": next(seconds), "steps": 3} if words[0] in ("chat", "ask", "paint") else {}
        return {"command": ran[-1], "seconds": 60, "processor_seconds": 90, "peak_bytes": 5 * 10**8, "printed": printed}

    def calibrated(work: Path, method: str, prompts: int) -> record.Row:
        ran.append(f"calibrate {method}")
        return {"peak_gb": 0.5, "minutes": 1.0, "processor_minutes": 1.5}

    monkeypatch.setattr(walkthrough_8b, "run_module", take)
    monkeypatch.setattr(walkthrough_8b, "calibrated", calibrated)
    monkeypatch.setattr(walkthrough_8b, "planned", lambda *_: 0.4)
    return ran


def test_parts_are_done_once_and_a_run_that_was_stopped_goes_on(
    planted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    words = ["--work", str(work), "-o", str(tmp_path / "8b.json")]
    run = walkthrough_8b.run

    def killed(module: str, *given: object, **named: str) -> record.Row:
        return pytest.fail("killed") if given[0] == "ask" else run(module, *given, **named)

    monkeypatch.setattr(walkthrough_8b, "run", killed)
    with pytest.raises(pytest.fail.Exception):
        main(words)
    assert list(record.load(record.unfinished(tmp_path / "8b.json"))["tasks"]) == ["checkpoint", "int4", "load"]
    assert [line.split()[1] for line in planted] == ["checkpoint", "quantize", *["chat"] * 3]
    monkeypatch.setattr(walkthrough_8b, "run", run)
    assert main(words) == 0
    after = ["ask", "paint", "ask", "quantize", "ask", "quantize", "ask", "layers", "quantize", "gptq", "gptaq"]
    assert [line.split()[1] for line in planted[5:]] == after
    answers = [line.split() for line in planted if " ask " in line]
    caches = [(line[line.index("-m") + 1], line[line.index("--cache") + 1]) for line in answers]
    assert caches == [("int4", "none"), ("int4", "dual"), ("int4-half", "dual"), ("int8", "dual")]
    saved = record.load(tmp_path / "8b.json")
    assert (saved["bench"], saved["shape"], saved["layers"], saved["complete"]) == ("walkthrough_8b", "8b", 32, True)
    assert saved["command"] == shlex.join(["python", "-m", "mmada_lite.bench.walkthrough_8b", *words])
    rows = {row["part"]: row for row in saved["rows"]}
    assert list(rows) == list(walkthrough_8b.parts(Namespace(work=work, threads=1, layers=32, steps=1, cache="", prompts=1)))
    assert (rows["int4"]["bundle_gb"], rows["answer"]["planned_gb"], rows["answer"]["steps"]) == (0.002, 0.4, 3)
    assert (rows["load"]["load_seconds"], rows["load"]["each_load"]) == (9.0, [8.0, 9.0, 14.0])
    assert "| int4 | 0.5 | 1.0 | 1.5 | bundle_gb 0.002 |" in capsys.readouterr().out


def test_faults_are_one_line(planted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        (
            ["--work", str(tmp_path / "file" / "work")],
            "work cannot be made (Not a directory); give --work a folder that",
        ),
        ([], "the following arguments are required: --work"),
        (["--work", str(tmp_path / "new"), "--steps", "0"], "--steps: 0 cannot be measured"),
        (["--work", str(tmp_path / "w"), "-o", str(tmp_path / "file" / "8b.json")], "8b.json: cannot be written (File exists)"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_the_record_lies_where_the_help_says(planted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "(default: walkthrough_8b.json in the folder of --work)" in " ".join(capsys.readouterr().out.split())
    assert main(["--work", str(tmp_path)]) == 0
    assert record.load(tmp_path / "walkthrough_8b.json")["complete"]


def test_commands_are_those_that_a_user_can_give(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On a tiny model: each is run as it is, and says what it took."""
    for name in ("int4", "layers-rtn"):
        export_checkpoint(tiny_checkpoint, tmp_path / name, precision="int4")
    (tmp_path / "layers").symlink_to(tiny_checkpoint)
    options = Namespace(work=tmp_path, threads=1, layers=2, steps=4, cache="dual", prompts=1)
    parts = walkthrough_8b.parts(options)
    answer = parts["int4-answer"]()
    assert (answer["cache"], answer["answer_seconds"] > 0) == ("dual", True)
    assert 1 <= answer["steps"] <= 4
    assert 0.07 < answer["planned_gb"] < 0.2
    assert parts["load"]()["load_seconds"] > 0
    drawn = parts["drawing"]()
    assert (drawn["steps"], drawn["drawing_seconds"] > 0) == (1, True)
    for method in ("gptq", "gptaq"):
        row = parts[method]()
        assert row["layers_rounded"] == 2
        assert row["seconds_a_layer"] + row["seconds_of_heads"] > 0
        assert (tmp_path / f"layers-{method}" / "bundle.json").is_file()
