"""The C++ host sends nothing home, by itself."""

import json
from pathlib import Path

import pytest
from cpp_host import build
from watched import Watch


@pytest.mark.slow
def test_the_host_sends_nothing(watch: Watch, tiny_bundle: Path, tmp_path: Path) -> None:
    jobs = [{"op": "load", "folder": str(tiny_bundle), "threads": 1}, {"op": "paint", "prompt": "a cat"}]
    said = "".join(json.dumps(job) + "\n" for job in jobs)
    answer = watch.run(tmp_path, [build(Path(__file__).parent / "host.cpp")], said)
    assert len(answer.splitlines()) == 2
    assert "error" not in answer
    assert "thrown" not in answer
