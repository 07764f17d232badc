"""Files and folders that appear on disk whole or not at all, written under a temporary name beside their place and renamed when
complete; and files that are read, looked at before they are opened.

What is replaced stays intact until the new one is complete. This file knows disks, names, other processes at work on them, and
what a crash leaves behind; it knows nothing of what is in a file or folder, except the name of the one file that marks a
folder as ours.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from mmada_lite.errors import Error

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the signals that ask a process to end
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_LFS = b"version https://git-lfs.github.com/spec/"  # how a file begins that git-lfs has put in another's place
_PATIENCE = 10.0  # seconds that a pipe's reader has to come, and a process to lock the folder that it made
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
_unfinished: dict[Path, Callable[[], None]] = {}  # temporary names of this process -> what takes them away


def cache_folder() -> Path:
    """Where this program keeps what it can make again, in the user's cache. It may not be there, nor able to be made."""
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(cache if os.path.isabs(cache) else os.devnull) / "mmada-lite"  # of a user without a home there is none


def discard_unfinished() -> None:
    """Take away all that this process has begun to write and has not put in its place, as it ends before its time."""
    for undo in list(_unfinished.values()):
        undo()


def full(fault: OSError) -> str:
    """In words, which of FULL it is."""
    return "the file is larger than this shell allows (ulimit -f)" if fault.errno == errno.EFBIG else "the disk is full"


def require_readable(path: Path) -> None:
    """Raise Error where something is there and is no file that can be read: a folder, a pipe (without waiting for it), somebody
    else's, a git-lfs pointer. Raises FileNotFoundError where nothing is."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = next((kind for is_one, kind in _KINDS if is_one(status.st_mode)), "a device")
            raise Error(f"{path} is {kind}, where a file is needed; check the name")
        with path.open("rb") as stream:
            head = stream.read(len(_LFS))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as fault:
        raise unreadable(path, fault) from fault
    if head == _LFS and status.st_size < 1024:
        raise Error(pointer_line(str(path)))


def unreadable(path: object, fault: OSError) -> Error:
    """The line for a file or folder that is there and cannot be read."""
    if fault.errno in _FORBIDDEN:
        return Error(f"not allowed to read {path}; check who owns it and its folder")
    return Error(f"{path} cannot be read ({fault.strerror or fault}); check the name and the disk")


def is_pointer(content: bytes) -> bool:
    """Whether this is what git-lfs puts in a large file's place."""
    return content.startswith(_LFS) and len(content) < 1024


def pointer_line(name: str) -> str:
    return f"{name} is a git-lfs pointer and not the file itself; run `git lfs pull` in its folder"


def write_whole(path: Path, data: bytes, *, force: bool = True) -> None:
    """Write beside the file and rename; without `force` only where nothing is. A device is written to as it is, and a pipe once
    somebody reads it.

    Raises FileExistsError without `force`, and OSError as the disk says it: nothing of the new file is left then.
    """
    if path.exists() and not path.is_file():
        with _opened(path) as stream:
            stream.write(data)
        return
    path = path.resolve()  # a link stays a link
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    _unfinished[beside] = lambda: beside.unlink(missing_ok=True)
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if force or not _linked(beside, path):
            beside.replace(path)
    except OSError as fault:
        fault.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)
        del _unfinished[beside]


