"""What is no picture, is damaged, or is far too large: one line, at once, with little memory, and pillow says nothing."""

import io
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from made_pictures import noise, png, saved
from PIL import Image, features

from mmada_lite import Error, images


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    with pytest.raises(Error, match="no picture at"):
        images.open_picture(tmp_path / "nothing.png")
    text = tmp_path / "text.png"
    text.write_text("hello")
    cut = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path in (text, cut, tmp_path, pipe, "/dev/zero", "a\0b", "x" * 5000):
        with pytest.raises(Error, match="not a picture"):
            images.open_picture(path)
    for data in (b"GIF89a", b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"):
        with pytest.raises(Error, match=r"not a picture|EPS, which is not read"):
            images.open_picture(data)
    with pytest.raises(Error, match="not a picture"):
        images.open_picture(Image.open(io.BytesIO(saved(Image.fromarray(noise(64, 64)))[:3000])))


def test_damaged_files_of_every_format(tmp_path: Path) -> None:
    """Cut short at a hundred places, each is read or is one line; tests/fuzz does more."""
    for kind in sorted({"PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "TGA", "ICO", "DDS", "QOI", "AVIF"}):
        if kind == "AVIF" and (kind not in Image.SAVE or not features.check("avif")):
            continue
        try:
            data = saved(Image.fromarray(noise(16, 16)), kind)
        except (KeyError, OSError):  # this pillow does not write it
            continue
        for length in range(0, len(data), max(1, len(data) // 100)):
            with suppress(Error):
                assert images.open_picture(data[:length]).size == (16, 16)


BOMB = png(8, 0, 100_000, 100_000, b"\0" * 100_001)


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        png(8, 2, 9_000, 9_000, b"\0" * 30_000),
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\2\0;",
        b"P6 70000 70000 255\n" + b"\0" * 100,
        b"P6 2001 2000 1000\n" + b"\0" * 100,  # of a decoder that takes seconds for a million pixels
        b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(BOMB), 22) + BOMB,  # an icon that holds it
    ],
    ids=["grey", "colour", "GIF", "PPM", "slow", "icon"],
)
def test_a_bomb_is_refused_before_it_takes_memory(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(data)
    script = (
        "import resource, sys\nfrom mmada_lite import Error, images\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: images.open_picture(sys.argv[1])\n"
        "except Error as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, env=environment)
    line, taken = done.stdout.splitlines()
    assert done.stderr == ""
    assert "pixels; scale it below" in line or "not a picture" in line
    assert int(taken) < 50_000  # KiB


def test_the_shape_of_a_picture_is_bounded() -> None:
    """1 x 15,600 can still be scaled to a width of 64; 1 x 1,000,000 would take all memory, and squashed it is nothing."""
    assert images.fit(Image.new("RGB", (1, 15_600), "red"), 64).getpixel((5, 5)) == (255, 0, 0)
    for size in ((1, 1_000_000), (1_000_000, 1)):
        long = images.open_picture(Image.new("RGB", size, "red"))
        with pytest.raises(Error, match="too long to be cut to a square"):
            images.fit(long, 64)
        assert images.fit(long, 64, "squash").getpixel((5, 5)) == (255, 0, 0)


def test_a_picture_of_as_many_pixels_as_may_be_is_read() -> None:
    images._check_size((4, 25), "it", 100)
    with pytest.raises(Error, match=r"^it has 4 x 26 pixels; scale it below 100 pixels$"):
        images._check_size((4, 26), "it", 100)


def test_a_long_name_is_cut() -> None:
    name = "/" + "x/" * 149 + "y"
    for given, shown in ((name, name), (f"{name}z", f"{name[:297]}...")):
        with pytest.raises(Error) as fault:
            images.open_picture(given)
        assert str(fault.value) == f"no picture at {shown}; check the path"


def test_what_was_given_is_named_and_a_library_quoted_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Error, match=r"^the given bytes is not a picture that pillow can read; convert it"):
        images.open_picture(b"no picture")
    with pytest.raises(Error, match=r'^the open file gives texts; open it with open\(path, "rb"\)$'):
        images.open_picture(io.StringIO("no picture"))  # type: ignore[arg-type]

    def fails(_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(Error, match=r"that pillow can read \(two lines\); convert it"):
        images.open_picture(b"no picture")


def test_a_tiff_is_read_where_standard_error_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    Image.fromarray(noise(64, 64)).save(path, compression="tiff_lzw")
    script = "import sys; from mmada_lite import images; print(images.open_picture(sys.argv[1]).size)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = ["sh", "-c", 'exec "$0" -c "$1" "$2" 2>&-', sys.executable, script, str(path)]
    assert subprocess.run(words, capture_output=True, text=True, env=environment).stdout == "(64, 64)\n"


def test_endless_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = saved(Image.fromarray(noise(64, 64)))
    path = tmp_path / "long.png"
    path.write_bytes(data)
    assert images.open_picture(data).size == (64, 64)
    monkeypatch.setattr(images, "LONGEST_FILE", len(data) - 1)
    for source, said in ((data, "the given bytes are more than"), (path, f"{path} has {len(data):,} bytes")):
        with pytest.raises(Error, match=said):
            images.open_picture(source)


def test_a_large_image_object_is_refused_unread(tmp_path: Path) -> None:
    class Large(Image.Image):
        size = property(lambda self: (10_000, 10_000))  # type: ignore[assignment]

    with pytest.raises(Error, match=r"^the picture has 10000 x 10000 pixels; scale it below 64,000,000"):
        images.open_picture(Large())


def test_pillow_says_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    """Neither as a warning, nor in a log, nor, as libtiff does, past Python; and filters are as they were, threads or not."""
    damaged = bytearray(saved(Image.fromarray(noise(64, 64)), "TIFF", compression="tiff_lzw"))
    damaged[100:2000] = b"\xff" * 1900
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info["transparency"] = b"\0\xff"

    def read() -> None:
        for _ in range(20):
            assert images.open_picture(palette).getpixel((0, 0)) == (255, 0, 0)
            with pytest.raises(Error, match="not a picture"):
                images.open_picture(bytes(damaged))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"still here")
    assert capfd.readouterr() == ("", "still here")
    assert not recwarn.list
