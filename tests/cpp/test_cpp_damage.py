"""In the C++ host too a damaged weight never passes in silence."""

from pathlib import Path
from typing import Any

import pytest
from cpp_host import Host, build, picture_json
from damage import PRECISIONS, READ_BY, damaged, packaged_in
from PIL import Image

from mmada_lite import ImageSettings, TextSettings
from mmada_lite.decoding.settings import plain

TEXT, IMAGE = plain(TextSettings(answer_length=4, steps=2, block_length=4)), plain(ImageSettings(steps=2))
PICTURE = picture_json(Image.new("RGB", (64, 64), "red"))
USES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "what is 3 + 4?"}], "settings": TEXT},
    "paint": {"prompt": "a red apple", "settings": IMAGE},
    "ask": {"picture": PICTURE, "question": "what is this?", "settings": TEXT},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_damage_is_silent(precision: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    host = Host(build(Path(__file__).parent / "host.cpp"))
    silent, number, every = [], 0, 1 if pytestconfig.getoption("fuzz") else 16
    for graph, tensor in damaged(packaged_in(precision, tmp_path / "bundle"), tmp_path / "damaged", every=every):
        assert "error" not in host.call("load", folder=str(tmp_path / "damaged"), threads=1)
        lines = [host.call(use, **USES[use]).get("error", "silent") for use in READ_BY[graph]]
        silent += [(graph, tensor, line) for line in lines if "not finite" not in line]
        number += 1
    print(f"{precision}: {number} tensors, silent {len(silent)}")
    assert number > 2  # it did look
    assert silent == []
    assert host.close() == 0
