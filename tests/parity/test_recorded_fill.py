"""What our torch model wrote into holes is what it writes today, and what exported graphs write, step by step."""

import json
from pathlib import Path

import pytest
from recorded_fill import FILE, LEAST, decoded

from mmada_lite.bench.parity.check import ENGINES, _Models

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> _Models:
    return _Models(golden, tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_recorded_hole_is_filled_step_by_step(models: _Models, engine: str) -> None:
    for case in RECORDED["cases"]:
        steps, ids, calls = decoded(models.denoiser(engine, case["model"]), case)
        assert (steps, ids, calls) == (case["steps"], case["ids"], case["model_calls"]), (case["model"], case["name"])


def test_the_recording_has_room_and_meets_what_it_is_for() -> None:
    cases, closed, ended = RECORDED["cases"], 0, 0
    assert {case["model"] for case in cases} == {"llm/mha", "llm/gqa"}
    for case in cases:
        assert case["margin"] >= LEAST
        given = [(place, token) for place, token in enumerate(case["answer"]) if token != case["mask"]]
        assert all(case["ids"][place] == token for place, token in given)
        tail = given[-1][0] + 1 if given else 0
        stops = {place for place, token in enumerate(case["ids"]) if token in case["stop"] and case["answer"][place] != token}
        closed += any(place < tail for place in stops)
        ended += any(place >= tail for place in stops)
    assert closed >= 5
    assert ended >= 2
