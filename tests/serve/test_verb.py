"""The verb: what it refuses in one line with exit code 2, and how it finds its options."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT

from mmada_lite.cli.main import main


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str | Path) -> str:
        code = main(["serve", *map(str, words)])
        out, error = capsys.readouterr()
        assert (code, out) == (2, ""), error
        assert error.startswith("mmada-lite: ")
        assert error.count("\n") == 1
        assert error.endswith(" (see docs/serve.md)\n") or "--help" in error or "docs/" in error
        return error

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--port 70000", "--port is 70000; use 0 to 65535"),
        ("--port x", "not a whole number"),
        ("--queue -1", "--queue"),
        ("--time-limit 0", "--time-limit"),
        ("--max-body 9999", "--max-body"),
        ("--max-pixels 0", "--max-pixels"),
        ("--allow-origin example.org", "https://example.org"),
        ("--api-key=", "--api-key is empty"),
        ("--host no.such.host.invalid", "--host"),
        ("--host 203.0.113.7 --port 0", "an address of this machine"),
        ("--threads 0", "--threads"),
        ("--prot 3", "did you mean --port?"),
    ],
)
def test_bad_options(refused: Any, words: str, said: str) -> None:
    assert said in refused(*words.split())


def test_a_port_in_use(refused: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use; choose another with --port" in refused("--port", str(port))


def test_a_missing_extra(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else real(name, *more))
    assert 'this needs uvicorn, which is not installed; pip install "mmada-lite[serve]"' in refused()


def test_a_bundle_that_cannot_be_read(tmp_path: Path) -> None:
    """Said by the worker, and then by the command in its one line."""
    command = [sys.executable, "-m", "mmada_lite", "serve", "--port", "0", "-m", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"mmada-lite: {tmp_path}")
    assert done.stderr.count("\n") == 1


def test_a_key_in_a_file(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    assert "--api-key is empty" in refused("--api-key", f"@{tmp_path / 'key'}")
    assert "nowhere" in main_error(tmp_path / "nowhere")


def main_error(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mmada_lite", "serve", "--api-key", f"@{path}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr


def test_nothing_heavy_is_imported_by_the_server_itself() -> None:
    """The worker has the model; the server is ready early because it has neither numpy nor onnxruntime."""
    code = (
        "import sys\nfrom mmada_lite.serve import server, app, metrics, protocol\n"
        "print(*({'numpy', 'onnxruntime', 'tokenizers', 'PIL', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    assert done.stdout.split() == []
