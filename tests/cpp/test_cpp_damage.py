"""In the C++ host too a damaged weight never passes in silence."""

from pathlib import Path
from typing import Any

import pytest
from cpp_host import Host, build, picture_json
from damage import READ_BY, damaged
from PIL import Image

from mmada_lite import ImageSettings, TextSettings
from mmada_lite.decoding.settings import plain
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import embedded_bundle

SHIPPED = Path(__file__).parents[2] / "train" / "shipped"
TEXT, IMAGE = plain(TextSettings(answer_length=4, steps=2, block_length=4)), plain(ImageSettings(steps=2))
PICTURE = picture_json(Image.new("RGB", (64, 64), "red"))
USES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "what is 3 + 4?"}], "settings": TEXT},
    "paint": {"prompt": "a red apple", "settings": IMAGE},
    "ask": {"picture": PICTURE, "question": "what is this?", "settings": TEXT},
}


@pytest.mark.parametrize("precision", ["packaged", "int8", "int4"])
def test_no_damage_is_silent(precision: Any, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    host = Host(build(Path(__file__).parent / "host.cpp"))
    bundle = embedded_bundle()
    if precision != "packaged":
        bundle = export_checkpoint(SHIPPED / "emoji", tmp_path / "bundle", precision=precision)
    silent, every = [], 1 if pytestconfig.getoption("fuzz") else 8
    for graph, tensor in damaged(bundle, tmp_path / "damaged", every=every):
        assert "error" not in host.call("load", folder=str(tmp_path / "damaged"), threads=1)
        lines = [host.call(use, **USES[use]).get("error", "silent") for use in READ_BY[graph]]
        silent += [(graph, tensor, line) for line in lines if "not finite" not in line]
    assert silent == []
    assert host.close() == 0
