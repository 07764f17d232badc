"""What shows a training: a sheet of drawings and the curves of its logs, and that they are verbs of the training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmada_lite
from mmada_lite.cli.main import main
from mmada_lite.train import curves, gallery


def test_curves_are_drawn_from_the_logs_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vq").mkdir()
    records = [{"step": step, "seconds": 1.0, "loss": 2.0, "text": 1.0 / (1 + step)} for step in range(20)]
    (tmp_path / "vq" / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    target = tmp_path / "new" / "curves.png"
    assert main(["train", "curves", "--folder", str(tmp_path), "-o", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert set(curves.read(tmp_path / "vq" / "log.jsonl")) == {"text"}
    assert main(["train", "curves", "--folder", str(tmp_path / "nowhere")]) == 2
    assert "holds no log of a training" in capsys.readouterr().err


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    assert curves.smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_a_sheet_has_a_row_below_each_other() -> None:
    rows = [[Image.new("RGB", (4, 4), "red")] * 3, [Image.new("RGB", (4, 4), "blue")] * 2]
    page = gallery.sheet(rows, 2)
    assert page.size == (3 * (8 + gallery.GAP) - gallery.GAP, 2 * (8 + gallery.GAP) - gallery.GAP)
    assert page.getpixel((0, 0)) == (255, 0, 0)
    assert page.getpixel((0, 8 + gallery.GAP)) == (0, 0, 255)
    assert page.getpixel((8, 0)) == (255, 255, 255)


def test_a_sheet_has_its_captions_above_the_pictures() -> None:
    row = [Image.new("RGB", (64, 64), "red")] * 2
    plain, page = gallery.sheet([row], 2), gallery.sheet([row], 2, ["a cat on a red background", "a dog on a red background"])
    assert page.crop((0, gallery.CAPTION, *page.size)).tobytes() == plain.tobytes()
    for left in (0, 128 + gallery.GAP):  # each within the width of its picture
        words = page.crop((left, 0, left + 128, gallery.CAPTION)).convert("L")
        assert words.getextrema() == (0, 255)
    assert page.crop((128, 0, 128 + gallery.GAP, gallery.CAPTION)).convert("L").getextrema() == (255, 255)


def test_the_sheet_in_the_manual_is_of_the_packaged_model() -> None:
    """A code or two may be rounded otherwise here; other weights change more: `mmada-lite train gallery -o docs`."""
    page, model = Image.open(Path(__file__).parents[2] / "docs" / "drawings.png").convert("RGB"), mmada_lite.load(device="cpu")
    for number, prompt in enumerate(gallery.PROMPTS[:3]):
        drawn = gallery.sheet([[model.paint(prompt).picture]], 2)
        left = number * (drawn.width + gallery.GAP)
        kept = page.crop((left, gallery.CAPTION, left + drawn.width, gallery.CAPTION + drawn.height))
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(kept)).mean() < 4, prompt


def test_two_models_stand_side_by_side() -> None:
    old, new = ([Image.new("RGB", (4, 4), colour)] * 5 for colour in ("red", "blue"))
    page = gallery.side_by_side([old, new])
    step = 8 + gallery.GAP
    assert page.size == (3 * step - gallery.GAP, 4 * step - gallery.GAP)
    assert [page.getpixel((step, row * step))[2] for row in range(4)] == [0, 255, 0, 255]  # old above new, in both bands


@pytest.mark.parametrize("verb", ["gallery", "curves", "synergy"])
def test_each_has_a_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: mmada-lite train {verb}" in capsys.readouterr().out
