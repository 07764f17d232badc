"""Whether the files of an open bundle are still the ones that were opened. It compares
names, sizes and times; it reads nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmada_lite.bundle import MANIFEST, Bundle
from mmada_lite.errors import Error

Stamp = tuple[int, int, int]  # size, time of change in nanoseconds, number of the file


@dataclass(frozen=True, slots=True)
class Stamps:
    """The files of a bundle as they were when it was opened. Sessions map them, so that a change would be read mid-way."""

    bundle: Bundle
    stamps: Mapping[str, Stamp | None]

    @classmethod
    def of(cls, bundle: Bundle) -> "Stamps":
        return cls(bundle, {name: _stamp(bundle, name) for name in (MANIFEST, *bundle.files)})

    def check(self) -> None:
        """Raise Error when a file was replaced, altered or removed since."""
        for name, before in self.stamps.items():
            now = _stamp(self.bundle, name)
            if now != before:
                what = "is gone" if now is None else "has changed on disk"
                raise Error(f"{self.bundle.path / name} {what} since the model was loaded; load the model again")


def _stamp(bundle: Bundle, name: str) -> Stamp | None:
    try:
        found = (bundle.path / name).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
