"""Every fault of the training that once passed all tests fails a test of its own now."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_fault_that_was_once_missed_is_noticed() -> None:
    program = Path(__file__).parents[1] / "planted.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("noticed") == len(done.stdout.splitlines()) == 16
