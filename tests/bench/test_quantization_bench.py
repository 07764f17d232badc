"""The truth table: a model loses nothing against itself, coarser formats lose more, writes are those of decoding."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import mmada_lite
from mmada_lite.bench.quality.quantization import (
    Row,
    against,
    difference,
    fresh_prompts,
    interval,
    main,
    plot,
    requests,
    table,
    tasks_of,
)
from mmada_lite.bench.quality.trajectories import State, answer, compare, log_softmax, trajectories, written_tokens
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.quant.prompts import NEEDED, TASKS, Prompt, built_in

PROMPTS = [Prompt("chat", "hello"), Prompt("paint", "a cat"), Prompt("ask", "what is this?"), Prompt("paint", "a red apple")]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> mmada_lite.Model:
    return mmada_lite.load(tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def states(model: mmada_lite.Model) -> list[State]:
    return trajectories(model, PROMPTS, 4)


def test_states_are_those_of_decoding(model: mmada_lite.Model, states: list[State]) -> None:
    assert {state.task for state in states} == set(NEEDED)
    assert {len(state.windows) for state in states if state.task == "paint"} == {2}  # with guidance
    mask = model.vocabulary.special.mask
    for state in states:
        assert state.written.any()
        assert (state.windows[0].tokens[0, state.windows[0].rows[0]] == mask).all()


def test_what_is_drawn_from_a_thought_is_told_apart(model: mmada_lite.Model) -> None:
    """The packaged model thinks, random weights do not."""
    known = mmada_lite.load(device="cpu", threads=1)
    assert (tasks_of(known), tasks_of(model)) == (TASKS, NEEDED)
    prompt = Prompt("think", "a cat left of a car")
    followed = trajectories(known, [prompt, Prompt("paint", "a cat")], 4)
    assert [(state.prompt, state.task, state.head) for state in followed[-4:]] == [(0, "think", "image")] * 4
    row = followed[-1].windows[0].tokens[0].tolist()
    assert row[0] == known.vocabulary.special.r2i
    assert "left cat, right car" in known.tokenizer.decode(row[: row.index(known.vocabulary.special.soi)])
    plain = trajectories(model, [prompt], 4)
    assert plain[0].windows[0].tokens[0, 0] == model.vocabulary.special.t2i


def test_what_is_written_is_what_decoding_wrote(model: mmada_lite.Model) -> None:
    for prompt in PROMPTS[:2]:
        followed = trajectories(model, [prompt], 1000)
        offset = model.vocabulary.image_code_offset if prompt.task == "paint" else 0
        for now, then in pairwise(followed):
            places = now.windows[0].rows[0][now.written]
            tokens = written_tokens(log_softmax(answer(model.denoiser, now)), now)[now.written] + offset
            usual = tokens != model.vocabulary.special.mask  # a guess that is the mask itself is replaced
            np.testing.assert_array_equal(then.windows[0].tokens[0, places][usual], tokens[usual])


def test_a_model_loses_nothing_against_itself(model: mmada_lite.Model, states: list[State]) -> None:
    found = compare(model.denoiser, {"itself": model.denoiser}, states, len(PROMPTS))["itself"]
    np.testing.assert_array_equal(found.agreed, found.positions)
    assert np.abs(found.divergence).max() < 1e-9
    assert found.flips.sum() == 0
    assert (found.positions > 0).all()
    assert len(found.seconds) == len(states)


def test_coarser_formats_lose_more(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for precision in ("fp16", "int8", "int4"):
        export_checkpoint(tiny_checkpoint, tmp_path / precision, precision=precision)  # type: ignore[arg-type]
    rows = against(tiny_bundle, [tmp_path / name for name in ("fp16", "int8", "int4")], prompts=2, states=2)
    divergences = [row.divergence[0] for row in rows]
    assert divergences == sorted(divergences)
    assert rows[0].bits > rows[1].bits > 8  # the int4 preset fills the tiny model's short columns up to 128
    assert all(low <= mean <= high for row in rows for mean, low, high in (row.agreement, row.divergence, row.flips))


def test_bundles_of_another_model_are_refused(tiny_bundle: Path) -> None:
    with pytest.raises(Error, match="is of another model"):
        against(tiny_bundle, [mmada_lite.model.embedded_bundle()], prompts=1, states=1)


def test_prompts_of_the_comparison_are_not_those_of_calibration() -> None:
    asked = fresh_prompts(20)
    assert {task: sum(prompt.task == task for prompt in asked) for task in NEEDED} == dict.fromkeys(NEEDED, 20)
    seen = {prompt.text for seed in range(3) for task in ("paint", "chat") for prompt in built_in(task, 32, seed)}  # type: ignore[arg-type]
    assert not seen & {prompt.text for prompt in asked if prompt.task != "ask"}


def test_intervals_hold_the_mean_and_pairs_cancel(model: mmada_lite.Model, states: list[State]) -> None:
    found = compare(model.denoiser, {"itself": model.denoiser}, states, len(PROMPTS))["itself"]
    assert difference([found], [found]) == {"divergence": (0, 0, 0), "flips": (0, 0, 0)}
    mean, low, high = interval(np.arange(50.0), np.ones(50, int))
    assert low < mean == 24.5 < high
    assert 3 < high - mean < 6


def test_all_of_a_candidate_is_stored_alike() -> None:
    wanted = requests(["int8", "int4-b64"], ["rtn", "gptq"], 4, 1)
    assert list(wanted)[:4] == ["int8 rtn", "int8 gptq", "int4-b64 rtn", "int4-b64 gptq"]
    assert dict(wanted["int4-b64 rtn"].store)["image_head"] == "int4-b64"
    assert wanted["int4-b64 gptq unmasked 0"].seen == "unmasked"
    assert wanted["--format int4 gptq"].store == ()


def test_the_command_prints_a_table_and_json(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tiny_checkpoint), "-o", str(tmp_path / "out"), "--formats", "int4-b32", "--methods", "gptq"]
    assert main([*words, "--prompts", "1", "--states", "1", "--calibrate-on", "1", "--seeds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = json.loads(lines[-1])
    assert {row["name"] for row in said["rows"]} >= {"int4-b32 gptq", "int4-b32 gptq unmasked 0", "--format int8 gptq"}
    assert set(said["masked against unmasked"]["int4-b32"]) == {"divergence", "flips"}
    assert lines[0].startswith("| | MB |")
    assert (tmp_path / "out" / "truth.md").read_text().startswith("| | MB |")


def test_no_matplotlib_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    row = Row("int8 rtn", 10, 8.0, (1, 1, 1), (0, 0, 0), (0, 0, 0), 0.1)
    with pytest.raises(Error, match=r'pip install "mmada-lite\[bench\]"'):
        plot([row], tmp_path / "truth.png")
    assert "| int8 rtn | 0.00 | 8.0 | 100.00 (100.00 to 100.00) |" in table([row])


def test_counts_of_nothing_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--prompts", "0"], ["--states", "0"], ["--seeds", "-1"]):
        assert main([str(tmp_path), "-o", str(tmp_path / "out"), *words]) == 2
        assert "are at least 1, --seeds at least 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
