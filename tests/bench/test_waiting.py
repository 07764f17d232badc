"""Threads that wait: the sessions that are compared, the processes beside them, and the table."""

from pathlib import Path

import psutil
import pytest

from mmada_lite.bench.speed import waiting
from mmada_lite.ort import session


def test_what_the_runtime_asks_for_is_among_what_is_compared() -> None:
    assert session._SPINNING in [dict(entries) for entries in waiting.WAYS.values()]


def test_sessions_take_turns_idle_and_beside_a_busy_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shape", "tiny", "--precision", "fp32", "--work", str(tmp_path), "--windows", "3", "--rounds", "2"]
    assert waiting.main([*words, "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 2 * len(waiting.WAYS)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells] == ["0"] * len(waiting.WAYS) + ["1"] * len(waiting.WAYS)
    assert all(float(row[3]) > 0 and float(row[4]) >= 0 for row in cells)
    assert {row[5] for row in cells if row[2] == waiting.TO_THE_END} == {"1.00"}


def test_busy_processes_end_with_what_stands_beside_them() -> None:
    before = set(psutil.Process().children())
    with waiting.busy(1):
        (child,) = set(psutil.Process().children()) - before
        assert child.is_running()
    assert not child.is_running()


def test_a_fault_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert waiting.main(["--shape", "tiny", "--precision", "int9"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
