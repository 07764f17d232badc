"""Laws of a run that begins from a checkpoint: it speaks the checkpoint's tokenizer, so that every token is known, unless
something was trained in its folder already; and of runs that time ends."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import config_of, scene_pool, single_pool, stage_settings, tiny_model

from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.train import __main__ as command
from mmada_lite.train import recipe, stages
from mmada_lite.train.data.pool import FIELDS
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.loop import LoopSettings, trained_weights
from mmada_lite.train.model import MMaDA
from mmada_lite.train.verbs import start_model
from mmada_lite.train.workspace import Workspace

SHIPPED = Path(__file__).parents[2] / "train" / "shipped" / "emoji"
WORDS = "model.transformer.wte.weight"


def renamed(tokenizer: Path) -> str:
    """The same tokenizer, in which the last token that it merges is another word."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    vocab = content["model"]["vocab"]
    vocab["zzz"] = vocab.pop(max(vocab, key=vocab.__getitem__))
    return json.dumps(content)


@pytest.fixture
def start(toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with its tokenizer, beside a working folder whose own spells one token otherwise."""
    folder, workspace = tmp_path / "start", tmp_path / "work"
    model = tiny_model(toy_sequences.vocabulary)
    torch.nn.init.normal_(model.transformer.wte.weight)  # nothing that a new model begins with
    model.save(folder, "float32")
    shutil.copyfile(toy_tokenizer, folder / "tokenizer.json")
    (workspace / "pool").mkdir(parents=True)
    (workspace / "tokenizer.json").write_text(renamed(toy_tokenizer), encoding="utf-8")
    for kind, pool in (("single", single_pool()), ("scene", scene_pool(60))):
        np.savez(workspace / "pool" / f"{kind}-00000.npz", **{name: getattr(pool, name) for name in FIELDS})

    def config(length: int, mask: int, eos: int, layers: int) -> TransformerConfig:
        return config_of(toy_sequences.vocabulary)

    monkeypatch.setattr(recipe, "transformer_config", config)
    monkeypatch.setattr(stages, "STAGES", {name: stage_settings(50) for name in stages.STAGES})
    return folder


def train(start: Path, verb: str, *arguments: str) -> int:
    return command.main([verb, "--folder", str(start.parent / "work"), "--threads", "1", *arguments])


def words_of(folder: Path, start: Path) -> torch.Tensor:
    """Rows of the embedding of a stage's last state."""
    model = MMaDA.load(start)
    stages.load_trained(folder, model, averaged=False)
    return model.state_dict()[WORDS]


@pytest.mark.parametrize(("verb", "stage"), [("one", "stage-one"), ("two", "stage-two")])
def test_a_run_speaks_the_tokenizer_of_its_start(
    start: Path, capsys: pytest.CaptureFixture[str], verb: str, stage: str
) -> None:
    work = start.parent / "work"
    assert train(start, verb, "--from", str(start), "--steps", "0") == 0
    known = len(words_of(work / stage, start)) - 256
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{known} of {known} text tokens known from {start}, whose tokenizer.json is that of {work} now"
    assert (work / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    assert torch.equal(words_of(work / stage, start), MMaDA.load(start).state_dict()[WORDS])
    assert train(start, verb, "--from", str(start), "--steps", "0") == 0
    assert capsys.readouterr().out.splitlines() == [f"{known} of {known} text tokens known from {start}"]


def test_what_was_trained_in_a_folder_keeps_its_tokenizer(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = start.parent / "work"
    own = (work / "tokenizer.json").read_bytes()
    assert train(start, "one", "--steps", "0") == 0
    capsys.readouterr()
    assert train(start, "two", "--from", str(start), "--steps", "0") == 0
    known = len(words_of(work / "stage-two", start)) - 256
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{known - 1} of {known} text tokens known from {start}; the others begin at random")
    assert (work / "tokenizer.json").read_bytes() == own
    there, here = MMaDA.load(start).state_dict()[WORDS], words_of(work / "stage-two", start)
    assert int((there != here).any(dim=1).sum()) == 1


@pytest.mark.parametrize("trained", ["gains/task-9-seconds/random-0", "policy/seed-0", "synergy/updates-4-rows-2/joint-0"])
def test_whatever_was_trained_counts(start: Path, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    work = start.parent / "work"
    state = work / trained / "state"
    state.mkdir(parents=True)
    (state / "weights.pt").touch()
    own = (work / "tokenizer.json").read_bytes()
    assert Workspace(work).speaks_its_own()
    assert train(start, "two", "--from", str(start), "--steps", "0") == 0
    assert "begin at random" in capsys.readouterr().out
    assert (work / "tokenizer.json").read_bytes() == own


def test_stage_three_and_gains_begin_with_every_word(
    toy_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the packaged model, in a folder for which `render` has trained another tokenizer."""
    shutil.copyfile(toy_tokenizer, tmp_path / "tokenizer.json")
    model, tokenizer, _ = start_model(Workspace(tmp_path), SHIPPED)
    assert len(tokenizer) == 768
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"768 of 768 text tokens known from {SHIPPED}, whose tokenizer.json is that of {tmp_path} now"
    shipped = MMaDA.load(SHIPPED).state_dict()
    assert all(torch.equal(shipped[name], value) for name, value in model.state_dict().items())
    assert (tmp_path / "tokenizer.json").read_bytes() == (SHIPPED / "tokenizer.json").read_bytes()
    assert (tmp_path / "vq" / "model" / "config.json").exists()


def test_a_start_that_does_not_fit_changes_nothing(
    start: Path, toy_sequences: Sequences, capsys: pytest.CaptureFixture[str]
) -> None:
    work = start.parent / "work"
    own = (work / "tokenizer.json").read_bytes()
    tiny_model(toy_sequences.vocabulary, layers=3).save(start, "float32")
    assert train(start, "two", "--from", str(start)) == 2
    (start / "tokenizer.json").unlink()
    assert train(start, "two", "--from", str(start)) == 2
    assert train(start, "two", "--from", str(start), "--seconds", "0") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "cannot be the start of this model" in errors[0]
    assert "tokenizer.json" in errors[1]
    assert (work / "tokenizer.json").read_bytes() == own
    assert not (work / "stage-two").exists()


@pytest.mark.parametrize(("verb", "stage"), [("one", "stage-one"), ("two", "stage-two")])
def test_time_ends_a_stage(start: Path, verb: str, stage: str) -> None:
    folder = start.parent / "work" / stage
    assert train(start, verb, "--from", str(start), "--seconds", "1e-9") == 0
    assert trained_weights(folder)[1] == 1
    assert train(start, verb, "--from", str(start), "--steps", "3", "--seconds", "1000") == 0
    assert trained_weights(folder)[1] == 3


@pytest.mark.parametrize("verb", ["one", "two", "three"])
@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_seconds_that_are_no_time_are_refused(start: Path, verb: str, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(start.parent.rglob("*"))
    assert train(start, verb, f"--seconds={seconds}") == 2
    assert f"a training of {float(seconds):g} seconds cannot be: give --seconds a number above 0" in capsys.readouterr().err
    assert sorted(start.parent.rglob("*")) == before
    assert LoopSettings(4, seconds=0.5).seconds == 0.5
