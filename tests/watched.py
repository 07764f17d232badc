"""Processes in an empty home, on a record of the hosts that they look up: what a first run leaves, and whom it calls.

Every look-up fails, so that a control that switches telemetry on sends nothing either.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SWITCH = "ORT_DISABLE_TELEMETRY"
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")  # onnxruntime is silent on many a build server
CONTROL = "import sys, onnxruntime as o\no.InferenceSession(sys.argv[1])\nsys.stdin.read()"
PATIENCE = 40.0  # seconds; the control looks a host up about ten after its start
MORE = 5.0  # seconds that others are given beyond what the control took


class Watched:
    """A running process; it lives until its input is closed."""

    def __init__(self, folder: Path, library: Path, command: Sequence[str | Path], said: str = "") -> None:
        self._home, self._looked_up, self._started = folder / "home", folder / "looked_up", time.monotonic()
        self._home.mkdir(parents=True)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {"PYTHONPATH": str(TESTS.parent)}
        environment |= {"HOME": str(self._home), "LD_PRELOAD": str(library), "LOOKUPS": str(self._looked_up)}
        words, pipe = [str(word) for word in command], subprocess.PIPE
        self._process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
        )
        assert self._process.stdin is not None
        self._process.stdin.write(said)
        self._process.stdin.flush()

    @property
    def age(self) -> float:
        return time.monotonic() - self._started

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def looked_up(self) -> list[str]:
        return self._looked_up.read_text().split() if self._looked_up.exists() else []

    @property
    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self._home)) for path in self._home.rglob("*") if path.is_file())

    def end(self) -> str:
        """What it said, once its input is closed. Killed where it goes on."""
        try:
            return self._process.communicate(timeout=60)[0]
        finally:
            self._process.kill()


class Watch:
    """The watch over such processes, and what it sees of onnxruntime alone."""

    def __init__(self, folder: Path, graph: Path) -> None:
        if sys.platform != "linux" or shutil.which("g++") is None:
            pytest.skip("the watch over look-ups needs Linux and g++; apt-get install g++")
        self._library = folder / "lookups.so"
        command = ["g++", "-shared", "-fPIC", "-O1", str(TESTS / "lookups.cpp"), "-o", str(self._library)]
        subprocess.run(command, check=True, capture_output=True)
        control = Watched(folder / "control", self._library, [sys.executable, "-c", CONTROL, graph])
        while not control.looked_up and control.age < PATIENCE:
            time.sleep(0.2)
        self._needed = control.age + MORE
        said = control.end()
        assert not said, said
        self.loud = bool(control.left and control.looked_up)  # else nothing can be shown here

    def run(self, folder: Path, command: Sequence[str | Path], said: str = "") -> str:
        """What a process said, which left nothing and called nobody for longer than the control needed."""
        process = Watched(folder, self._library, command, said)
        while process.running and not process.looked_up and process.age < self._needed:
            time.sleep(0.2)
        answer = process.end()
        assert (process.left, process.looked_up) == ([], []), answer
        if not self.loud:
            pytest.skip("onnxruntime alone leaves no file and looks no host up here: it is older than 1.29, or built without")
        return answer
