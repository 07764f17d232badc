"""A damaged weight never passes in silence: each tensor of the packaged model in turn, in every precision, with a block that is
not finite and hashes that fit, ends the first answer or drawing that reads it in an Error. So do the scales of integers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import PRECISIONS, READ_BY, damaged, packaged_in
from PIL import Image

from mmada_lite import Error, ImageSettings, Model, TextSettings, load
from mmada_lite.ort.openvino import lacking

TEXT, IMAGE = TextSettings(answer_length=4, steps=2, block_length=4), ImageSettings(steps=2)
USES: dict[str, Callable[[Model], Any]] = {
    "chat": lambda model: model.chat("what is 3 + 4?", TEXT).result(),
    "paint": lambda model: model.paint("a red apple", IMAGE).result(),
    "ask": lambda model: model.ask(Image.new("RGB", (64, 64), "red"), "what is this?", TEXT).result(),
}


def opened(folder: Path, device: str) -> Model | None:
    """The model, or None where loading it is refused."""
    try:
        return load(folder, device=device, threads=1)
    except Error:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "device"),
    [*((precision, "cpu") for precision in PRECISIONS), ("fp16", "openvino"), ("int8-7bit", "openvino")],
)
def test_no_damage_is_silent(precision: str, device: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if device == "openvino" and (fault := lacking()):
        pytest.skip(fault)
    every = 1 if (precision, device) == ("fp16", "cpu") or pytestconfig.getoption("fuzz") else 8
    silent, number = [], 0
    for graph, tensor in damaged(packaged_in(precision, tmp_path / "bundle"), tmp_path / "damaged", every=every):
        model, number = opened(tmp_path / "damaged", device), number + 1
        for use in READ_BY[graph] if model else ():
            try:
                USES[use](model)
            except Error:
                continue
            silent.append((graph, tensor, use))
    print(f"{precision}: {number} tensors, silent {len(silent)}")
    assert number > 5  # it did look
    assert silent == []
