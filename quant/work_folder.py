"""The folder of a conversion in progress: finished units of arrays, each there complete or not at all, under the key of the
conversion they belong to. A killed conversion goes on from them; another one clears them away first.

It knows disks and arrays; it knows nothing of layers or formats.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from mmada_lite.errors import Error
from mmada_lite.files import Lock, sync

KEY = "conversion.json"


class WorkFolder:
    """`key` says of which conversion the units are: what of it differs makes them worthless, and they are removed. Use as a
    context: one process works in a folder at a time."""

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise Error(f"{folder} is a file, and a folder is needed to work in; choose another with --work")
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock.of(folder)
        if lock is None:
            raise Error(f"another process works in {folder}; wait for it, or choose another output or --work")
        self._lock = lock
        try:
            self._prepare(key)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._lock.release()

    def _prepare(self, key: Mapping[str, object]) -> None:
        folder = self.folder
        content = json.dumps(key, indent=1, sort_keys=True) + "\n"
        marker = folder / KEY
        others = [path for path in folder.iterdir() if path.name != f"{KEY}.new"]
        if others and not marker.is_file():
            raise Error(f"{folder} holds other things than a conversion in progress; choose another folder with --work")
        if marker.is_file() and marker.read_text(encoding="utf-8") != content:
            self._clear()
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover)
        _write(marker, content)

    def has(self, unit: str) -> bool:
        return (self.folder / unit).is_dir()

    def save(self, unit: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a unit under a temporary name, bring it to the disk, give it its name."""
        self.drop(unit)
        partial = self.folder / f"{unit}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, array in arrays.items():
            with (partial / f"{name}.npy").open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        sync(partial)
        partial.rename(self.folder / unit)
        sync(self.folder)

    def load(self, unit: str) -> dict[str, np.ndarray]:
        """The arrays of a unit, mapped from the disk."""
        files = sorted((self.folder / unit).glob("*.npy"))
        return {file.name.removesuffix(".npy"): np.load(file, mmap_mode="r", allow_pickle=False) for file in files}

    def drop(self, unit: str) -> None:
        if self.has(unit):
            partial = self.folder / f"{unit}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            (self.folder / unit).rename(partial)  # so that half of a unit never has its name
            shutil.rmtree(partial)

    def remove(self) -> None:
        """The folder is not needed any more. The marker goes last: what a kill leaves of the units is never taken for
        complete ones, nor the folder for somebody else's."""
        self._clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _clear(self) -> None:
        """From here on the units belong to nothing, and are removed."""
        os.truncate(self.folder / KEY, 0)
        sync(self.folder / KEY)
        for unit in self.folder.iterdir():
            if unit.is_dir():
                shutil.rmtree(unit)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)
