"""What a process of the command line does about its streams, its signals, and files that are none."""

import io
import itertools
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmada_lite import Error
from mmada_lite.cli import terminal
from mmada_lite.files import AtomicFolder, Lock, write_whole

ROOT = Path(__file__).parents[2]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
SHORT = ("--steps", "2", "--device", "cpu", "--threads", "1")
MMADA = (sys.executable, "-m", "mmada_lite")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run(folder: Path, *words: str | Path, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    """A verb as a process. It has a minute."""
    how = {"capture_output": True, "env": environment(), "timeout": 60, **more}
    return subprocess.run([*MMADA, *map(str, words)], cwd=folder, **how)


def line_of(done: "subprocess.CompletedProcess[bytes]") -> str:
    """The one line of a verb that was refused."""
    error = done.stderr.decode()
    assert (done.returncode, done.stdout, error.count("\n")) == (2, b"", 1), error
    assert error.startswith("mmada-lite: ")
    return error


@pytest.mark.parametrize("closed", [c for n in (1, 2, 3) for c in itertools.combinations((0, 1, 2), n)])
def test_closed_streams(closed: tuple[int, ...], tiny_bundle: Path, tmp_path: Path) -> None:
    """A drawing needs none of them; an answer needs somewhere to go; and no note goes into a picture."""
    closing = " ".join(f"{number}>&-" for number in closed)

    def shell(words: str) -> "subprocess.CompletedProcess[str]":
        command = f'exec {sys.executable} -m mmada_lite {words} -m "{tiny_bundle}" --device cpu --threads 1 {closing}'
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=environment())

    drawn = shell("paint 'a cat' -o cat.png --steps 2")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert Image.open(tmp_path / "cat.png").size == (16, 16)
    answer = shell("chat hi --answer-length 4 --steps 1 --block-length 4")
    assert (answer.returncode, answer.stdout) == ((2, "") if 1 in closed else (0, answer.stdout))
    assert "Traceback" not in answer.stderr
    assert ("standard output is closed" in answer.stderr) == (1 in closed and 2 not in closed)
    refused = shell("paint '' -o other.png")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 0 if 2 in closed else 1)


def test_a_picture_on_standard_output_holds_no_note(tiny_bundle: Path, tmp_path: Path) -> None:
    words = f'paint "a cat" -o - --thought "a thought" --steps 2 -m "{tiny_bundle}" --threads 999 2>&-'
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m mmada_lite {words}"], capture_output=True, env=environment())
    assert done.returncode == 0
    assert done.stdout.startswith(b"\x89PNG")
    Image.open(io.BytesIO(done.stdout)).load()
    assert done.stdout.endswith(b"IEND\xaeB`\x82")


def test_a_reader_that_goes_away(tiny_bundle: Path, tmp_path: Path) -> None:
    command = f'{sys.executable} -m mmada_lite chat hi --json -m "{tiny_bundle}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("141", "")


@pytest.mark.parametrize(
    ("variables", "tty", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
    ],
)
def test_colours(variables: dict[str, str], tty: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal, "is_terminal", lambda *_: tty)
    assert (terminal.dimmed("x") != "x") == coloured


