"""The whole golden set through torch and through exported graphs; and that `check` can fail."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmada_lite import Error
from mmada_lite.bench.parity.check import SECTIONS, as_json, check_folder
from mmada_lite.cli.main import main


@pytest.fixture(scope="module")
def results(golden):
    return list(check_folder(golden))


@pytest.mark.parametrize("section", SECTIONS)
def test_every_recorded_case_passes(results, section):
    own = [r for r in results if r.comparison.name.split("/")[0].split(" ")[0] == section]
    assert own
    assert [f"{r.comparison.name} [{r.engine}] {r.comparison.what}" for r in own if not r.comparison.passed] == []


def test_nothing_recorded_is_passed_over(results, golden):
    """Every case folder of the decoding sections and of llm was compared by both engines."""
    compared = {(r.comparison.name, r.engine) for r in results}
    for section in ("llm", "text", "mmu", "t2i", "cache"):
        for case in (path for path in (golden / section).iterdir() if path.is_dir()):
            for engine in ("torch", "onnx"):
                assert (f"{section}/{case.name}", engine) in compared


def copied(golden: Path, target: Path, *parts: str) -> Path:
    for part in parts:
        shutil.copytree(golden / part, target / part)
    return target


def test_a_changed_number_is_found(golden, tmp_path, capsys):
    folder = copied(golden, tmp_path / "set", "llm/mha", "text/mha_full")
    path = folder / "text" / "mha_full" / "trace.safetensors"
    tensors = load_file(path)
    tensors["final"] = tensors["final"].copy()
    tensors["final"][0, -1] += 1
    save_file(tensors, path)
    assert main(["check", str(folder), "--engine", "onnx"]) == 1
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert summary["failed"] == ["text/mha_full [onnx] tokens after every step"]
    assert summary["passed"] == len(lines) - 2


def test_a_changed_weight_is_found(golden, tmp_path):
    folder = copied(golden, tmp_path / "set", "llm/mha", "text/mha_full")
    path = folder / "llm" / "mha" / "model.safetensors"
    tensors = load_file(path)
    name = "model.transformer.blocks.0.v_proj.weight"
    tensors[name] = np.roll(tensors[name], 1, axis=0)
    save_file(tensors, path)
    for engine in ("torch", "onnx"):
        assert as_json(list(check_folder(folder, [engine])))["failed"]


def test_folders_that_cannot_be_checked_say_why(golden, tmp_path):
    with pytest.raises(Error, match="no folder at"):
        list(check_folder(tmp_path / "nowhere"))
    with pytest.raises(Error, match="holds none of llm"):
        list(check_folder(tmp_path))
    folder = copied(golden, tmp_path / "set", "llm/mha", "text/mha_full")
    trace = folder / "text" / "mha_full" / "trace.safetensors"
    trace.write_bytes(trace.read_bytes()[:500])
    with pytest.raises(Error, match="mha_full is not complete"):
        list(check_folder(folder, ["torch"]))
    (folder / "text" / "mha_full" / "case.json").write_text('{"settings": {}}')
    with pytest.raises(Error, match="mha_full is not complete"):
        list(check_folder(folder, ["torch"]))


def test_it_is_one_of_the_benchmarks_too(golden, tmp_path, capsys):
    folder = copied(golden, tmp_path / "set", "llm/mha", "text/mha_full")
    found = []
    for words in (["check", str(folder), "--engine", "onnx"], ["bench", "check", str(folder), "--engine", "onnx"]):
        assert main(words) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert main(["bench", "check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("mmada-lite: no folder at ")
