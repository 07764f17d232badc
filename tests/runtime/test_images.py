"""Pictures in and out: the recorded laws of resizing and rounding, masks, and files that are no pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from mmada_lite import Error, images
from mmada_lite.bench.parity.passes import compare_pictures


def test_recorded_resizing_and_rounding(golden):
    comparisons = list(compare_pictures("image", golden / "image"))
    assert len(comparisons) > 10
    assert [c.name for c in comparisons if not c.passed] == []


def test_transparency_is_laid_on_white_and_exif_is_obeyed():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert images.open_picture(clear).getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (4, 2), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    turned.save(stream, "JPEG", exif=exif)
    assert images.open_picture(stream.getvalue()).size == (2, 4)


def test_what_is_no_picture_is_said(tmp_path):
    with pytest.raises(Error, match="no picture at"):
        images.open_picture(tmp_path / "nothing.png")
    text = tmp_path / "text.png"
    text.write_text("hello")
    cut = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    for path in (text, cut, tmp_path):
        with pytest.raises(Error, match="not a picture"):
            images.open_picture(path)
    with pytest.raises(Error, match="not a picture"):
        images.open_picture(b"GIF89a")


def test_a_picture_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_LARGEST", 100)
    path = tmp_path / "large.png"
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(Error, match="20 x 20 pixels"):
        images.open_picture(path)


def test_masks(tmp_path):
    mask = Image.new("L", (8, 4))
    mask.paste(255, (0, 0, 3, 4))
    assert images.open_mask(mask, (8, 4)).sum() == 12
    with pytest.raises(Error, match="8 x 4 pixels and the picture 4 x 8"):
        images.open_mask(mask, (4, 8))
    with pytest.raises(Error, match="covers nothing"):
        images.open_mask(Image.new("L", (8, 4)), (8, 4))
    path = tmp_path / "mask.png"
    clear = Image.new("RGBA", (8, 4), (255, 255, 255, 0))
    clear.putpixel((1, 1), (255, 255, 255, 255))
    clear.save(path)
    assert images.open_mask(path, (8, 4)).sum() == 1


def test_a_cell_is_touched_by_one_pixel():
    mask = np.zeros((8, 10), dtype=bool)
    mask[7, 4] = True
    cells = images.cells_under(mask, 4)
    assert cells.shape == (2, 3)
    assert cells.nonzero() == (1, 1)


def test_pixels_there_and_back():
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    again = images.to_bytes(images.to_pixels(image))[0].astype(int)
    assert np.abs(again - np.asarray(image)).max() <= 1  # truncation, as in the reference