def test_a_dumb_terminal_gets_no_commands(tiny_bundle: Path, tmp_path: Path) -> None:
    shown = {}
    for term in ("dumb", "xterm"):
        ours, theirs = pty.openpty()
        words = ["paint", "a cat", "-o", f"{term}.png", *SHORT, "-m", str(tiny_bundle)]
        process = subprocess.Popen(
            [*MMADA, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=environment(TERM=term)
        )
        os.close(theirs)
        process.communicate(timeout=60)
        os.set_blocking(ours, False)
        try:
            shown[term] = os.read(ours, 1 << 16)
        except OSError:  # nothing was written
            shown[term] = b""
        os.close(ours)
    assert shown["dumb"] == b""
    assert b"\x1b[K" in shown["xterm"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("verb", ["export", "paint"])
def test_a_signal_ends_it_and_leaves_nothing(
    verb: str, number: signal.Signals, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Once while everything is imported, and once while it is being written. The code is the shell's for that signal."""
    words = {"export": ["export", tiny_checkpoint, "-o", "made"], "paint": ["paint", "a cat", "-m", tiny_bundle, "-o", "x.png"]}
    for pause in (0.1, "write"):
        patched = "import os, signal, sys, time\nfrom mmada_lite import files\n"
        if pause == "write":  # stands still in the middle of its writing
            patched += "os.fsync = lambda handle: (os.write(1, b'now'), time.sleep(60))\n"
        else:
            patched += "from mmada_lite.cli import process\nheed = process._heed\n"
            patched += "process._heed = lambda: (heed(), os.write(1, b'now'))\n"  # Python itself has begun, and we
        patched += "from mmada_lite.__main__ import main\nsys.argv[0] = 'mmada-lite'\nsys.exit(main())"
        process = subprocess.Popen(
            [sys.executable, "-c", patched, *map(str, words[verb])],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=_heeding,
        )
        assert process.stdout is not None
        assert process.stdout.read(3) == b"now"
        if isinstance(pause, float):
            time.sleep(pause)
        else:
            assert list(tmp_path.iterdir())
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 128 + number, error
        assert (out, error.count(b"\n") <= 1, b"Traceback" in error) == (b"", True, False), error
        assert list(tmp_path.iterdir()) == []


def _heeding() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


STUCK = """
import ctypes, pathlib, sys
import mmada_lite.cli.main
from mmada_lite import files
from mmada_lite.__main__ import main

def forward(argv=None):
    files.AtomicFolder(pathlib.Path("made"), marker="x").__enter__()
    lock, library = (ctypes.c_char * 64)(), ctypes.CDLL(None)
    library.pthread_mutex_lock(lock)
    print("now", flush=True)
    library.pthread_mutex_lock(lock)

mmada_lite.cli.main.main = forward
sys.exit(main())
"""


def test_a_signal_does_not_wait_for_what_python_cannot_interrupt(tmp_path: Path) -> None:
    """As the forward of a large model: here a lock that is taken twice."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    assert len(list(tmp_path.iterdir())) == 1
    time.sleep(0.2)  # until it is stuck
    process.terminate()
    try:
        assert process.communicate(timeout=30)[1] == b"mmada-lite: terminated\n"
    finally:
        process.kill()
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_pipes_are_not_waited_for(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    bundle, checkpoint = Path(shutil.copytree(tiny_bundle, tmp_path / "b")), tmp_path / "c"
    for words in (["ask", "pipe.png", "what?"], ["quantize", tiny_checkpoint, "-o", "made", "--prompts", "pipe.png"]):
        assert "pipe" in line_of(run(tmp_path, *words))
    for name in ("bundle.json", "tokenizer.json", "weights.bin", "backbone.onnx"):
        (bundle / name).rename(bundle / "kept")
        os.mkfifo(bundle / name)
        assert f"{name} is a pipe" in line_of(run(tmp_path, "info", bundle))
        (bundle / "kept").replace(bundle / name)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "vq/model.safetensors"):
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(tiny_checkpoint, checkpoint)
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        assert f"{name} is a pipe" in line_of(run(tmp_path, "export", checkpoint, "-o", "made"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "pipe.png"]


def test_a_pipe_as_output_needs_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with (tmp_path / "read").open("wb") as read, subprocess.Popen(["cat", pipe], stdout=read):
        write_whole(pipe, b"x" * 200_000)
    assert (tmp_path / "read").stat().st_size == 200_000
    monkeypatch.setattr("mmada_lite.files._PATIENCE", 0.1)
    with pytest.raises(Error, match="nobody reads the pipe"):
        write_whole(pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pointer_of_git_lfs_is_called_so(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from mmada_lite.export.bundle import export_checkpoint
    from mmada_lite.images import open_picture
    from mmada_lite.model import load

    bundle, checkpoint = (Path(shutil.copytree(each, tmp_path / each.name)) for each in (tiny_bundle, tiny_checkpoint))
    (tmp_path / "x.png").write_text(POINTER)
    calls = [(tmp_path / "x.png", open_picture, (tmp_path / "x.png",)), (tmp_path / "x.png", open_picture, (POINTER.encode(),))]
    calls += [(bundle / name, load, (bundle,)) for name in ("weights.bin", "tokenizer.json", "text_head.onnx", "bundle.json")]
    named = ("model.safetensors", "tokenizer.json", "config.json", "vq/model.safetensors")
    calls += [(checkpoint / name, export_checkpoint, (checkpoint, tmp_path / "made")) for name in named]
    for file, call, given in calls:
        kept = file.read_bytes()
        file.write_text(POINTER)
        with pytest.raises(Error, match="is a git-lfs pointer and not the file itself; run `git lfs pull`"):
            call(*given)  # type: ignore[operator]
        file.write_bytes(kept)


@pytest.fixture
def nobody() -> Any:
    """What the test does then is done as a user who owns nothing."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_what_is_forbidden_is_not_called_damaged(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from mmada_lite.bundle import Bundle
    from mmada_lite.export.safetensors_io import TensorSource
    from mmada_lite.images import open_picture

    for part in [tmp_path, *tmp_path.parents][:3]:
        part.chmod(0o755)
    for name in ("x.png", "bundle.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
        (tmp_path / name).chmod(0)
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0o555)
    request.getfixturevalue("nobody")
    for call in (Bundle.open, TensorSource.open, lambda folder: open_picture(folder / "x.png")):
        with pytest.raises(Error, match="not allowed to read"):
            call(tmp_path)
    with pytest.raises(Error, match="cannot write here"), AtomicFolder(tmp_path / "shut" / "made", marker="x"):
        pass
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "shut" / "x.png", b"x")


def test_a_device_that_fails_is_not_called_damaged() -> None:
    from mmada_lite.images import open_picture

    with pytest.raises(Error, match="cannot be read"):
        open_picture("/proc/self/mem")


def test_files_that_may_not_grow(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for words in (["export", tiny_checkpoint, "-o", "made"], ["paint", "a cat", "-m", tiny_bundle, "-o", "x.png", *SHORT]):
        command = f"ulimit -f 0; exec {sys.executable} -m mmada_lite " + " ".join(f"'{word}'" for word in words)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, env=environment(), timeout=60)
        assert "larger than this shell allows (ulimit -f)" in line_of(done)
        assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_missing(tiny_bundle: Path, tmp_path: Path) -> None:
    for home in (None, "", "/gone", "/dev/null", "/proc"):
        variables = {name: value for name, value in environment().items() if name not in ("HOME", "XDG_CACHE_HOME")}
        variables |= {} if home is None else {"HOME": home}
        done = run(tmp_path, "chat", "hi", "-m", tiny_bundle, "--answer-length", "4", "--block-length", "4", env=variables)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
        assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused, also where the disk knows no links."""
    path = tmp_path / "x.png"
    write_whole(path, b"first", force=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"second", force=False)

    def without(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", without)
    with pytest.raises(FileExistsError):
        write_whole(path, b"second", force=False)
    write_whole(tmp_path / "y.png", b"third", force=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"x.png": b"first", "y.png": b"third"}


def test_two_drawings_of_one_name(tiny_bundle: Path, tmp_path: Path) -> None:
    words = [*MMADA, "paint", "a cat", "-o", "x.png", *SHORT, "-m", str(tiny_bundle)]
    how: Any = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*words, "--seed", seed], **how) for seed in "12"]
    ends = sorted((process.communicate(timeout=120), process.returncode) for process in both)
    assert sorted(code for _, code in ends) == [0, 2]
    assert {said for (out, error), _ in ends for said in (out, error) if said} in (
        {"x.png\n", "mmada-lite: x.png has appeared meanwhile; choose another name with -o (see docs/cli.md)\n"},
        {"x.png\n", "mmada-lite: x.png exists; add --force to replace it, or choose another name with -o (see docs/cli.md)\n"},
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_one_process_works_in_a_folder(tmp_path: Path) -> None:
    from mmada_lite.quant.work_folder import WorkFolder

    with WorkFolder(tmp_path / "work", {}), pytest.raises(Error, match="another process works in"):
        WorkFolder(tmp_path / "work", {})
    with WorkFolder(tmp_path / "work", {}) as work:
        work.remove()


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    with AtomicFolder(tmp_path / "deep" / "made", marker="x") as first:
        second = AtomicFolder(tmp_path / "deep" / "made", marker="x")
        with pytest.raises(Error, match="is being written by another process"):
            second.__enter__()
        assert first.folder.is_dir()
    assert list(tmp_path.iterdir()) == []  # the folder above it neither, as it was made for it


def test_what_is_being_replaced_is_replaced_by_nobody_else(tmp_path: Path) -> None:
    (target := tmp_path / "made").mkdir()
    (target / "x").touch()
    with AtomicFolder(target, marker="x", force=True) as writer:
        held = Lock.of(target)
        assert held is not None
        with pytest.raises(Error, match="is being replaced by another process"):
            writer.commit()
        held.release()
        writer.commit()
    assert list(tmp_path.iterdir()) == [target]
