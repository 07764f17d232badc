"""What a person can do wrong with `mmada-lite train`, and what a disk can: each costs one clear line and exit code 2, and
nothing that was good is lost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TINY_VQ, config_of, discs, scene_pool, single_pool, stage_settings, tiny_model

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.train import __main__ as command
from mmada_lite.train import recipe, stages
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.pool import FIELDS, Pool
from mmada_lite.train.data.sequences import Sequences
from mmada_lite.train.data.sources import STYLES
from mmada_lite.train.judge import Judge
from mmada_lite.train.loop import trained_weights
from mmada_lite.train.model import Block, MMaDA
from mmada_lite.train.vq import MagViT
from mmada_lite.train.workspace import Workspace
from mmada_lite.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]


def write_pool(file: Path, pool: Pool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **{name: getattr(pool, name) for name in FIELDS})


@pytest.fixture
def workspace(toy_sequences: Sequences, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder up to the pool, for a transformer of two layers and short stages."""
    shutil.copyfile(toy_tokenizer, tmp_path / "tokenizer.json")
    write_pool(tmp_path / "pool" / "single-00000.npz", single_pool())
    write_pool(tmp_path / "pool" / "scene-00000.npz", scene_pool(40))

    def config(length: int, mask: int, eos: int, layers: int) -> TransformerConfig:
        return config_of(toy_sequences.vocabulary, layers=1 if layers == 1 else 2)

    monkeypatch.setattr(recipe, "transformer_config", config)
    monkeypatch.setattr(stages, "STAGES", {name: stage_settings(2) for name in stages.STAGES})
    return tmp_path


def train(folder: Path, *arguments: str) -> int:
    return command.main([*arguments, "--folder", str(folder), "--threads", "1"])


