"""Nothing is sent home: a first run leaves no file of onnxruntime's in an empty home and looks no host up."""

import ast
import os
import sys
from pathlib import Path

import pytest
from import_graph import project
from watched import SWITCH, Watch

from mmada_lite.ort.openvino import lacking

SESSION = (
    "import sys, mmada_lite\n"
    "model = mmada_lite.load(sys.argv[1], device=sys.argv[2], threads=1)\n"
    "model.chat('hello', mmada_lite.TextSettings(answer_length=4, steps=2))\n"
    "model.paint('a cat')\nprint('done')\nsys.stdin.read()"
)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_python_program_sends_nothing(watch: Watch, tiny_bundle: Path, tmp_path: Path, device: str) -> None:
    if device == "openvino" and (fault := lacking()):  # its wheel comes with a package for telemetry, of its converter
        pytest.skip(fault)
    assert watch.run(tmp_path, [sys.executable, "-c", SESSION, tiny_bundle, device]) == "done\n"


@pytest.mark.slow
def test_a_verb_sends_nothing(watch: Watch, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["-m", "mmada_lite", "paint", "a cat", "-m", tiny_bundle, "-o", "cat.png", "--device", "cpu"]
    answer = watch.run(tmp_path, [sys.executable, *words])
    assert (tmp_path / "cat.png").is_file(), answer


def test_the_user_may_switch_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmada_lite.ort.session import onnxruntime_package

    monkeypatch.setenv(SWITCH, "0")
    onnxruntime_package()
    assert os.environ[SWITCH] == "0"


@pytest.mark.parametrize(("version", "warned"), [("1.28.9", 0), ("1.29.0", 1), ("2.0.1+cpu", 1), ("", 0)])
def test_a_host_that_was_first_is_told_once(
    version: str, warned: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    from mmada_lite.ort.session import onnxruntime_package

    monkeypatch.setattr(onnxruntime, "__version__", version)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(SWITCH, "")
    monkeypatch.delenv(SWITCH)
    for _ in range(2):
        onnxruntime_package()
    lines = [record.getMessage() for record in caplog.records if record.name == "mmada_lite"]
    assert len(lines) == warned
    assert all(f"{SWITCH}=1" in line for line in lines)
    assert os.environ[SWITCH] == "1"  # what this process starts is silent


def test_one_function_imports_onnxruntime() -> None:
    """Everywhere else it is imported for the type checker, or behind a call of that function."""
    found = {}
    for name, path in project().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing = {inner for node in ast.walk(tree) if isinstance(node, ast.If) for inner in ast.walk(node)}
        for function in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
            inside = ast.walk(function) if function is not tree else iter(tree.body)
            imports = [node for node in inside if isinstance(node, ast.Import | ast.ImportFrom) and node not in typing]
            if any("onnxruntime" in ast.unparse(node).replace("onnxruntime_package", "") for node in imports):
                found[f"{name}.{getattr(function, 'name', '')}"] = "onnxruntime_package()" in ast.unparse(function)
    assert "mmada_lite.ort.session.onnxruntime_package" in found
    assert all(found.values()), found
