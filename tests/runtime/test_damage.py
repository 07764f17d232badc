"""A damaged weight never passes in silence: each tensor of the packaged model in turn, with a block that is not finite and
hashes that fit, ends the first answer or drawing that reads it in an Error. So do the scales of int8 and int4."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import READ_BY, damaged
from PIL import Image

from mmada_lite import Error, ImageSettings, Model, TextSettings, load
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import embedded_bundle

SHIPPED = Path(__file__).parents[2] / "train" / "shipped"
TEXT, IMAGE = TextSettings(answer_length=4, steps=2, block_length=4), ImageSettings(steps=2)
USES: dict[str, Callable[[Model], Any]] = {
    "chat": lambda model: model.chat("what is 3 + 4?", TEXT).result(),
    "paint": lambda model: model.paint("a red apple", IMAGE).result(),
    "ask": lambda model: model.ask(Image.new("RGB", (64, 64), "red"), "what is this?", TEXT).result(),
}


def silent_uses(bundle: Path, folder: Path, *, every: int) -> list[tuple[str, str, str]]:
    """Graph, tensor and use of whatever gave a result."""
    silent, number = [], 0
    for graph, tensor in damaged(bundle, folder, every=every):
        model, number = load(folder, device="cpu", threads=1), number + 1
        for use in READ_BY[graph]:
            try:
                USES[use](model)
            except Error:
                continue
            silent.append((graph, tensor, use))
    assert number > 10  # it did look
    return silent


@pytest.mark.slow
def test_no_damage_of_the_packaged_model_is_silent(tmp_path: Path) -> None:
    assert silent_uses(embedded_bundle(), tmp_path / "damaged", every=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_no_damage_of_codes_scales_is_silent(precision: Any, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    bundle = export_checkpoint(SHIPPED / "emoji", tmp_path / "bundle", precision=precision)
    every = 1 if pytestconfig.getoption("fuzz") else 8
    assert silent_uses(bundle, tmp_path / "damaged", every=every) == []