def fails(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line of a fault."""
    capsys.readouterr()
    assert train(folder, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mmada-lite: ")
    return lines[0]


def test_the_stages_run_in_order_and_go_on(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "stage-one holds no training state" in fails(capsys, workspace, "two")
    assert train(workspace, "one") == train(workspace, "two") == 0
    assert trained_weights(workspace / "stage-two")[1] == 2
    assert train(workspace, "one", "--steps", "3") == 0
    assert trained_weights(workspace / "stage-one")[1] == 3


def test_what_a_gpu_wants_is_asked_for(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(Block, "compile", lambda self, dynamic: compiled.append(dynamic))
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, sys.executable)
    assert train(workspace, "one", "--rows", "3", "--workers", "1", "--compile") == 0
    assert compiled
    assert all(compiled)
    assert trained_weights(workspace / "stage-one")[1] == 2


def test_compiling_without_a_compiler_is_told_before_it_begins(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    line = fails(capsys, workspace, "one", "--compile")
    assert "--compile needs no-such-compiler, which is not here" in line
    assert not (workspace / "stage-one").exists()


@pytest.mark.parametrize("kind", ["single", "scene"])
def test_pool_files_that_are_cut_empty_or_foreign_are_named(
    workspace: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = workspace / "pool" / f"{kind}-00000.npz"
    content = file.read_bytes()
    with np.load(file) as data:
        arrays = dict(data)

    def foreign() -> None:
        np.savez(file, **{name: array for name, array in arrays.items() if name != "grid"})

    def empty() -> None:
        np.savez(file, **{name: array[:0] for name, array in arrays.items()})

    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: file.write_bytes(content[: len(content) // 2]), "cannot be read"),
        (lambda: file.write_bytes(b""), "cannot be read"),
        (foreign, "cannot be read"),
        (empty, "is empty"),
    ]
    for change, message in changes:
        change()
        line = fails(capsys, workspace, "one")
        assert str(file) in line
        assert message in line
        assert "mmada_lite.train pool" in line
    file.unlink()
    assert f"holds no encoded pictures of kind '{kind}'" in fails(capsys, workspace, "one")
    assert not (workspace / "stage-one").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("judge",), "model"),
        (("pool",), "concepts.npz is missing: run `python -m mmada_lite.train render`"),
        (("vq",), "concepts.npz is missing: run `python -m mmada_lite.train render`"),
        (("two",), "holds no training state: run that stage first"),
        (("three",), "holds no training state: run that stage first"),
        (("one", "--from", "nowhere"), "nowhere"),
        (("one", "--groups", "asc=3"), "no task is called 'asc'; did you mean 'ask'?"),
        (("one", "--groups", "ask=-1"), "the task 'ask' cannot have -1 groups in a batch; give a number from 0 on"),
        (("export",), "no stage 'last' was trained"),
        (("export", "--stage", "seven"), "no stage 'seven' was trained"),
        (("three", "--tasks", "sun"), "the task 'sun' has no rewards"),
        (("three", "--from", "nowhere"), "nowhere"),
        (("three", "--rate", "0"), "the learning rate cannot be 0 times the recipe's: give --rate a number above 0"),
    ],
)
def test_steps_out_of_order_say_what_is_missing(
    workspace: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, workspace, *arguments)


def test_an_empty_folder_lacks_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no tokenizer at" in fails(capsys, tmp_path / "nowhere", "one")


def test_a_fault_is_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmada_lite.train", "one", "--threads", "1", "--folder", str(tmp_path / "nowhere")]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("mmada-lite: no tokenizer at ")
    assert wrong.stderr.count("\n") == 1


def test_groups_are_a_task_and_a_number(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'ask=many' is not TASK=NUMBER" in fails(capsys, workspace, "one", "--groups", "ask=many")


def test_an_unknown_verb_lists_those_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'four' (choose from 'fetch', 'render'" in fails(capsys, tmp_path, "four")


def test_a_start_of_another_shape_is_refused(
    workspace: Path, toy_sequences: Sequences, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = workspace / "start"
    tiny_model(toy_sequences.vocabulary, layers=3).save(start, "float32")
    shutil.copyfile(toy_tokenizer, start / "tokenizer.json")
    assert "cannot be the start of this model" in fails(capsys, workspace, "one", "--from", str(start))
    assert not (workspace / "stage-one").exists()


def test_a_loss_that_is_no_number_is_one_line_and_leaves_the_state(
    workspace: Path,
    toy_sequences: Sequences,
    toy_tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, spoilt = workspace / "start", tiny_model(toy_sequences.vocabulary)
    torch.nn.init.constant_(spoilt.transformer.ln_f.weight, float("nan"))
    spoilt.save(start, "float32")
    shutil.copyfile(toy_tokenizer, start / "tokenizer.json")
    assert "the loss of step 0 is nan" in fails(capsys, workspace, "one", "--from", str(start))
    assert not (workspace / "stage-one" / "state").exists()
    assert train(workspace, "one") == 0
    before = {path.name: path.read_bytes() for path in (workspace / "stage-one" / "state").iterdir() if path.is_file()}
    unified = stages.unified_loss
    monkeypatch.setattr(stages, "unified_loss", lambda logits, rows: unified(logits, rows) * float("inf"))
    assert "the loss of step 2 is inf" in fails(capsys, workspace, "one", "--steps", "4")
    assert {path.name: path.read_bytes() for path in (workspace / "stage-one" / "state").iterdir() if path.is_file()} == before
    assert trained_weights(workspace / "stage-one")[1] == 2


def test_a_state_of_another_shape_is_refused_and_kept(
    workspace: Path, toy_sequences: Sequences, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(workspace, "one") == 0
    before = (workspace / "stage-one" / "state" / "weights.pt").read_bytes()
    other: Vocabulary = toy_sequences.vocabulary
    monkeypatch.setattr(recipe, "transformer_config", lambda *_: config_of(other, width=16))
    assert "does not fit this training" in fails(capsys, workspace, "one", "--steps", "4")
    assert (workspace / "stage-one" / "state" / "weights.pt").read_bytes() == before


def test_the_log_says_what_was_trained(workspace: Path) -> None:
    assert train(workspace, "one") == 0
    lines = [json.loads(line) for line in (workspace / "stage-one" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all({"loss", "norm", "seconds", "paint", "sum"} <= set(line) for line in lines)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"])
def test_a_state_that_is_cut_is_one_line(workspace: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(workspace, "one") == 0
    file = workspace / "stage-one" / "state" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "does not fit this training" in fails(capsys, workspace, "one", "--steps", "4")


@pytest.mark.parametrize("layers", [4, 7, 1_000_000])
def test_blocks_that_could_not_be_stacked_are_refused(toy_tokenizer: Path, layers: int) -> None:
    with pytest.raises(Error, match=r"cannot be stacked to the model's 6: give --layers one of 1, 2, 3, 6"):
        recipe.new_model(toy_tokenizer, layers=layers)


def test_two_stacks_a_stage_one_of_fewer_blocks(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(workspace, "one", "--layers", "1") == 0
    assert "does not fit this training" in fails(capsys, workspace, "one", "--steps", "4")
    assert "another shape" in fails(capsys, workspace, "export", "--stage", "one")
    assert train(workspace, "two") == 0
    blocks = {
        name.split(".blocks.")[1].split(".")[0] for name in trained_weights(workspace / "stage-two")[0] if ".blocks." in name
    }
    assert blocks == {"0", "1"}


def test_the_stage_before_must_be_whole_and_of_this_shape(
    workspace: Path, toy_sequences: Sequences, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(workspace, "one") == 0
    file, other = workspace / "stage-one" / "state" / "weights.pt", toy_sequences.vocabulary
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "transformer_config", lambda *_: config_of(other, layers=3))
        assert "stage-one was trained with another shape" in fails(capsys, workspace, "two")
    file.write_bytes(file.read_bytes()[:5000])
    assert "weights.pt cannot be read" in fails(capsys, workspace, "two")


def test_export_finds_what_a_kill_left(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(workspace, "one") == 0
    (workspace / "stage-one" / "state").rename(workspace / "stage-one" / "state.old")
    assert Workspace(workspace).stage("last") == workspace / "stage-one"
    assert "no stage 'two' was trained" in fails(capsys, workspace, "export", "--stage", "two")


def test_icons_that_are_cut_or_of_other_concepts_are_named(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = workspace / "concepts.npz"
    MagViT(TINY_VQ).save(workspace / "vq" / "model")
    few = {style.name: discs()[0, :3] for style in STYLES}
    np.savez(file, **few)
    assert f"does not hold {len(CONCEPTS)} icons of each style" in fails(capsys, workspace, "pool")
    np.savez(file, other=discs()[0])
    assert f"does not hold {len(CONCEPTS)} icons of each style" in fails(capsys, workspace, "pool")
    for content in (file.read_bytes()[:1000], b"", b"no archive"):
        file.write_bytes(content)
        assert "concepts.npz cannot be read" in fails(capsys, workspace, "pool")


def test_a_judge_of_other_concepts_is_refused(tmp_path: Path) -> None:
    Judge(classes=3).save(tmp_path, {})
    with pytest.raises(Error, match="is no judge of these concepts"):
        Judge.load(tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(b"cut")
    with pytest.raises(Error, match="is no judge of these concepts"):
        Judge.load(tmp_path)


NUMBERS = [(f"--{name}", 1) for name in ("threads", "shards", "rows", "prompts", "copies")] + [
    (f"--{name}", 0) for name in ("steps", "seed", "workers")
]


@pytest.mark.parametrize(("option", "least"), NUMBERS)
def test_numbers_that_cannot_be(option: str, least: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["two", "--folder", str(tmp_path), option, str(least - 1)]) == 2
    assert f"{option} {least - 1} cannot be; give a whole number from {least} on" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", ["model.safetensors", "vq/model.safetensors", "tokenizer.json"])
def test_a_start_that_is_cut_leaves_nothing(tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    start, bare = tmp_path / "start", tmp_path / "bare"
    shutil.copytree(ROOT / "train" / "shipped" / "emoji", start)
    (start / wrong).write_bytes((start / wrong).read_bytes()[:1000])
    assert train(bare, "three", "--from", str(start), "--tasks", "difference3") == 2
    assert str(start / wrong) in capsys.readouterr().err
    assert not bare.exists() or not list(bare.rglob("*.*"))


def test_what_is_only_written_needs_neither_pool_nor_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, bare = ROOT / "train" / "shipped" / "emoji", tmp_path / "bare"
    few = ("--few-steps", "--trace", "--prompts", "1", "--copies", "1", "--steps", "2")
    assert train(bare, "three", "--from", str(start), "--tasks", "difference3", *few) == 0
    assert "no stage 'last' was trained" in (line := fails(capsys, bare, "export"))
    assert "there are seed-0 (see docs/training.md)" in line
    assert train(bare, "export", "--stage", "seed-0") == 0
    assert (bare / "emoji" / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    before, after = MMaDA.load(start).state_dict(), MMaDA.load(bare / "emoji").state_dict()
    assert before.keys() == after.keys()
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 1e-3
    theirs, ours = MagViT.load(start / "vq").state_dict(), MagViT.load(bare / "emoji" / "vq").state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
