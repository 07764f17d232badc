"""A file of lines that grows over several runs: what a kill left is taken up again, and the whole appears in its place at once.

It knows files, and nothing of what is in a line. Beside FILE lie FILE.part, with the lines so far, and FILE.part.about, which
says of which work they are.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmada_lite.contracts import read_json
from mmada_lite.errors import Error, shown
from mmada_lite.files import sync, write_whole


class Resumed:
    """Use as a context: `add` lines, then `commit`. Without a commit, what was added is kept for the next run.

    about: of which work the lines are. `done`: how many whole lines an earlier run has left.
    """

    def __init__(self, target: Path, about: Mapping[str, Any], *, force: bool = False) -> None:
        """Looks, and changes nothing. Raises Error where the target may not be written, or where an earlier run did other work,
        but with `force`, which begins anew then."""
        if target.is_dir():
            raise Error(f"{target} is a folder; name a file in it")
        self._target, self._about, self._force = target, dict(about), force
        self._part, self._said = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.about")
        self._file: Any = None
        self.done = 0
        if not target.parent.is_dir():
            raise Error(f"there is no folder {target.parent}; make it first")
        if os.path.lexists(target) and not target.is_file():
            raise Error(f"{target} is no plain file, and this one must be; name another with -o")
        if target.is_file() and not force:
            raise Error(f"{target} exists; add --force to replace it, or choose another name with -o")
        if not os.access(target.parent, os.W_OK):
            raise Error(f"not allowed to write in {target.parent}; check who owns it, or choose another place with -o")
        self.resumes = self._fits()

    def _fits(self) -> bool:
        """Whether an earlier run did the same work. Raises Error where it did other work, but with `force`."""
        begun = self._part.is_file() and self._part.stat().st_size > 0
        if not self._said.is_file():
            if begun and not self._force:
                raise Error(f"{self._part} is there, and nothing says what it is; remove it, or add --force to begin anew")
            return False
        try:
            earlier = read_json(self._said)
        except ValueError:
            earlier = {}
        changed = [name for name in self._about if not isinstance(earlier, dict) or earlier.get(name) != self._about[name]]
        if changed and not self._force:
            was = shown(earlier.get(changed[0])) if isinstance(earlier, dict) else "nothing"
            raise Error(
                f"{self._part} was begun with another {changed[0]} ({was}); finish it as it was, or begin anew with --force"
            )
        return not changed

    def __enter__(self) -> Self:
        """Take up what there is. Raises Error where another process is at it."""
        handle = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._file = os.fdopen(handle, "r+b")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), self._part.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            self._file.close()
            raise Error(f"{self._target} is being written by another process; wait for it, or choose another name") from None
        except OSError:
            pass  # a disk that knows no locks
        if self._fits():
            end = sum(map(len, self.earlier()))
            self._file.truncate(end)
            self._file.seek(end)
        else:
            self._file.truncate(0)
            write_whole(self._said, json.dumps(self._about).encode() + b"\n")
        return self

    def earlier(self) -> Iterator[bytes]:
        """The whole lines that an earlier run has left."""
        self.done = 0
        with self._part.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self.done += 1
                    yield line

    def add(self, line: bytes) -> None:
        """A line without its end, on the disk when this returns."""
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def commit(self) -> None:
        """Put the file in its place."""
        self._part.replace(self._target)
        self._said.unlink(missing_ok=True)
        sync(self._target.parent)

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
