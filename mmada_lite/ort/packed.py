"""Graphs of integer products as this processor runs them, kept in the user's cache.

onnxruntime packs such weights at every load, which is most of it: size S opens in 3.6 s of a processor without VNNI, in 0.7 s
from here, where packed weights are mapped and one copy of them is in memory instead of two. It knows when that pays, what a
packed graph depends on and where it lies; how a session is opened is `session`'s.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.bundle import LARGE, Bundle
from mmada_lite.errors import Error
from mmada_lite.files import AtomicFolder, cache_folder
from mmada_lite.ort.lazy import give_back_freed_memory
from mmada_lite.ort.session import Device, Tuning, onnxruntime_package, open_session, processor_flags

if TYPE_CHECKING:
    import onnxruntime

LEAST = 64 << 20  # bytes of integer weights; fewer are packed in a fraction of a second
MARKER = "packed.json"  # the sizes of what lies beside it
_UNUSED = 60 * 86400  # seconds after which what nobody opened is removed
_TIMES_AS_LARGE = 2.1  # what is kept, of what it is made from: onnxruntime keeps the weights unpacked too
_log = logging.getLogger("mmada_lite")


def open_packed(bundle: Bundle, graph: str, device: Device, threads: int | None) -> "onnxruntime.InferenceSession | None":
    """A session of a graph with its weights packed, which the first call does for all graphs of the bundle. None where it would
    not pay, or cannot be kept: then the graph is opened as it is."""
    if device.name != "cpu" or graph not in graphs_of(bundle):
        return None
    folder = folder_of(bundle)
    try:
        if not _is_whole(folder):
            _pack(bundle, device, folder)
        session = _opened(folder, graph, device, threads)
        os.utime(folder)
    except (Error, OSError) as fault:
        _log.info("weights of %s are packed at every load: %s", bundle.name, fault)
        return None
    return session


def graphs_of(bundle: Bundle) -> list[str]:
    """Those whose packed weights are worth their room, which of a large model would be as large again."""
    groups = bundle.quantization
    if sum(group.bytes or 0 for group in groups.values()) >= LARGE:
        return []
    integers = [name for name in ("backbone", "text_head", "image_head") if name in groups and groups[name].activation]
    return [name for name in integers if (groups[name].bytes or 0) >= LEAST]


def folder_of(bundle: Bundle) -> Path:
    """Of one version of onnxruntime, one kind of processor and the very bytes of the bundle."""
    files = sorted(info.sha256 for info in bundle.files.values())
    facts = [onnxruntime_package().__version__, platform.machine(), sorted(processor_flags()), files]
    return cache_folder() / "packed" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _opened(folder: Path, graph: str, device: Device, threads: int | None) -> "onnxruntime.InferenceSession":
    try:
        return open_session(folder / f"{graph}.onnx", device, threads, tuning=Tuning(packed=True))
    except Error:
        shutil.rmtree(folder, ignore_errors=True)  # to be made anew
        raise


def _pack(bundle: Bundle, device: Device, folder: Path) -> None:
    """Graph by graph, so that no more than one is in memory unpacked. Raises Error where the bundle is damaged, which would be
    kept beyond its repair, and where it cannot be written."""
    shutil.rmtree(folder, ignore_errors=True)  # there is none, or a damaged one
    _remove_unused(folder.parent)
    graphs = graphs_of(bundle)
    needed = sum(round(_TIMES_AS_LARGE * (bundle.quantization[graph].bytes or 0)) for graph in graphs)
    with AtomicFolder(folder, marker=MARKER, force=True, needed=needed) as writer:
        bundle.check_hashes()
        for graph in graphs:
            open_session(bundle.graph_path(graph), device, 1, tuning=Tuning(keep=writer.folder / f"{graph}.onnx"))
            give_back_freed_memory()
        sizes = {path.name: path.stat().st_size for path in writer.folder.iterdir()}
        (writer.folder / MARKER).write_text(json.dumps(sizes) + "\n", encoding="utf-8")
        writer.commit()


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _remove_unused(parent: Path) -> None:
    with suppress(OSError):
        for folder in parent.iterdir():
            if (folder / MARKER).is_file() and time.time() - folder.stat().st_mtime > _UNUSED:
                shutil.rmtree(folder, ignore_errors=True)
