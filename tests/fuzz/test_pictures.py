"""Mutated pictures of every format that pillow writes: each is read or is one line, without a trace, a wait, a word of pillow's
or much memory. A tenth of them by default, all with --fuzz; picture N is the same every time."""

import faulthandler
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from peak_memory import peak_memory
from PIL import Image

from mmada_lite import Error, images

COUNT, LONGEST, MOST_MEMORY = 7_000, 20, 1_500_000_000  # pictures; seconds a picture; bytes
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
ROOT = Path(__file__).parents[2]


@pytest.mark.fuzz
def test_a_mutated_picture_is_read_or_is_one_line(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    count = COUNT if pytestconfig.getoption("fuzz", default=False) else COUNT // 10
    done = subprocess.run(
        [sys.executable, __file__, str(count), str(tmp_path / "picture")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["read"] + found["refused"] == count
    assert min(found["read"], found["refused"]) > count // 10  # the mutations neither spoil all nor miss all
    assert found["peak"] < MOST_MEMORY


def originals() -> Iterator[bytes]:
    """One small picture in each format and mode that this pillow can write."""
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    warnings.simplefilter("ignore", DeprecationWarning)  # of modes that will not be written some day
    for mode in MODES:
        picture = Image.fromarray(noise if mode in ("RGBA", "LA") else np.ascontiguousarray(noise[..., :3]))
        if mode in ("PA", "I;16"):
            picture = picture.convert("P" if mode == "PA" else "I")
        picture = picture.convert(mode)
        for kind in sorted(set(Image.SAVE) - {"PDF"}):
            for options in ({}, {"exif": exif, "transparency": 3}, {"compression": "tiff_lzw"}, {"lossless": True}):
                stream = io.BytesIO()
                try:
                    picture.save(stream, kind, **options)
                except Exception:  # not this mode in this format
                    continue
                yield stream.getvalue()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or added, rather near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = int(len(changed) * chance.random() ** chance.choice((1, 3)))
        long = chance.choice((1, 2, 4, 8))
        match chance.randrange(8):
            case 0:
                del changed[at:]
            case 1:
                del changed[at : at + long]
            case 2:
                changed[at:at] = changed[at : at + 16 * long]
            case 3:
                changed[at:at] = chance.randbytes(long)
            case 4 | 5:
                changed[at : at + long] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")) * long
            case _:
                changed[at : at + 1] = bytes([(changed[at] if at < len(changed) else 0) ^ 1 << chance.randrange(8)])
    return _summed(bytes(changed)) if chance.random() < 0.7 else bytes(changed)


def _summed(data: bytes) -> bytes:
    """A PNG with its checksums made right, so that what is wrong in it is read; else the data as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    summed, at = data[:8], 8
    while at + 12 <= len(data):
        stop = at + 8 + int.from_bytes(data[at : at + 4], "big")
        summed += data[at:stop] + struct.pack(">I", zlib.crc32(data[at + 4 : stop]))
        at = stop + 4
    return summed + data[at:]


def read(data: bytes, file: Path, number: int) -> bool:
    """Read a picture in each way, and as a mask; whether all went well. Raises what is no Error."""
    try:
        source: Path | bytes = data
        if number % 8 == 0:
            file.write_bytes(data)
            source = file
        picture = images.open_picture(source)
        for how in ("crop", "squash"):
            assert images.to_pixels(images.fit(picture, 16, how)).shape == (1, 3, 16, 16)
        if number % 4 == 0:
            images.fit_mask(images.open_mask(source, picture.size), 16)
        elif number % 4 == 1:
            with images._silence():
                opened = Image.open(io.BytesIO(data))
            assert images.open_picture(opened).tobytes() == picture.tobytes()
    except Error as error:
        if isinstance(error.__cause__, MemoryError) or not str(error).isprintable():
            raise AssertionError(f"refused so: {error!r}") from error
        return False
    return True


def main(count: int, file: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 * MOST_MEMORY, 4 * MOST_MEMORY))
    files, counts = list(originals()), [0, 0]
    for number in range(count):
        chance = random.Random(number)
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            counts[read(mutated(chance.choice(files), chance), file, number)] += 1
        except BaseException:
            print(f"picture {number}:", file=sys.stderr)
            raise
    faulthandler.cancel_dump_traceback_later()
    peak = peak_memory()
    print(json.dumps({"refused": counts[0], "read": counts[1], "originals": len(files), "peak": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
