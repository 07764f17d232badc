"""What a decode launches, as onnxruntime's profile says it: on the CPU provider, and where a card replays what it captured."""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from mmada_lite.bench import record
from mmada_lite.bench import timed as timing
from mmada_lite.bench.speed import latency, latency_runs, launches
from mmada_lite.bench.speed.latency_cases import Bench
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.ort.devices import choose_device

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("launches") / "b", target="cuda"))


def test_every_run_of_a_decode_is_counted_by_graph(bundle: Bundle) -> None:
    settings = TextSettings(answer_length=8, steps=8, block_length=4).replace(cache="dual")
    case = Bench.of(bundle).text(6, settings)
    rows = {row["graph"]: row for row in launches.rows(bundle, choose_device("cpu"), 1, [case])}
    assert set(rows) == {"backbone", "text_head"}
    assert {(row["task"], row["of"], row["runs"], row["replays"]) for row in rows.values()} == {("launches", "text", 8, 0)}
    for graph, row in rows.items():
        written = onnx.load(str(bundle.graph_path(graph)), load_external_data=False).graph.node
        named = sum(node.op_type not in launches.VIEWS for node in written)
        assert list(row["uncaptured"]) == [CPU]
        assert 0.5 * named < row["launches"] < 3 * named  # a CPU casts around what it has in float32 alone, and fuses


def test_a_replay_is_one_launch() -> None:
    def run(begun: float) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": begun, "dur": 9.0}

    def node(begun: float, operator: str, provider: str = "CUDAExecutionProvider") -> dict[str, Any]:
        about = {"op_name": operator, "provider": provider}
        return {"cat": "Node", "name": f"{operator}_kernel_time", "ts": begun, "dur": 1.0, "args": about}

    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0.0, "dur": 90.0},
        node(95.0, "Attention"),  # of no run
        *(run(begun) for begun in (100.0, 110.0, 120.0, 130.0)),
        *(node(begun, name) for begun, name in ((101.0, "Attention"), (102.0, "MatMulNBits"), (103.0, "Reshape"))),
        node(104.0, "MemcpyToHost", CPU),
        {"cat": "Node", "name": "Attention_fence_before", "ts": 101.0, "dur": 1.0, "args": {"op_name": "Attention"}},
    ]
    counted = launches.runs_of(events)
    assert counted == [Counter({"CUDAExecutionProvider": 2, CPU: 1}), Counter(), Counter(), Counter()]
    told = launches.summary(counted)
    assert told == {"runs": 4, "replays": 3, "launches": 1, "uncaptured": {"CUDAExecutionProvider": 2, CPU: 1}}


def test_the_command_tells_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no GPU in these tests: the CPU stands in for it."""
    for module in (latency, latency_runs, timing):
        monkeypatch.setattr(module, "choose_device", lambda name: choose_device("cpu"))
    target = tmp_path / "record.json"
    words = ["--shape", "tiny", "--device", "cuda", "--quick", "--threads", "1", "--caches", "dual", "--work", str(tmp_path)]
    assert latency.main([*words, "--tasks", "text", "--profile", "-o", str(target)]) == 0
    rows = [row for row in record.load(target)["rows"] if row["task"] == "launches"]
    assert {row["graph"] for row in rows} == {"backbone", "text_head"}
    printed = capsys.readouterr().out
    assert "text: backbone" in printed
    assert "on CPU uncaptured), 0 of" in printed


def test_the_script_for_a_card_runs_commands_that_there_are(tmp_path: Path) -> None:
    """Every command of it, written down in place of being run, is one that the benchmarks take; its limits add up to less than
    a quarter of an hour."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$*" | tr "\\n" " " >>"$CALLS"; echo >>"$CALLS"\n')
    stub.chmod(0o755)
    script, calls = Path(__file__).parents[2] / "bench" / "speed" / "card.sh", tmp_path / "calls"
    environment = {**os.environ, "PYTHON": str(stub), "CALLS": str(calls)}
    done = subprocess.run(
        ["bash", str(script), str(tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exit 0") == 6
    commands = [line.split() for line in calls.read_text().splitlines()]
    benches = [words[4:] for words in commands if words[:4] == ["-m", "mmada_lite", "bench", "latency"]]
    assert len(benches) == 4
    for words in benches:
        latency.build_parser().parse_args(words)
    limits = re.findall(r"^ *step (\d+) (.*)", script.read_text(), re.MULTILINE)
    assert sum(int(limit) * (3 if "agreement" in name else 1) for limit, name in limits) <= 900
