"""Laws of the walk-through, on tiny models: parts are done once and a stopped run goes on, costs are those of the process."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from mmada_lite.bench import record, walkthrough_8b
from mmada_lite.bench.walkthrough_8b import main, run
from mmada_lite.errors import Error


def test_what_a_process_takes_is_seen_from_outside(tiny_bundle: Path, tmp_path: Path) -> None:
    row = run("mmada_lite", "info", tiny_bundle, "--json")
    assert 0.01 < row["peak_gb"] < 2
    assert row["minutes"] >= 0
    assert row["command"].startswith("python -m mmada_lite info")
    with pytest.raises(Error, match=r"info .*nowhere.* failed: mmada-lite: "):
        run("mmada_lite", "info", tmp_path / "nowhere")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that take nothing, and their words as they were run."""
    ran: list[str] = []
    seconds, peaks = iter((14.0, 8.0, 9.0)), iter((0.5, 0.7, 0.6))

    def take(module: str, *words: object) -> record.Row:
        ran.append(f"{module.rsplit('.', 1)[-1]} {' '.join(Path(str(word)).name for word in words)}")
        if "quantize" in words:
            (Path(str(words[3])) / "part").mkdir(parents=True)
            (Path(str(words[3])) / "part" / "weights.bin").write_bytes(b"x" * 2_000_000)
        row = {"command": ran[-1], "peak_gb": 0.5, "minutes": 1.0, "processor_minutes": 1.5}
        return row | ({"load_seconds": next(seconds), "peak_gb": next(peaks)} if "load" in words else {})

    monkeypatch.setattr(walkthrough_8b, "run", take)
    return ran


def test_parts_are_done_once_and_a_run_that_was_stopped_goes_on(
    planted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    words = ["--work", str(work), "-o", str(tmp_path / "8b.json")]
    answered = walkthrough_8b.inner

    def killed(part: str, *given: object) -> record.Row:
        return answered(part, *given) if part == "load" else pytest.fail("killed")  # type: ignore[arg-type]

    monkeypatch.setattr(walkthrough_8b, "inner", killed)
    with pytest.raises(pytest.fail.Exception):
        main(words)
    assert list(record.load(record.unfinished(tmp_path / "8b.json"))["tasks"]) == ["checkpoint", "int4", "load"]
    assert [line.split()[0] for line in planted] == ["synthetic", "mmada_lite", *["walkthrough_8b"] * 3]
    monkeypatch.setattr(walkthrough_8b, "inner", answered)
    assert main(words) == 0
    done = [line.split()[1] if line.startswith(("synthetic", "mmada")) else line.split()[2] for line in planted]
    after = ["answer", "draw", "answer", "quantize", "answer", "layers", "quantize", "calibrate", "calibrate"]
    assert done == ["checkpoint", "quantize", "load", "load", "load", *after]
    answers = [line.split() for line in planted if "--part answer" in line]
    caches = [(line[4], line[line.index("--cache") + 1]) for line in answers]
    assert caches == [("int4", "none"), ("int4", "dual"), ("int8", "dual")]
    assert [line.split()[line.split().index("--method") + 1] for line in planted[-2:]] == ["gptq", "gptaq"]
    saved = record.load(tmp_path / "8b.json")
    assert (saved["bench"], saved["shape"], saved["layers"], saved["complete"]) == ("walkthrough_8b", "8b", 32, True)
    assert saved["command"] == shlex.join(["python", "-m", "mmada_lite.bench.walkthrough_8b", *words])
    rows = {row["part"]: row for row in saved["rows"]}
    assert list(rows) == list(walkthrough_8b.parts(Namespace(work=work, threads=1, layers=32, steps=1, cache="", prompts=1)))
    assert rows["int4"]["bundle_gb"] == 0.002
    load = rows["load"]
    assert (load["load_seconds"], load["each_load"], load["peak_gb"]) == (9.0, [14.0, 8.0, 9.0], 0.7)
    assert "| int4 | 0.5 | 1.0 | 1.5 | bundle_gb 0.002 |" in capsys.readouterr().out


def test_faults_are_one_line(planted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        (
            ["--work", str(tmp_path / "file" / "work")],
            "work cannot be made (Not a directory); give --work a folder that",
        ),
        ([], "name a folder with 35 GB of room: --work FOLDER"),
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


def test_a_bundle_is_loaded_and_asked(tiny_bundle: Path) -> None:
    options = Namespace(bundle=tiny_bundle, threads=1, steps=4, cache="dual")
    assert walkthrough_8b.load(options)["load_seconds"] > 0
    row = walkthrough_8b.answer(options)
    assert (row["answer_tokens"], row["cache"]) == (128, "dual")
    assert 1 <= row["steps"] <= 4
    assert row["prompt_tokens"] > 16 + 20
    spent = row["seconds_of"]
    assert spent["backbone"] > 0
    assert {"picture", "opening", "head", "python"} <= set(spent)
    assert sum(spent.values()) == pytest.approx(row["answer_seconds"], abs=0.2)
    assert 0.07 < row["planned_gb"] < 0.2
    drawn = walkthrough_8b.draw(options)
    assert drawn["steps"] == 1
    assert drawn["drawing_seconds"] >= 0
    assert 0.07 < drawn["planned_gb"] < 0.2


def test_a_part_prints_its_row_and_its_fault_is_one_line(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--part", "load", "--bundle", str(tiny_bundle), "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith('{"load_seconds": ')
    assert main(["--part", "load", "--bundle", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("mmada-lite: ")


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_layers_are_timed_by_their_progress(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, method: str) -> None:
    options = Namespace(checkpoint=tiny_checkpoint, recorder=tiny_bundle, bundle=tmp_path / "b", prompts=1, method=method)
    row = walkthrough_8b.calibrate(options)
    assert row["layers_rounded"] == 2
    assert row["seconds_a_layer"] + row["seconds_of_heads"] > 0
    assert (tmp_path / "b" / "bundle.json").is_file()
