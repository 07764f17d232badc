"""The packaged model still writes what was written down before its code was moved: every step of 130 cases at every speed.

On the machine of the record nothing may differ. On another one a step may that was nearer than rounding to another choice, and
few answers and drawings may end otherwise."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from decode_margins import FARTHEST, edge_distance, greedy_gap, rank_gap
from shipped_cases import CASES, Kind
from shipped_ids import (
    RECORD,
    Difference,
    Run,
    Step,
    changed_files,
    difference,
    machine,
    model_files,
    read_record,
    run_case,
)

import mmada_lite
from mmada_lite import Model
from mmada_lite.decoding.settings import PRESETS

KINDS: tuple[Kind, ...] = ("text", "drawing", "question", "inpainting")
LEAST_EQUAL = 0.9  # of the ids of a kind at a speed: rounding is rare, so that more is a fault behind small margins
RUN = Run("a case", "fast", (Step((4, 5), (7, 8), 0.5), Step((6,), (9,), 2e-4), Step((7,), (3,), 5e-5)), 3, (7, 8, 9, 3), "x")


@cache
def opened(speed: str) -> Model:
    return mmada_lite.load(device="cpu", threads=1, speed=speed)


def writing(run: Run, step: int, token: int) -> Run:
    """The same run with another token at a step."""
    steps = list(run.steps)
    steps[step] = replace(steps[step], tokens=(token, *steps[step].tokens[1:]))
    return replace(run, steps=tuple(steps), ids=(*run.ids[:-1], token))


@pytest.mark.parametrize("speed", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_model_writes_what_it_wrote(kind: Kind, speed: str) -> None:
    header, runs = read_record()
    if changed := changed_files(header["files"], model_files()):
        pytest.fail(changed)
    recorded = {run.case: run for run in runs if run.speed == speed}
    cases = [case for case in CASES if case.kind == kind]
    compared = [difference(recorded[case.name], run_case(opened(speed), case, speed)) for case in cases]
    differences = [one for one in compared if one is not None]
    same_machine = header["machine"] == machine()
    counted = [str(one) for one in differences if one.counts(same_machine)]
    assert not counted, "\n".join(counted)
    assert sum(not one.same_ids for one in differences) <= (1 - LEAST_EQUAL) * len(cases), "\n".join(map(str, differences))


def test_the_record_holds_every_case_at_every_speed() -> None:
    _, runs = read_record()
    assert [(run.speed, run.case) for run in runs] == [(speed, case.name) for speed in PRESETS for case in CASES]
    assert Counter(case.kind for case in CASES) == {"text": 50, "drawing": 50, "question": 20, "inpainting": 10}
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(0 <= step.margin <= FARTHEST for run in runs for step in run.steps)


def test_the_record_is_of_these_very_files() -> None:
    files = json.loads(RECORD.read_text(encoding="utf-8").partition("\n")[0])["files"]
    assert changed_files(files, files) is None
    other = changed_files(files, files | {"weights.bin": "0" * 64})
    assert other is not None
    assert other.startswith("weights.bin of the packaged model changed")
    assert other.endswith("write the record anew: python tests/runtime/shipped_ids.py")
    assert changed_files(files, {name: sha for name, sha in files.items() if name != "tokenizer.json"}) is not None


@pytest.mark.parametrize(("step", "margin", "excused_elsewhere"), [(0, 0.5, False), (1, 2e-4, False), (2, 5e-5, True)])
def test_another_machine_excuses_what_rounding_may_turn(step: int, margin: float, excused_elsewhere: bool) -> None:
    planted = difference(RUN, writing(RUN, step, 1))
    assert planted is not None
    assert planted.margin == margin
    assert planted.counts(same_machine=True)
    assert planted.counts(same_machine=False) != excused_elsewhere
    assert f"a case, at speed fast: step {step} of 3 differs, margin {margin:.3g}" == str(planted)


def test_the_first_differing_step_decides() -> None:
    planted = difference(RUN, writing(writing(RUN, 2, 1), 1, 1))
    assert planted is not None
    assert planted.counts(same_machine=False)


@pytest.mark.parametrize(
    "played",
    [
        replace(RUN, steps=RUN.steps[:2]),
        replace(RUN, steps=(*RUN.steps, Step((8,), (1,)))),
        replace(RUN, model_calls=4),
        replace(RUN, ids=(7, 8, 9, 0)),
        replace(RUN, text="y"),
    ],
)
def test_nothing_excuses_what_no_step_explains(played: Run) -> None:
    planted = difference(RUN, played)
    assert planted is not None
    assert planted.counts(same_machine=False)


def test_equal_runs_do_not_differ() -> None:
    assert difference(RUN, replace(RUN, steps=tuple(replace(step, margin=0.0) for step in RUN.steps))) is None
    assert not Difference(RUN, "", 9.9e-5, same_ids=True).counts(same_machine=False)


def test_margins_of_tokens() -> None:
    logits = np.log(np.array([[[0.1, 0.6, 0.05, 0.25]]]))
    gaps, near = greedy_gap(logits, mask=0)
    assert gaps[0, 0] == pytest.approx(np.log(0.6 / 0.25))
    assert near == pytest.approx(np.log(6))
    assert greedy_gap(logits, mask=1)[0][0, 0] == pytest.approx(np.log(0.25 / 0.1))
    for uniform, token, distance in ((0.05, 0, 0.05), (0.12, 1, 0.02), (0.65, 1, 0.05), (0.99, 3, 0.01)):
        measured = edge_distance(logits, np.array([[token]]), np.array([[uniform]], np.float32))
        assert measured[0, 0] == pytest.approx(distance, abs=1e-6)


def test_margins_of_a_ranking() -> None:
    scores = np.array([[-0.5, -0.1, -np.inf, -0.2], [-3.0, -1.0, -2.5, -2.0]])
    assert rank_gap(scores, np.array([1, 3])) == pytest.approx(0.1)
    assert rank_gap(scores, np.array([2, 3])) == pytest.approx(0.3)
    assert rank_gap(scores, np.array([3, 4])) == FARTHEST  # all that may be taken is
