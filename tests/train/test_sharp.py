"""Laws of the sharper decoder: it begins as the old one and leaves every code alone, each loss asks for what it says, and a
training that was stopped goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from toys import TINY_VQ, discs, records

from mmada_lite.export.checkpoint import Tower
from mmada_lite.train import stage_vq
from mmada_lite.train.sharp import (
    SharpObjective,
    SharpSettings,
    SharpSource,
    edge_losses,
    grow_decoder,
    saturated,
)
from mmada_lite.train.vq import MagViT

LARGER = Tower(8, (1, 1, 2, 2), (1, 2, 1, 3))
SHARP = SharpSettings()
SETTINGS = stage_vq.VQSettings(steps=6, batch=4, pieces=2, warmup=2, decoder_only=True)


def tiny_vq() -> MagViT:
    torch.manual_seed(0)
    return MagViT(TINY_VQ)


def source() -> SharpSource:
    return SharpSource(discs(), discs()[0, :4], 0.5, 0.3, 0.5)


def sharpened(folder: Path, until: int | None = None) -> MagViT:
    model = grow_decoder(tiny_vq(), LARGER)
    torch.manual_seed(1)
    return stage_vq.train_vq(model, source(), {}, folder, SETTINGS, SharpObjective(model, SETTINGS, SHARP), until)


def test_a_grown_decoder_draws_what_the_old_one_draws() -> None:
    model, pixels = tiny_vq(), stage_vq.to_tensor(source().batch(3, np.random.default_rng(0)))
    grown = grow_decoder(model, LARGER)
    codes = model.encode(pixels)
    assert torch.equal(grown.encode(pixels), codes)
    assert torch.equal(grown.decode(codes), model.decode(codes))
    assert sum(p.numel() for p in grown.decoder.parameters()) > sum(p.numel() for p in model.decoder.parameters())
    assert grow_decoder(model, TINY_VQ.decoder) is model
    wider = grow_decoder(model, Tower(8, (2, 1, 2, 2), (1, 1, 1, 1)))  # another width where pixels are finest, coarse kept
    assert torch.equal(wider.decoder.mid.block_1.conv1.weight, model.decoder.mid.block_1.conv1.weight)
    assert torch.equal(wider.encode(pixels), codes)


def test_sharpening_leaves_the_codes_alone_and_moves_all_of_the_decoder(tmp_path: Path) -> None:
    model, pixels = tiny_vq(), stage_vq.to_tensor(source().batch(4, np.random.default_rng(0)))
    codes, old = model.encode(pixels), dict(grow_decoder(model, LARGER).named_parameters())
    sharp = sharpened(tmp_path)
    assert sharp.config == replace(TINY_VQ, decoder=LARGER)
    assert torch.equal(sharp.encode(pixels), codes)
    for name, parameter in sharp.named_parameters():
        assert torch.equal(parameter, old[name]) == name.startswith("encoder."), name


def test_sharpening_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = sharpened(tmp_path / "whole")
    sharpened(tmp_path / "cut", until=3)
    resumed = sharpened(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    unbroken, broken = records(tmp_path / "whole"), records(tmp_path / "cut")
    timeless = [[{k: v for k, v in record.items() if k != "seconds"} for record in run] for run in (unbroken, broken)]
    steps = [[record for record in run if "ringing" in record] for run in timeless]
    assert steps[0] == steps[1]
    assert [record["step"] for record in steps[0]] == list(range(SETTINGS.steps))


def test_losses_weigh_as_the_pace_says() -> None:
    objective = SharpObjective(tiny_vq(), SETTINGS, replace(SHARP, pace=((0, 1.0, 1.0), (300, 3.0, 2.0))))
    steps = (0, 199, 200, 300, 400, 5000)
    assert [objective.factors(step)["right"] for step in steps] == [1, 1, 1, 3, 3, 3]
    assert [objective.factors(step)["sharp_edges"] for step in steps] == [1, 1, 1, 2, 2, 2]


def test_what_the_losses_ask_for() -> None:
    rows = (torch.arange(32) - 13.5) * 0.4  # an edge in the middle of two windows
    sharp, soft = (torch.tanh(steep * rows).expand(1, 3, 32, 32) for steep in (4.0, 1.0))
    moved = torch.tanh(4.0 * (rows - 0.4)).expand_as(sharp)
    halo = sharp - 0.5 * torch.sign(rows) * torch.exp(-((rows.abs() - 1.5) ** 2) * 4)
    blur, ring = (
        {
            name: float(edge_losses(made, sharp)[part])
            for name, made in {"same": sharp, "soft": soft, "moved": moved, "halo": halo}.items()
        }
        for part in (0, 1)
    )
    assert blur["same"] == ring["same"] == 0
    assert blur["soft"] > 4 * max(ring["soft"], blur["halo"], blur["moved"])
    assert ring["halo"] > 4 * max(ring["soft"], ring["moved"], 0.001)
    beyond = torch.tensor([1.5, 0.5], requires_grad=True)
    assert saturated(beyond).tolist() == [1.0, 0.5]
    torch.autograd.backward(saturated(beyond).sum())
    assert beyond.grad is not None
    assert beyond.grad.tolist() == [1.0, 1.0]


def test_tidy_pictures_come_in_their_share() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 1.0):
        pictures = SharpSource(discs(), discs()[0, :4], 0.5, 0.3, share).batch(6, rng)
        assert pictures.shape == (6, 64, 64, 3)
        assert pictures.dtype == np.uint8
