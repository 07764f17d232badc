"""Laws of `train gains` in miniature: every way is trained, asked and told against the start; a cut run goes on; time ends a
training between batches; faults are one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import PLANTED, config_of, policy_settings, records, stage_three, tiny_model, vocabulary_of

from mmada_lite.decoding.settings import TextSettings
from mmada_lite.train import gains, recipe, rewards
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.loop import whole_state
from mmada_lite.train.model import MMaDA
from mmada_lite.train.workspace import Workspace
from mmada_lite.vocabulary import Tokenizer, Vocabulary


@pytest.fixture
def start(tmp_path: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint without pictures, and the recipe's transformer and its answers small."""

    def new_model(tokenizer_file: Path, seed: int = 0, layers: int = 6) -> tuple[MMaDA, Tokenizer, Vocabulary]:
        tokenizer = Tokenizer.from_file(tokenizer_file)
        torch.manual_seed(seed)
        return MMaDA(config_of(vocabulary_of(tokenizer))), tokenizer, vocabulary_of(tokenizer)

    folder = tmp_path / "start"
    tiny_model(vocabulary_of(Tokenizer.from_file(toy_tokenizer))).save(folder, "float32")
    (folder / "tokenizer.json").write_bytes(toy_tokenizer.read_bytes())
    (tmp_path / "tokenizer.json").write_bytes(toy_tokenizer.read_bytes())
    (tmp_path / "vq" / "model").mkdir(parents=True)
    monkeypatch.setattr(recipe, "new_model", new_model)
    monkeypatch.setattr(recipe, "TEXT", TextSettings(answer_length=8, steps=4, block_length=8))
    monkeypatch.setattr(gains, "ROWS", 2)
    return folder


def run(start: Path, *more: str) -> int:
    base = ["--folder", str(start.parent), "--from", str(start), "--prompts", "2", "--count", "6", "--threads", "1"]
    return gains.main([*base, *more])


def test_every_way_is_trained_asked_and_told(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = start.parent / "out.json"
    assert run(start, "--batches", "1", "--seeds", "0", "1", "-o", str(output)) == 0
    told = json.loads(output.read_text())
    assert [(row["way"], row["seed"]) for row in told["rows"]] == [(way, seed) for seed in (0, 1) for way in gains.ARMS]
    for row in told["rows"]:
        assert {name: found["total"] for name, found in row["right"].items()} == {"all steps": 6, "a quarter": 6}
        assert row["steps"] == (1 if row["way"] == "supervised" else 2)
        assert row["seconds"] > 0
    table = capsys.readouterr().out.strip().splitlines()
    assert [line.split("|")[1].strip() for line in table if "%" in line] == ["start", *(row["way"] for row in told["rows"])]
    assert sum("mean of 2" in line for line in table) == 3
    before = output.read_text()
    states = [*start.parent.glob("gains/*/*/state/weights.pt")]
    assert len(states) == 6
    for state in states:
        state.unlink()  # what was measured is kept, and nothing is trained again
    assert run(start, "--batches", "1", "--seeds", "0", "1", "-o", str(output)) == 0
    assert output.read_text() == before
    assert not [*start.parent.glob("gains/*/*/state/weights.pt")]


def test_runs_of_another_start_want_another_folder(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (start.parent / "gains").mkdir()
    (start.parent / "gains" / "start.txt").write_text("/elsewhere")
    assert run(start, "--batches", "1") == 2
    assert "began with /elsewhere" in capsys.readouterr().err


def test_a_cut_run_goes_on_where_it_was(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(start.parent)
    way = gains.Run(start.parent, start, "difference3", "random", 0, None, 2, 2, 0.0)
    whole = gains.train(way, workspace)
    cut = replace(way, folder=start.parent / "other")
    half = replace(cut, batches=1)
    gains.train(half, workspace)
    half.state_folder.parent.rename(cut.state_folder.parent)  # the same run, told to end later
    model, _, steps = gains.train(cut, workspace)
    assert steps == whole[2] == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole[0].parameters(), strict=True))
    assert [record["step"] for record in records(cut.state_folder)] == [0, 1, 2, 3]


def test_a_sum_without_rewards_is_trained_under_supervision_alone(start: Path) -> None:
    assert run(start, "--task", "sum2", "--ways", "supervised", "--batches", "1") == 0
    assert [task for task in gains.SUMS if task not in recipe.REWARDS] == list(gains.SUMS_WITHOUT_REWARDS)


def test_each_ablation_changes_one_thing_of_the_settings() -> None:
    base = recipe.policy_settings(("difference3",), 0, 2, **gains.BASE)
    for way, changes in gains.ABLATIONS.items():
        settings = recipe.policy_settings(("difference3",), 0, 2, **{**gains.BASE, **changes})
        assert (settings == base) == (way == "random")
        assert len(changes) == (way != "random")
    assert gains.ARMS["random"] == gains.ABLATIONS["random"] == {}
    assert recipe.policy_settings(("difference3",), 0, 2, **{**gains.BASE, **gains.ARMS["trace"]}).trace == 1


def test_time_ends_a_training_between_batches(
    toy_sequences: Sequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, reward in PLANTED.items():
        monkeypatch.setitem(rewards.REWARDS, name, reward)
    settings = policy_settings(("letters",), 40)
    settings = replace(settings, loop=replace(settings.loop, seconds=1e-6))
    run = stage_three(tiny_model(toy_sequences.vocabulary), toy_sequences.tokenizer, tmp_path, settings)
    run.train()
    assert run.loop.step == settings.updates  # the second update of a batch is made
    assert whole_state(tmp_path) is not None
    run.train()
    assert run.loop.step == settings.updates


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seconds", "0"], "--seconds 0 cannot be"),
        (["--seconds", "nan"], "--seconds nan cannot be"),
        (["--seconds", "inf"], "--seconds inf cannot be"),
        (["--seconds", "9", "--batches", "1"], "--batches: not allowed with argument --seconds"),
        (["--ablate", "--ways", "trace"], "--ways: not allowed with argument --ablate"),
        (["--guidance", "-1"], "guidance is -1.0; use a number of at least 0"),
        (["--threads", "two"], "--threads: 'two' is not a whole number"),
        (["--batches", "0"], "--batches 0 cannot be"),
        (["--seeds", "1", "1"], "give different whole numbers"),
        (["--task", "sum2"], "the task 'sum2' has no rewards"),
        (["--task", "count"], "invalid choice: 'count'"),
        (["--ways", "trase"], "invalid choice: 'trase'"),
        (["--task", "paint", "--batches", "1"], "judge"),
    ],
)
def test_faults_are_one_line(start: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert run(start, *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert line in said[-1]
    assert not (start.parent / "gains").exists()


def test_a_start_that_is_none_does_not_keep_the_folder_from_the_right_one(
    start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(start, "--from", str(start.parent / "strat"), "--batches", "1") == 2
    assert "strat" in capsys.readouterr().err
    assert run(start, "--ways", "supervised", "--batches", "1") == 0
