"""Exports and quantizations that are killed at any moment, and two of them at once: what is there afterwards and loads is byte
for byte one that was wanted. A tenth of the kills by default, all with --fuzz."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from mmada_lite import Error
from mmada_lite.bundle import MANIFEST, Bundle

ROOT = Path(__file__).parents[2]
KILLS, FORCED, PAIRS = 40, 10, 10
VERBS: Mapping[str, tuple[str, ...]] = {  # how each writes, from a checkpoint to a bundle of its own kind
    "export": ("export", "{checkpoint}", "-o", "{output}", "--precision", "int8"),
    "quantize": ("quantize", "{checkpoint}", "-o", "{output}", "--method", "rtn", "--format", "int8"),
}
LOADED = "import sys\nfrom mmada_lite import load\nload(sys.argv[1], device='cpu', threads=1).chat('a b').result()"


class Writer:
    """A verb that writes `output`."""

    def __init__(self, verb: str, checkpoint: Path, output: Path, *more: str) -> None:
        words = [word.format(checkpoint=checkpoint, output=output) for word in VERBS[verb]]
        command = [sys.executable, "-m", "mmada_lite", *words, *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def end(self) -> tuple[int, str]:
        error = self.process.communicate(timeout=300)[1]
        return self.process.returncode, error


def content(bundle: Path) -> dict[str, str]:
    """Hashes of its files, and of what bundle.json says but for the time."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    lines = {path.name: path.read_bytes() for path in files}
    lines[MANIFEST] = b"\n".join(line for line in lines[MANIFEST].splitlines() if b'"created"' not in line)
    return {name: hashlib.sha256(data).hexdigest() for name, data in lines.items()}


def state(output: Path, wanted: Mapping[str, dict[str, str]]) -> str:
    """Which of the wanted bundles lies there, or "nothing". Fails where something loads that is none of them."""
    try:
        Bundle.open(output, verify="full")
    except Error:
        return "nothing"
    found = content(output)
    return next(name for name, right in wanted.items() if right == found)


@pytest.fixture(scope="module")
def wanted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, str], float]]:
    """Verb -> what it writes, and the seconds that it takes."""
    made = {}
    for verb in VERBS:
        output = tmp_path_factory.mktemp(verb) / "bundle"
        writer = Writer(verb, tiny_checkpoint, output)
        assert writer.end() == (0, "")
        made[verb] = content(output), time.monotonic() - writer.started
    return made


@pytest.mark.fuzz
@pytest.mark.parametrize("forced", [False, True])
def test_a_kill_leaves_the_old_or_the_new(
    forced: bool,
    wanted: Mapping[str, tuple[dict[str, str], float]],
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    count = (FORCED if forced else KILLS - FORCED) // (1 if pytestconfig.getoption("fuzz") else 10)
    found, output = Counter[str](), tmp_path / "bundle"
    for number in range(count):
        chance, verb = random.Random(1000 * forced + number), list(VERBS)[number % 2]
        right, takes = wanted[verb]
        shutil.rmtree(output, ignore_errors=True)
        for left in tmp_path.glob(".bundle.quantizing"):
            shutil.rmtree(left)
        if forced:
            shutil.copytree(tiny_bundle, output)
        writer = Writer(verb, tiny_checkpoint, output, *(["--force"] if forced else []))
        time.sleep(takes * (0.4 + 0.7 * chance.random()))
        writer.process.kill()
        writer.end()
        now = state(output, {"old": content(tiny_bundle), "new": right})
        assert now in (("old", "new") if forced else ("nothing", "new"))
        found[now] += 1
        again = Writer(verb, tiny_checkpoint, output, "--force")  # what a kill left stands in nobody's way, and goes
        assert again.end() == (0, "")
        assert state(output, {"new": right}) == "new"
        assert os.listdir(tmp_path) == ["bundle"]
    print(found)


@pytest.mark.fuzz
def test_of_two_writers_one_wins_whole(
    wanted: Mapping[str, tuple[dict[str, str], float]], tiny_checkpoint: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    output, found = tmp_path / "bundle", Counter[str]()
    for number in range(PAIRS if pytestconfig.getoption("fuzz") else 2):
        chance, verbs = random.Random(number), [("export",) * 2, ("quantize",) * 2, ("export", "quantize")][number % 3]
        forced = ["--force"] if number % 4 == 3 else []
        shutil.rmtree(output, ignore_errors=True)
        writers = [Writer(verb, tiny_checkpoint, output, *forced) for verb in verbs]
        if chance.random() < 0.3:
            time.sleep(chance.random())
        ends = [writer.end() for writer in writers]
        assert any(code == 0 for code, _ in ends), ends
        for code, error in ends:
            assert (code, error.count("\n")) in ((0, 0), (2, 1)), ends
            found[error.split("; ")[0].rsplit("/", 1)[-1] or "done"] += 1
        assert state(output, {verb: wanted[verb][0] for verb in verbs}) in verbs
        assert forced or sum(code == 0 for code, _ in ends) == 1, ends
        assert os.listdir(tmp_path) == ["bundle"]
    assert subprocess.run([sys.executable, "-c", LOADED, output], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    print(found)
