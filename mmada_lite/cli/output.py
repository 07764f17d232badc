"""Where a picture goes: its name, whether it may be written there, and writing it whole or not at all.

Everything that can be wrong with the place is found before the work begins. Nothing here knows how pictures are made.
"""

import io
import os
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmada_lite.errors import Error
from mmada_lite.files import write_whole

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Target:
    """A place that was looked at and found good. `path` None is standard output."""

    path: Path | None
    format: str
    force: bool = False

    @property
    def name(self) -> str:
        return STDOUT if self.path is None else str(self.path)

    @classmethod
    def check(cls, name: str, *, force: bool) -> "Target":
        """Raises Error when the name's ending is unknown, its folder is missing, or something is there already."""
        if name == STDOUT:
            return cls(None, "PNG")
        path = Path(name)
        if path.is_dir():
            raise Error(f"{path} is a folder; name a file in it")
        folder = path if name.endswith("/") else path.parent
        if not folder.is_dir():
            raise Error(f"there is no folder {folder}; make it first")
        special = path.exists() and not path.is_file()  # a pipe or a device: nothing there can be overwritten
        if path.suffix and path.suffix.lower() not in _FORMATS and not special:
            raise Error(f"cannot tell how to write {path.suffix}; end the name in {', '.join(_FORMATS)}")
        if path.is_file() and not force:
            raise Error(f"{path} exists; add --force to replace it, or choose another name with -o")
        if not special and not os.access(folder, os.W_OK):
            raise Error(f"not allowed to write in {folder}; check who owns it, or choose another place with -o")
        return cls(path, _FORMATS.get(path.suffix.lower(), "PNG"), force)

    def write(self, image: Image.Image) -> None:
        """Write the picture in one piece: whatever fails, an old file stays as it was and no part of a new one is left."""
        data = encode(image, self.format)
        if self.path is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            try:
                write_whole(self.path, data, force=self.force)
            except FileExistsError:
                raise Error(f"{self.path} has appeared meanwhile; choose another name with -o") from None


def encode(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format)
    return buffer.getvalue()


class StepFolder:
    """A folder that receives the picture of every step as step-001.png and so on."""

    def __init__(self, folder: Path, *, force: bool) -> None:
        """Makes the folder. Raises Error when the name is taken by a file, or steps of an earlier run are there."""
        if folder.exists() and not folder.is_dir():
            raise Error(f"{folder} is a file; name a folder for --save-steps")
        if not folder.parent.is_dir():
            raise Error(f"there is no folder {folder.parent}; make it first")
        self._earlier = set(folder.glob("step-*.png"))
        if self._earlier and not force:
            raise Error(f"{folder} holds the steps of an earlier run; add --force to replace them, or choose another folder")
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def write(self, number: int, image: Image.Image) -> None:
        path = self._folder / f"step-{number:03d}.png"
        write_whole(path, encode(image, "PNG"))
        self._earlier.discard(path)

    def finish(self) -> None:
        """Take away what is left of a longer earlier run."""
        for path in self._earlier:
            path.unlink(missing_ok=True)


def named_after(text: str, ending: str = "") -> str:
    """A file name from a sentence: `A red apple!` gives `a-red-apple.png`."""
    plain = unicodedata.normalize("NFC", text).lower()
    words = re.findall(r"\w+", plain)
    slug = "-".join(words).encode()[:80].decode(errors="ignore").rstrip("-") or "picture"
    return f"{slug}{ending}.png"
