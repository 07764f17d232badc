"""Nothing is sent home: a first run in an empty home leaves no file of onnxruntime's there and looks no host up.

onnxruntime 1.29 and later send telemetry on Linux: a control shows what the watch sees there, or the test skips.
"""

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from import_graph import ROOT, project

HERE = Path(__file__).parent
SWITCH = "ORT_DISABLE_TELEMETRY"
ALSO_SWITCHES = {SWITCH, "ORT_RUNNING_UNIT_TESTS", "CI"}  # where one is set onnxruntime is silent by itself
SERVERS = ("GITHUB", "GITLAB", "TRAVIS", "CIRCLE", "JENKINS", "BUILD", "TF_", "TEAMCITY", "APPVEYOR", "CODEBUILD", "XDG_")
CONTROL = "import sys, onnxruntime as o\no.InferenceSession(sys.argv[1])\nprint('done', flush=True)\nsys.stdin.read()"
PYTHON = (
    "import sys, mmada_lite\n"
    "model = mmada_lite.load(sys.argv[1], device='cpu', threads=1)\n"
    "model.chat('hello', mmada_lite.TextSettings(answer_length=4, steps=2))\n"
    "model.paint('a cat')\nprint('done', flush=True)\nsys.stdin.read()"
)
PATIENCE = 40.0  # seconds; the control looks a host up about ten after its start


class Watched:
    """A process with an empty home of its own, on a record of what it looks up; it lives until `end`."""

    def __init__(self, folder: Path, watch: Path, command: Sequence[str | Path], said: str = "") -> None:
        self._home, self._looked_up = folder / "home", folder / "looked_up"
        self._home.mkdir(parents=True)
        kept = {k: v for k, v in os.environ.items() if k not in ALSO_SWITCHES and not k.startswith(SERVERS)}
        environment = kept | {"HOME": str(self._home), "LD_PRELOAD": str(watch), "LOOKUPS": str(self._looked_up)}
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(said)
        self._process.stdin.flush()
        self.answer = self._process.stdout.readline()

    @property
    def looked_up(self) -> list[str]:
        return self._looked_up.read_text().split() if self._looked_up.exists() else []

    @property
    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self._home)) for path in self._home.rglob("*") if path.is_file())

    def end(self) -> int:
        self._process.communicate(timeout=60)
        return self._process.returncode


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that records look-ups."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the watch needs Linux and g++; apt-get install g++")
    made = tmp_path_factory.mktemp("watch") / "lookups.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", HERE / "lookups.cpp", "-o", made], check=True)
    return made


def test_a_first_run_sends_nothing(watch: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Python, the command line and the C++ host, each for as long as the control needs to look its host up."""
    asked = ["-m", "mmada_lite", "chat", "-m", tiny_bundle, "--device", "cpu"]
    first = Watched(tmp_path / "python", watch, [sys.executable, "-c", PYTHON, tiny_bundle])
    watched = [first, Watched(tmp_path / "verb", watch, [sys.executable, *asked], "hello\n")]
    control = Watched(tmp_path / "control", watch, [sys.executable, "-c", CONTROL, tiny_bundle / "text_head.onnx"])
    try:
        until = time.monotonic() + PATIENCE
        while not control.looked_up and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        codes = [process.end() for process in (*watched, control)]
    assert codes == [0, 0, 0]
    assert all(process.answer for process in watched)
    assert [(process.left, process.looked_up) for process in watched] == [([], [])] * 2
    if not (control.left and control.looked_up):
        pytest.skip(f"this onnxruntime sends nothing here by itself: {control.left}, {control.looked_up}")


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
    assert found.pop("mmada_lite.ort.session.onnxruntime_package") is False
    assert all(found.values()), found
