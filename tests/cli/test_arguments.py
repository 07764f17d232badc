"""Every command line of the project refuses what it cannot read in one line, with exit code 2, before any work; and Ctrl-C is
one line too."""

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mmada_lite.cli.main import main
from mmada_lite.ort.cores import usable_cores

ROOT = Path(__file__).parents[2]
NEEDED = {  # the module of a command line -> arguments that it cannot do without
    "bench.speed.latency": [],
    "bench.speed.peers": [],
    "bench.speed.ceiling": [],
    "bench.speed.runtimes": [],
    "bench.speed.waiting": [],
    "bench.quality.evaluate": ["MODEL"],
    "bench.quality.same": ["BUNDLE", "BUNDLE"],
    "bench.quality.quantization": ["CHECKPOINT"],
    "bench.parity.check": ["FOLDER"],
    "bench.walkthrough_8b": ["--work", "FOLDER"],
    "train.__main__": ["one"],
    "train.gallery": [],
    "train.curves": [],
    "train.synergy": [],
    "train.gains": ["--from", "START"],
    "export.synthetic": ["FOLDER"],
}
NUMBERS = {  # a module -> an option of it that takes a number
    "bench.speed.latency": "--rounds",
    "bench.speed.peers": "--rounds",
    "bench.speed.ceiling": "--slice",
    "bench.quality.evaluate": "--count",
    "bench.quality.quantization": "--prompts",
    "bench.walkthrough_8b": "--layers",
    "train.__main__": "--steps",
    "train.synergy": "--updates",
    "export.synthetic": "--seed",
}


def refused(module: str, words: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    assert import_module(f"mmada_lite.{module}").main(words) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1), error
    assert error.startswith("mmada-lite: ")
    assert list(folder.iterdir()) == []
    return error


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which nothing may be left."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", NEEDED)
def test_an_unknown_option_is_one_line(module: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no option --zzz; see " in refused(module, [*NEEDED[module], "--zzz"], capsys, empty)
    assert "has no option --helpp; did you mean --help?" in refused(module, [*NEEDED[module], "--helpp=1"], capsys, empty)


@pytest.mark.parametrize("module", NEEDED)
def test_help_shows_defaults_as_they_are_typed(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And no list or name of Python's."""
    with pytest.raises(SystemExit):
        import_module(f"mmada_lite.{module}").main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert not [mark for mark in ("(['", "([", "default: [", "(None", "default: None", "PosixPath", "<class") if mark in said]


@pytest.mark.parametrize("module", NEEDED)
def test_an_option_is_spelled_out(module: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no option --hel; did you mean --help?" in refused(module, [*NEEDED[module], "--hel"], capsys, empty)


@pytest.mark.parametrize("module", [module for module, needed in NEEDED.items() if needed])
def test_a_missing_argument_is_one_line(module: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the following arguments are required: " in refused(module, [], capsys, empty)


@pytest.mark.parametrize("module", [module for module in NEEDED if module != "bench.quality.evaluate"])  # takes any number
def test_an_argument_too_many_is_one_line(module: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'further' is one argument too many for " in refused(module, [*NEEDED[module], "further"], capsys, empty)


@pytest.mark.parametrize("module", NUMBERS)
def test_a_word_for_a_number_is_one_line(module: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*NEEDED[module], NUMBERS[module], "many"]
    error = refused(module, words, capsys, empty)
    assert f"{NUMBERS[module]}: " in error
    assert "invalid " in error or "no whole number" in error


def _heeds_interrupts() -> None:
    """A shell that starts the tests in the background lets them ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_is_one_line_and_its_own_exit_code(tmp_path: Path) -> None:
    words = ["--shapes", "tiny", "--forms", "fp32", "--tokens", "1", "--threads", "1", "--slice", "60"]
    command = [sys.executable, "-m", "mmada_lite.bench.speed.ceiling", *words, "-o", str(tmp_path / "ceiling.json")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=_heeds_interrupts, **pipes) as process:  # type: ignore[call-overload]
        assert process.stderr.readline() == "1 of 1: shape tiny, 1 threads\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=60) == ("", "mmada-lite: interrupted\n")
        finally:
            process.kill()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("chat", "hello", "--answer-length", "8", "--json"),
        ("info", "--json"),
        ("bench", "ceiling", "--quick", "--shapes", "tiny", "--forms", "fp32", "--tokens", "1"),
    ],
    ids=lambda words: words[0],
)
def test_threads_are_at_most_the_cores_which_is_noted_once(words: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    more = ("-o", str(tmp_path / "out.json")) if words[0] == "bench" else ()
    assert main([*words, *more, "--threads", "4000"]) == 0
    printed, cores = capsys.readouterr(), usable_cores()
    assert printed.err.count(f"--threads 4000 is more than the {cores} cores that may be used, so it is {cores}") == 1
    last = json.loads(printed.out.splitlines()[-1])
    assert words[0] != "info" or last["here"]["threads"] == cores
    assert words[0] != "bench" or {row["threads"] for row in last["rows"]} == {cores}
