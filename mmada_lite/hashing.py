"""What happens to the files of a bundle while it is in use: a large one is hashed while its first answer is made, which is
remembered, and all are watched for changes.

What is remembered is an empty file in the user's cache folder, named after what was hashed: places, sizes, times of change and
hashes of all files. One that is missing, or a folder that cannot be written, means that all is hashed again.
"""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from mmada_lite.bundle import HASHED_UP_TO, MANIFEST, Bundle
from mmada_lite.errors import Error
from mmada_lite.files import cache_folder

Fingerprint = tuple[int, int, int]  # size, time of change in nanoseconds, number of the file


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """The files of a bundle as they were when it was opened. Sessions map them, so that a change would be read mid-way."""

    path: Path
    files: Mapping[str, Fingerprint | None]

    @classmethod
    def of(cls, bundle: Bundle) -> "Fingerprints":
        return cls(bundle.path, {name: _fingerprint(bundle.path / name) for name in (MANIFEST, *bundle.files)})

    def check(self) -> None:
        """Raise Error when a file was replaced, altered or removed since."""
        for name, before in self.files.items():
            now = _fingerprint(self.path / name)
            if now != before:
                what = "is gone" if now is None else "has changed on disk"
                raise Error(f"{self.path / name} {what} since the model was loaded; load the model again")


def hash_in_background(bundle: Bundle) -> Callable[[], None]:
    """Begin to hash every file of a bundle that `Bundle.open` has not hashed; returns what waits for the end, and raises Error,
    every time, where a file is not what bundle.json says."""
    if bundle.size <= HASHED_UP_TO or (remembered := _remembered(bundle)).exists():
        return lambda: None
    done: Future[None] = Future()

    def run() -> None:
        try:
            bundle.check_hashes()
        except BaseException as fault:
            done.set_exception(fault)
            return
        with suppress(OSError):
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.touch()
        done.set_result(None)

    Thread(target=run, name="hashing", daemon=True).start()
    return done.result


def _remembered(bundle: Bundle) -> Path:
    """The empty file that says of a bundle, as it lies there now, that it was hashed."""
    facts: list[object] = [str(bundle.path.resolve())]
    for name, info in bundle.files.items():
        status = (bundle.path / name).stat()
        facts.append((name, info.sha256, info.size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
    return cache_folder() / "hashed" / hashlib.sha256(repr(facts).encode()).hexdigest()


def _fingerprint(path: Path) -> Fingerprint | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
