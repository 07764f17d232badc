"""Laws of `bench eight`, on tiny models: parts are done once, costs are those of the process, targets are of the whole."""

from argparse import Namespace
from pathlib import Path

import pytest

from mmada_lite.bench import record, walkthrough_8b, walkthrough_parts
from mmada_lite.bench.walkthrough_8b import Found, judged, main, run, table
from mmada_lite.cli.main import main as command
from mmada_lite.errors import Error


def test_what_a_process_takes_is_seen_from_outside(tiny_bundle: Path, tmp_path: Path) -> None:
    found = run("mmada_lite", "info", tiny_bundle, "--json")
    assert 0.01 < found["peak_gb"] < 2
    assert found["minutes"] >= 0
    assert found["command"].startswith("python -m mmada_lite info")
    with pytest.raises(Error, match=r"info .*nowhere.* failed: mmada-lite: "):
        run("mmada_lite", "info", tmp_path / "nowhere")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands that take nothing, and their first words as they were run."""
    ran: list[str] = []

    def take(module: str, *words: str | Path) -> Found:
        ran.append(f"{module.rsplit('.', 1)[-1]} {' '.join(Path(word).name for word in words)}")
        if "quantize" in words:
            (Path(words[3]) / "part").mkdir(parents=True)
            (Path(words[3]) / "part" / "weights.bin").write_bytes(b"x" * 2_000_000)
        return {"command": ran[-1], "peak_gb": 0.5, "minutes": 1.0, "processor_minutes": 1.5, "load_seconds": 12.0}

    monkeypatch.setattr(walkthrough_8b, "run", take)
    return ran


def test_parts_are_done_once_and_a_run_goes_on(planted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--work", str(tmp_path / "work"), "-o", str(tmp_path / "8b.json")]
    assert main([*words, "--only", "checkpoint", "int4"]) == 0
    assert [line.split()[0] for line in planted] == ["synthetic", "mmada_lite"]
    assert main(words) == 0
    assert [line.split()[1] for line in planted] == [
        "checkpoint",
        "quantize",
        "load",
        "load",
        "load",
        "answer",
        "draw",
        "answer",
        "quantize",
        "answer",
        "layers",
        "quantize",
        "calibrated",
        "calibrated",
    ]
    answers = [(words[2], words[words.index("--cache") + 1]) for words in map(str.split, planted) if words[1] == "answer"]
    assert answers == [("int4", "none"), ("int4", "dual"), ("int8", "dual")]
    assert main(words) == 0
    assert len(planted) == 14
    assert [words.split()[6] for words in planted[-2:]] == ["gptq", "gptaq"]
    saved = record.load(tmp_path / "8b.json")
    assert (saved["bench"], saved["shape"], saved["layers"]) == ("eight", "8b", 32)
    said = {row["part"]: row for row in saved["rows"]}
    assert said["int4"]["bundle_gb"] == 0.002
    assert said["int4"]["targets"]["bundle_gb"] == {"at_most": 4.7, "met": True}
    assert said["load"]["targets"]["load_seconds"]["met"] is False
    assert said["load"]["each_load"] == [12.0] * 3
    assert "load_seconds < 10: missed" in capsys.readouterr().out
    assert main([*words, "--steps", "9"]) == 2
    assert "is of a run with other options" in capsys.readouterr().err


def test_of_three_loads_the_middle_one_counts(
    planted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, peaks, take = iter((14.0, 8.0, 9.0)), iter((0.5, 0.7, 0.6)), walkthrough_8b.run
    monkeypatch.setattr(
        walkthrough_8b,
        "run",
        lambda *words: {**take(*words), "load_seconds": next(seconds), "peak_gb": next(peaks)} | {"said": 1},
    )
    assert main(["--work", str(tmp_path / "work"), "-o", str(tmp_path / "8b.json"), "--only", "load"]) == 0
    (load,) = record.load(tmp_path / "8b.json")["rows"]
    assert (load["load_seconds"], load["each_load"], load["peak_gb"]) == (9.0, [14.0, 8.0, 9.0], 0.7)
    assert load["targets"]["load_seconds"]["met"] is True


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--work", str(tmp_path / "file" / "work")]) == 2
    assert "file/work cannot be made (Not a directory); give --work a folder that you may write" in capsys.readouterr().err


def test_a_record_that_cannot_be_written(planted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--work", str(tmp_path / "work"), "--only", "int4", "-o", str(tmp_path / "file" / "8b.json")]) == 2
    assert "file/8b.json: cannot be written (File exists); choose another --output" in capsys.readouterr().err


def test_a_trial_of_fewer_layers_is_not_held_to_targets() -> None:
    found = {"peak_gb": 9.0, "minutes": 99.0, "processor_minutes": 9.0, "bundle_gb": 9.0}
    assert judged("int4", found, whole=False)["targets"] == {}
    assert not any(one["met"] for one in judged("int4", found, whole=True)["targets"].values())
    assert "| int4 | 9.0 | 99.0 | 9.0 | bundle_gb 9.0 |  |" in table({"int4": judged("int4", found, whole=False)})


def test_a_bundle_is_loaded_and_asked(tiny_bundle: Path) -> None:
    options = Namespace(bundle=tiny_bundle, threads=1, steps=4, cache="dual")
    assert walkthrough_parts.load(options)["load_seconds"] > 0  # type: ignore[operator]
    found = walkthrough_parts.answer(options)
    assert (found["answer_tokens"], found["cache"]) == (128, "dual")
    assert 1 <= found["steps"] <= 4  # type: ignore[operator]
    assert found["prompt_tokens"] > 16 + 20  # type: ignore[operator]
    spent = found["seconds_of"]
    assert isinstance(spent, dict)
    assert spent["backbone"] > 0
    assert {"picture", "opening", "head", "copying", "selection"} <= set(spent)
    assert sum(spent.values()) == pytest.approx(found["answer_seconds"], abs=0.2)
    assert 0.07 < found["planned_gb"] < 0.2  # type: ignore[operator]
    drawn = walkthrough_parts.draw(options)
    assert drawn["steps"] == 1
    assert drawn["drawing_seconds"] >= 0  # type: ignore[operator]
    assert 0.07 < drawn["planned_gb"] < 0.2  # type: ignore[operator]


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_layers_are_timed_by_their_progress(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, method: str) -> None:
    options = Namespace(checkpoint=tiny_checkpoint, recorder=tiny_bundle, bundle=tmp_path / "b", prompts=1, method=method)
    found = walkthrough_parts.calibrated(options)
    assert found["layers_rounded"] == 2
    assert found["seconds_a_layer"] + found["seconds_of_heads"] > 0  # type: ignore[operator]
    assert (tmp_path / "b" / "bundle.json").is_file()


def test_it_is_one_of_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["bench", "--help"]) == 0
    assert "eight" in capsys.readouterr().out


def test_what_cannot_be_gone_on_from_is_said(planted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in (('{"asked": {', "cannot be read"), ("[1]", "is not what `bench eight` keeps")):
        (tmp_path / "eight.json").write_text(text)
        assert main(["--work", str(tmp_path)]) == 2
        assert f"eight.json {said}" in capsys.readouterr().err
    assert main(["--work", str(tmp_path / "new"), "--steps", "0"]) == 2
    assert "--threads are at least 1" in capsys.readouterr().err
    assert (planted, (tmp_path / "new").exists()) == ([], False)
