"""Hashing a large bundle while its first answer is made, and remembering that it was done.

What is remembered is an empty file in the user's cache folder, named after what was hashed: places, sizes, times of change and
hashes of all files. One that is missing, or a folder that cannot be written, means that all is hashed again.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread

from mmada_lite.bundle import HASHED_UP_TO, Bundle
from mmada_lite.files import cache_folder


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
