"""The benchmark for a GPU, whole, at a tiny shape on a CPU; and what it says where there is no GPU."""

import json
from pathlib import Path

import pytest

from mmada_lite.bench.speed import gpu
from mmada_lite.bench.synthetic import SIZES, write_bundle
from mmada_lite.memory_plan import PUBLISHED, Shape
from mmada_lite.ort import devices


def test_the_whole_path_at_a_tiny_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_FPA_INTB_GEMM", "1")
    target = tmp_path / "gpu.json"
    assert gpu.main(["--shape", "tiny", "--device", "cpu", "--rounds", "1", "-o", str(target)]) == 0
    result = json.loads(target.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert set(result["sides"]) == {"reference", "cpu fp16", "cpu int4"}
    for name, side in result["sides"].items():
        assert side["peak_bytes"] > 10**7
        assert (side["picture"]["steps"], side["answer"]["steps"]) == (5, 4)
        assert all(side[task]["median_s"] > 0 for task in gpu.WANTED)
        assert (name == "reference") == ("times_reference" not in side)
        assert name == "reference" or side["agreement"] == 1.0
    assert result["command"].startswith("python -m mmada_lite.bench.speed.gpu --shape tiny")
    assert result["environment"]["ORT_FPA_INTB_GEMM"] == "1"


def test_bundles_are_kept_and_found_again_in_the_precisions_asked_for(tmp_path: Path) -> None:
    work, target = tmp_path / "work", tmp_path / "gpu.json"
    words = [
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--precisions",
        "int4",
        "--work",
        str(work),
        "-o",
        str(target),
    ]
    assert gpu.main(words) == 0
    assert set(json.loads(target.read_text())["sides"]) == {"reference", "cpu int4"}
    assert [path.name for path in work.iterdir()] == ["tiny-int4"]
    made = (work / "tiny-int4" / "bundle.json").stat().st_mtime_ns
    assert gpu.main(words) == 0
    assert (work / "tiny-int4" / "bundle.json").stat().st_mtime_ns == made


def test_a_side_that_fails_is_data(tmp_path: Path) -> None:
    found = gpu.side(["--shape", "tiny", "--one", str(tmp_path / "nowhere"), "--device", "cpu"])
    assert "no such bundle folder" in found["failed"]


def test_no_rounds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "gpu.json"
    assert gpu.main(["--shape", "tiny", "--device", "cpu", "--rounds", "0", "-o", str(target)]) == 2
    assert "--rounds 0 cannot be" in capsys.readouterr().err
    assert not target.exists()


def test_without_a_gpu_it_says_how_to_try(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "fault", lambda device: f"no {device} here")
    assert gpu.main(["--shape", "tiny"]) == 2
    assert "try the path with --shape tiny --device cpu" in capsys.readouterr().err


def test_the_tasks_are_those_of_the_published_model() -> None:
    size = SIZES["8b"]
    assert size.architecture == PUBLISHED["8b"].architecture
    picture, answer = gpu.picture_of(size), gpu.answer_about(size)
    assert int(picture.masked().sum()) == 1024
    assert len(picture.branches()) == 2
    assert int(answer.masked().sum()) == 128
    assert answer.length == gpu.picture_prompt_length(size) + 128
    assert answer.length > 1026 + 128


def test_random_bundles_are_what_they_say(tmp_path: Path) -> None:
    bundle = write_bundle(SIZES["tiny"], tmp_path / "b", "int8", "cuda")
    assert Shape.of(bundle).architecture == SIZES["tiny"].architecture
    assert bundle.target == "cuda"
    assert {group.format for group in bundle.quantization.values()} == {"int8", "fp16"}
