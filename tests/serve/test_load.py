"""What `mmada-lite bench serve` finds of a small server: no answer lost, none wrong, memory that stays; and that a step is sent
when it is made."""

import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving import Server

from mmada_lite.bench.record import load
from mmada_lite.bench.speed import serving
from mmada_lite.bench.speed.serving_load import Ask, Serving, ask_all

LONG: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200, "steps": 200, "seed": 1, "stream": True}


def test_mixed_requests_are_all_answered_as_the_library_does(tiny_bundle: Path, tmp_path: Path) -> None:
    record = tmp_path / "serve.json"
    words = ["--quick", "--tasks", "first", "load", "-m", str(tiny_bundle), "--threads", "1", "--batch", "2"]
    words += ["--connections", "16", "--queue", "4", "-o", str(record)]
    assert serving.main([*words, "--requests", "300"]) == 0
    first, loaded = load(record)["rows"]
    assert first["http"]["median"] > 0
    assert (loaded["requests"], loaded["right"], loaded["wrong"], loaded["lost"]) == (40, 40, 0, 0), loaded["faults"]
    assert loaded["refused"] > 0, "the queue was too long for anyone to be told to come again"
    assert (loaded["restarts"], loaded["same_processes"]) == (0, True)
    assert loaded["server"]["near"]
    assert loaded["worker"]["near"]
    assert 0 <= loaded["queued"]["p50"] <= loaded["queued"]["p99"] <= loaded["queued"]["max"]
    assert "40 right, 0 wrong, 0 lost" in serving.table([loaded])


def test_wrong_and_lost_answers_are_counted(server: Server) -> None:
    """The clients of the benchmark can tell."""
    running = Serving(Path())
    running.address = urlsplit(server.url).netloc
    headers = {"content-type": "application/json"}
    body = json.dumps({**LONG, "stream": False, "max_tokens": 8, "steps": 8}).encode()
    asks = [Ask("/v1/chat/completions", body, headers, lambda found: "this", right) for right in ("this", "that")]
    asks.append(Ask("/v1/chat/completions", b"{}", headers, lambda found: "this", "this"))
    outcome = ask_all(running, asks, 2, 60, lambda done: None)
    assert (outcome.right, outcome.wrong, outcome.lost) == (1, 1, 1)
    late = ask_all(running, asks, 2, 0, lambda done: None)
    assert (late.right, late.wrong, late.lost) == (0, 0, 3)


@pytest.mark.parametrize("name", ["server", "batching"])
def test_a_step_is_sent_when_it_is_made(name: str, request: pytest.FixtureRequest) -> None:
    """The first one while the others are still to come."""
    server: Server = request.getfixturevalue(name)
    server.settle()
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps({**LONG, "stream_mode": "denoise"}), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    while b'"denoise"' not in (line := response.readline()):
        pass
    assert json.loads(line[6:])["denoise"]["step"] == 1
    assert b'mmada_queue{state="running"} 1.0' in server.ask("GET", "/metrics").body
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()


@pytest.mark.parametrize("words", [("--connections", "99999999999"), ("--requests", "1e9999"), ("--batch", "65")])
def test_a_load_beyond_bounds_is_refused_before_a_server_starts(
    words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serving.main([*words, "-o", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mmada-lite: {words[0]}")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
