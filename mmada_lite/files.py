"""A folder that appears on disk whole or not at all: written under a temporary name beside its place, renamed when complete.

An old folder that is replaced stays intact until the new one is complete. It knows disks, names and what a crash leaves behind;
it knows nothing of what is in the folder, except the name of the one file that marks it as ours.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from mmada_lite.errors import Error

_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder() -> Path:
    """Where this program keeps what it can make again, in the user's cache. It may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mmada-lite"


class AtomicFolder:
    """Use as a context: write into `folder`, then `commit`. Leaving without a commit removes everything that was written.

    marker: the file that every folder of this kind holds; a folder without it is never replaced. needed: bytes that
    will be written. Raises Error when the target exists and `force` is not set, when it is something else than such a
    folder, when the disk lacks space (beforehand) or runs full (while writing), or when nothing may be written there.
    """

    def __init__(self, target: Path, *, marker: str, force: bool = False, needed: int = 0) -> None:
        self.target = Path(os.path.realpath(target))
        self.folder = _sibling(self.target, "partial")
        self._marker, self._force, self._needed = marker, force, needed

    def __enter__(self) -> Self:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            recover(self.target)
            for leftover in _abandoned(self.target, "partial"):
                shutil.rmtree(leftover)
            self._check_target()
            self._check_space()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        except OSError as fault:
            raise Error(f"{self.target}: cannot write here ({fault.strerror or fault}); choose another folder") from fault
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(fault, OSError) and fault.errno in _FULL:
            raise Error(
                f"{self.target}: the disk is full; nothing was kept of the unfinished folder. "
                "Free some space or choose another disk, then run the same command again"
            ) from fault

    def commit(self) -> Path:
        """Bring everything to the disk and rename the folder to its place; the old one is removed last."""
        for path in (*self.folder.rglob("*"), self.folder):
            sync(path)
        self._check_target()
        aside = _sibling(self.target, "replaced")
        if self.target.exists():
            self.target.rename(aside)  # from here to the next rename the old one is found by `recover`
        try:
            self.folder.rename(self.target)
        except OSError as fault:
            if aside.exists():
                recover(self.target, aside)
            raise Error(
                f"{self.target}: cannot be put in its place ({fault.strerror or fault}); choose another name"
            ) from fault
        sync(self.target.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return self.target

    def _check_target(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self._force:
            raise Error(f"{self.target} exists already; choose another name, or add --force to replace it")
        if not self.target.is_dir():
            raise Error(f"{self.target} is a file, and a folder is to be written; choose another name")
        if any(self.target.iterdir()) and not (self.target / self._marker).is_file():
            raise Error(f"{self.target} holds no {self._marker}, so it is not replaced even with --force; choose another name")

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if free < self._needed:
            raise Error(
                f"{self.target}: needs {size_in_words(self._needed)} and the disk has {size_in_words(free)} free; "
                f"free {size_in_words(self._needed - free)} or choose another disk"
            )


def recover(target: Path, aside: Path | None = None) -> None:
    """Undo a replacement that was cut off between its two renames: the old folder returns to its place. Else do nothing."""
    for old in [aside] if aside else _abandoned(target, "replaced"):
        if not os.path.lexists(target):
            old.rename(target)
        else:
            shutil.rmtree(old)


def size_in_words(size: int) -> str:
    """Bytes as a person reads them: 812 B, 40 KB, 3.2 MB, 16.2 GB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _sibling(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{os.getpid()}"


def _abandoned(target: Path, kind: str) -> Iterator[Path]:
    """Siblings of a kind whose process is gone."""
    prefix = f".{target.name}.{kind}-"
    siblings = list(target.parent.iterdir()) if target.parent.is_dir() else []
    for path in (sibling for sibling in siblings if sibling.name.startswith(prefix)):
        number = path.name.removeprefix(prefix)
        if number.isdecimal() and not _lives(int(number)):
            yield path


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
