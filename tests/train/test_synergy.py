"""Laws of `train synergy` on a training in miniature: every run has its curve, a cut one goes on to the same, faults are one
line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TINY_VQ, config_of, single_pool, vocabulary_of

from mmada_lite.errors import Error
from mmada_lite.train import recipe, synergy
from mmada_lite.train.data.pool import FIELDS
from mmada_lite.train.model import MMaDA
from mmada_lite.train.vq import MagViT
from mmada_lite.vocabulary import Tokenizer, Vocabulary


@pytest.fixture
def workspace(tmp_path: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a pool, and the recipe's transformer small."""

    def new_model(tokenizer_file: Path, seed: int = 0) -> tuple[MMaDA, Tokenizer, Vocabulary]:
        tokenizer = Tokenizer.from_file(tokenizer_file)
        torch.manual_seed(seed)
        return MMaDA(config_of(vocabulary_of(tokenizer))), tokenizer, vocabulary_of(tokenizer)

    monkeypatch.setattr(recipe, "new_model", new_model)
    monkeypatch.setattr(synergy, "HELD_OUT_PICTURES", 64)
    (tmp_path / "pool").mkdir()
    pool = single_pool()
    np.savez(tmp_path / "pool" / "single-00000.npz", **{name: getattr(pool, name) for name in FIELDS})
    (tmp_path / "synergy" / "held").mkdir(parents=True)
    np.savez(tmp_path / "synergy" / "held" / "single-00000.npz", **{name: getattr(pool, name) for name in FIELDS})
    (tmp_path / "tokenizer.json").write_bytes(toy_tokenizer.read_bytes())
    return tmp_path


def arguments(workspace: Path, *more: str) -> list[str]:
    return [
        "--folder",
        str(workspace),
        "--updates",
        "4",
        "--every",
        "2",
        "--rows",
        "2",
        "-o",
        str(workspace / "out.json"),
        *more,
    ]


def test_every_run_has_a_curve_and_the_table_is_their_end(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synergy.main(arguments(workspace, "--seeds", "0", "1", "--plot", str(workspace / "curves.png"))) == 0
    content = json.loads((workspace / "out.json").read_text())
    assert set(content["curves"]) == {"0", "1"}
    for by_run in content["curves"].values():
        assert set(by_run) == {"joint", *synergy.TASKS}
        assert all([point["update"] for point in curve] == [2.0, 4.0] for curve in by_run.values())
        assert set(by_run["joint"][0]) == {"update", *synergy.TASKS}
        assert set(by_run["ask"][0]) == {"update", "ask"}
    assert content["curves"]["0"] != content["curves"]["1"]  # other first weights, other draws
    row = next(row for row in content["rows"] if row["task"] == "sum")
    ends = [(by_run["sum"][-1]["sum"], by_run["joint"][-1]["sum"]) for by_run in content["curves"].values()]
    assert row["differences"] == [round(joint - alone, 4) for alone, joint in ends]
    assert row["alone"] == pytest.approx(sum(alone for alone, _ in ends) / 2, abs=1e-4)
    assert "| sum |" in capsys.readouterr().out
    assert (workspace / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_that_is_cut_goes_on_to_the_same_curve(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert synergy.main(arguments(workspace)) == 0
    unbroken = json.loads((workspace / "out.json").read_text())["curves"]
    (workspace / "synergy" / "updates-4-rows-2").rename(workspace / "first")
    measure, calls = synergy.held_loss, 0

    def cut(*given: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:  # the joint run's second measurement
            raise KeyboardInterrupt
        return measure(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(synergy, "held_loss", cut)
    assert synergy.main(arguments(workspace)) == 130
    monkeypatch.setattr(synergy, "held_loss", measure)
    assert synergy.main(arguments(workspace)) == 0
    assert json.loads((workspace / "out.json").read_text())["curves"] == unbroken


def test_pictures_to_measure_with_are_made_once(workspace: Path) -> None:
    held_out_file = workspace / "synergy" / "held" / "single-00000.npz"
    held_out_file.unlink()
    with pytest.raises(Error, match=r"concepts\.npz is missing"):
        synergy.prepare(workspace)
    assert not held_out_file.exists()
    from mmada_lite.train.data.sources import STYLES

    noise = np.random.default_rng(0).integers(0, 256, size=(64, 96, 96, 4), dtype=np.uint8)
    np.savez(workspace / "concepts.npz", **{style.name: noise for style in STYLES})
    MagViT(TINY_VQ).save(workspace / "vq" / "model", "float32")
    synergy.prepare(workspace)
    written_at = held_out_file.stat().st_mtime_ns
    synergy.prepare(workspace)
    assert held_out_file.stat().st_mtime_ns == written_at


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--every", "3"), "--updates 4 is no multiple of --every 3"),
        (("--rows", "0"), "--rows 0 cannot be"),
        (("--rows", "99999999999"), "give 4096 at most"),
        (("--plot", "/dev/null/curves.png"), "choose another --plot"),
        (("--seeds", "1", "1"), "--seeds 1 1: give different whole numbers"),
        (("--folder", "nowhere"), "nowhere"),
    ],
)
def test_faults_are_one_line(workspace: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert synergy.main(arguments(workspace, *more)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (workspace / "out.json").exists()
