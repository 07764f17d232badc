"""The torch image tokenizer against the reference's recorded numbers, and the laws of its codes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import Tower, VQConfig
from mmada_lite.train.vq import LookupFree, MagViT

GOLDEN = Path(__file__).parents[1] / "golden" / "vq"
TOLERANCE = 1e-4
SMALL = VQConfig(Tower(8, (1, 2, 1), (1, 1, 2)), Tower(8, (1, 1, 2), (1, 2, 1)), 5, resolution=16, group_norm_groups=4)


@pytest.fixture(scope="module")
def model() -> MagViT:
    return MagViT.load(GOLDEN).requires_grad_(False)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(GOLDEN / "io.safetensors")


@pytest.mark.parametrize("image", ["img0", "img1"])
def test_both_directions_equal_the_reference(model: MagViT, recorded: dict[str, Tensor], image: str) -> None:
    pixels, z = recorded[f"{image}.pixels"], recorded[f"{image}.z"]
    output = model(pixels)
    assert float((output.z - z).abs().max()) < TOLERANCE
    assert torch.equal(output.zq, recorded[f"{image}.zq_pm1"])
    assert float((output.pixels - recorded[f"{image}.decoded"]).abs().max()) < TOLERANCE
    assert torch.equal(model.encode(pixels), recorded[f"{image}.codes"])
    grid = (z.shape[2], z.shape[3])
    for codes, decoded in (("codes", "decoded"), ("random_codes", "random_decoded")):
        difference = model.decode(recorded[f"{image}.{codes}"], grid) - recorded[f"{image}.{decoded}"]
        assert float(difference.abs().max()) < TOLERANCE


def test_a_square_grid_need_not_be_said(model: MagViT, recorded: dict[str, Tensor]) -> None:
    codes = recorded["img0.codes"]
    assert torch.equal(model.decode(codes), model.decode(codes, (8, 8)))


def test_codes_and_signs_are_one_thing() -> None:
    quantize = LookupFree(5)
    codes = torch.arange(32).reshape(2, 16)
    signs = quantize.codewords(codes, (2, 8))
    assert torch.equal(quantize.codes(signs), codes)
    assert signs[0, :, 0, 1].tolist() == [-1, -1, -1, -1, 1]  # the last channel is the least significant bit
    assert quantize.codes(torch.zeros(1, 5, 1, 1)).item() == 0


def test_the_gradient_passes_straight_through() -> None:
    z = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    signs = LookupFree(5).signs(z)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    (signs * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert torch.equal(z.grad, weight)


def test_every_part_of_a_small_tokenizer_learns() -> None:
    model = MagViT(SMALL)
    output = model(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    (output.pixels.square().mean() + output.z.square().mean()).backward()
    assert output.pixels.shape == (2, 3, 16, 16)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters() if ".k.bias" not in n)


def test_names_are_the_references(tmp_path: Path) -> None:
    model = MagViT(SMALL)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == SMALL.expected_tensors()
    model.save(tmp_path)
    again = MagViT.load(tmp_path)
    assert again.config == SMALL
    pixels = torch.rand(1, 3, 8, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(again.encode(pixels), model.encode(pixels))
    assert torch.equal(again.decode(again.encode(pixels), (2, 6)), model.decode(model.encode(pixels), (2, 6)))


def test_a_half_precision_folder_keeps_whole_numbers_whole(tmp_path: Path) -> None:
    MagViT(SMALL).save(tmp_path, "float16")
    again = MagViT.load(tmp_path)
    assert again.quantize.power_vals.tolist() == [16, 8, 4, 2, 1]
    assert again.quantize.power_vals.dtype == torch.int64


@pytest.mark.parametrize(
    ("codes", "grid", "message"),
    [
        (torch.zeros(1, 7, dtype=torch.int64), None, "7 codes do not fill a 2 x 2 grid"),
        (torch.zeros(1, 8, dtype=torch.int64), (3, 3), "8 codes do not fill a 3 x 3 grid"),
        (torch.full((1, 4), 32), None, r"codes must lie in 0\.\.31"),
        (torch.full((1, 4), -1), None, r"codes must lie in 0\.\.31"),
    ],
)
def test_impossible_codes(codes: Tensor, grid: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(Error, match=message):
        MagViT(SMALL).decode(codes, grid)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 18)])
def test_impossible_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(Error, match="sides multiples of 4"):
        MagViT(SMALL).encode(torch.zeros(shape))
