"""How many bits agreement takes: rounding keeps to its grid, more bits agree more, and what reaches an aim is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmada_lite.bench.quality.bits import conclusions, denoiser_of, enough, main, rounded
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.model import MMaDA


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    for bits in (2, 4, 8, 12):
        made = rounded(weight, bits)
        for part, back in zip(weight.split(32, dim=1), made.split(32, dim=1), strict=True):
            step = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 0.5)
            assert ((part - back).abs() <= 0.5001 * step).all()
            assert max(len(row.unique()) for row in back) <= 2**bits
        assert not made[2].any()


def test_matrices_are_rounded_and_nothing_else(tiny_checkpoint: Path) -> None:
    plain, made = MMaDA.load(tiny_checkpoint), denoiser_of(tiny_checkpoint, 4)
    assert isinstance(made, TorchDenoiser)
    changed = {
        name
        for (name, before), after in zip(plain.named_parameters(), made.model.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    matrices = {name for name, value in plain.named_parameters() if value.ndim == 2 and "wte" not in name}
    assert changed == matrices


def test_the_fewest_bits_that_stay_above_an_aim_are_named() -> None:
    shares = {4: 0.80, 6: 0.97, 8: 0.95, 10: 0.985, 12: 0.995}
    assert (enough(shares, 0.96), enough(shares, 0.99), enough(shares, 0.999)) == (10, 12, None)
    rows = [
        {"bits": bits, "agreement": (share + 0.015,), "tasks": {"paint": {"agreement": (share,)}}}
        for bits, share in shares.items()
    ]
    expected = [
        "all: 96% from 6 bits on",
        "all: 99% from 10 bits on",
        "paint: 96% from 10 bits on",
        "paint: 99% from 12 bits on",
    ]
    assert conclusions(rows) == expected
    assert conclusions(rows[:1])[3] == "paint: 99% at none of these widths"


def test_the_command_measures_and_keeps_a_record(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bits.json"
    assert main([str(tiny_checkpoint), "--bits", "3", "16", "--prompts", "2", "--states", "2", "-o", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [each["bits"] for each in rows] == [3, 16]
    assert rows[0]["divergence"][0] > 100 * rows[1]["divergence"][0]
    assert np.isclose(rows[1]["agreement"][0], 1, atol=0.02)
    assert capsys.readouterr().out.startswith("| bits a weight | all, agreement % |")


@pytest.mark.parametrize("words", [["--bits", "1"], ["--bits", "8", "17"], ["--prompts", "0"], ["--states", "1001"]])
def test_what_cannot_be_measured_is_refused(
    words: list[str], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bits.json"
    assert main([str(tmp_path), *words, "-o", str(output)]) == 2
    assert f"{words[0]}" in capsys.readouterr().err
    assert main([str(tmp_path), "-o", str(output)]) == 2
    assert "neither a bundle (bundle.json) nor a checkpoint" in capsys.readouterr().err
    assert main([str(tiny_bundle), "-o", str(output)]) == 2
    assert "name the folder of a checkpoint" in capsys.readouterr().err
    assert not output.exists()