def keep(file: Path, content: Mapping[str, object]) -> str | None:
    """Write what was measured as JSON into the user's cache, whole or not at all. Returns why it is not kept, or None."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as fault:
        return f"{file.parent} cannot be written ({fault.strerror or fault}), so it is measured again next time"
    return None


def _opened(path: Path) -> IO[bytes]:
    """A device, or a pipe. Raises Error where nobody reads the pipe for a while."""
    if not path.is_fifo():
        return path.open("wb")
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as fault:
            if fault.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise Error(f"nobody reads the pipe {path}; start its reader first, or name a file") from fault
            time.sleep(0.05)
        else:
            os.set_blocking(handle, True)
            return open(handle, "wb")


def _linked(beside: Path, path: Path) -> bool:
    """Give a file a second name, which nobody else's may be. False where the disk knows no second names."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        return False
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class AtomicFolder:
    """Use as a context: write into `folder`, then `commit`. Leaving without a commit removes everything that was written.

    marker: the file that every folder of this kind holds; a folder without it is never replaced. needed: bytes that
    will be written. Raises Error when the target exists and `force` is not set, when it is something else than such a
    folder, when another process is writing it, when the disk lacks space (beforehand) or runs full (while writing), or when
    nothing may be written there.
    """

    def __init__(self, target: Path, *, marker: str, force: bool = False, needed: int = 0) -> None:
        self.target = Path(os.path.realpath(target))
        self.folder, self._aside = _sibling(self.target, "partial"), _sibling(self.target, "replaced")
        self._marker, self._force, self._needed = marker, force, needed
        self._parents = [parent for parent in self.target.parents if not parent.exists()]
        self._lock: Lock | None = None
        self._mine = False  # what lies at `folder`

    def __enter__(self) -> Self:
        _unfinished[self.folder] = self._discard
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            recover(self.target)
            for leftover, abandoned in _siblings(self.target, "partial"):
                if not abandoned:
                    raise Error(f"{self.target} is being written by another process; wait for it, or choose another name")
                shutil.rmtree(leftover, ignore_errors=True)
            self._check_target()
            self._check_space()
            self._make()
        except OSError as fault:
            self._end()
            raise Error(f"{self.target}: cannot write here ({fault.strerror or fault}); choose another folder") from fault
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        if isinstance(fault, OSError) and fault.errno in FULL:
            raise Error(
                f"{self.target}: {full(fault)}; nothing was kept of the unfinished folder. "
                "Free some space or choose another disk, then run the same command again"
            ) from fault

    def commit(self) -> Path:
        """Bring everything to the disk and rename the folder to its place; the old one is removed last."""
        for path in (*self.folder.rglob("*"), self.folder):
            sync(path)
        self._check_target()
        old = None
        try:
            if self.target.exists():
                old = Lock.of(self.target)  # for as long as it lies aside, so that no one takes it for a crash's
                if old is None:
                    raise Error(f"{self.target} is being replaced by another process too; nothing of this one was kept")
                self.target.rename(self._aside)
            self.folder.rename(self.target)
            self._parents.clear()
        except OSError as fault:
            why = fault.strerror or fault
            raise Error(f"{self.target}: cannot be put in its place ({why}); choose another name") from fault
        finally:
            if old is not None:
                old.release()
        sync(self.target.parent)
        return self.target

    def _make(self) -> None:
        self._mine = True
        try:
            self.folder.mkdir()
        except FileExistsError:  # of a process with our number elsewhere
            self._mine = False
            raise
        self._lock = Lock.of(self.folder)

    def _end(self) -> None:
        self._discard()
        if self._lock is not None:
            self._lock.release()
        _unfinished.pop(self.folder, None)

    def _discard(self) -> None:
        """Remove what was written and not committed; what it was to replace is in its place, or replaced."""
        if self._aside.exists():
            recover(self.target, self._aside)
        if self._mine:
            shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self._parents:
            with suppress(OSError):
                parent.rmdir()

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


class Lock:
    """A folder that this process has for itself until `release`, or its end. It is held through renames."""

    def __init__(self, handle: int, exact: bool) -> None:
        self._handle: int | None = handle
        self.exact = exact  # False on a disk that knows no locks

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """None where another process holds it."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            return cls(handle, exact=False)
        lock = cls(handle, exact=True)
        try:
            same = os.path.samestat(os.fstat(handle), folder.stat())
        except FileNotFoundError:
            same = False
        return lock if same else lock.release()  # another process has put it in its place, or removed it

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = release


def recover(target: Path, aside: Path | None = None) -> None:
    """Undo a replacement that was cut off between its two renames: the old folder returns to its place. Else do nothing."""
    found = [aside] if aside else [path for path, abandoned in _siblings(target, "replaced") if abandoned]
    for old in found:
        if not os.path.lexists(target):
            old.rename(target)
        else:
            shutil.rmtree(old, ignore_errors=True)


def size_in_words(size: int) -> str:
    """Bytes as a person reads them: 812 B, 40 KB, 3.2 MB, 16.2 GB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _sibling(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{os.getpid()}"


def _siblings(target: Path, kind: str) -> Iterator[tuple[Path, bool]]:
    """Siblings of a kind, and whether each is abandoned: its process is gone."""
    prefix = f".{target.name}.{kind}-"
    siblings = list(target.parent.iterdir()) if target.parent.is_dir() else []
    for path in (sibling for sibling in siblings if sibling.name.startswith(prefix)):
        number = path.name.removeprefix(prefix)
        if number.isdecimal() and path.is_dir():
            yield path, _abandoned(path, int(number))


def _abandoned(path: Path, process: int) -> bool:
    """Whether nobody works on it. The number of a process alone does not say so: after a restart, or in another container,
    another one has it."""
    try:
        lock, age = Lock.of(path), time.time() - path.stat().st_mtime
    except OSError:  # it is gone, or somebody else's
        return False
    if lock is None:
        return False
    lock.release()
    return not _lives(process) or (lock.exact and (process == os.getpid() or age > _PATIENCE))


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
