"""Engines ahead of time: for a bundle's graphs, a card and profiles, whatever is missing in `engines` is built and kept there.

An engine that is corrupt or was built for something else is built anew, and that is said. Of two processes that want the same
engine one builds and the other waits. It knows keys, files and locks; what turns a graph into an engine is passed in.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from mmada_lite.bundle import FP8_WEIGHTS, Bundle
from mmada_lite.errors import Error
from mmada_lite.export import rtx_builder
from mmada_lite.export.graph import CONTRIB, CONTRIB_OPSET, IR_VERSION, OPSET
from mmada_lite.files import size_in_words
from mmada_lite.ort.engines import (
    ABSENT,
    ENGINES_OF,
    FOLDER,
    NAMES,
    EngineKey,
    Profile,
    described,
    engine_path,
    fault,
    graph_sha256,
    host_graph_path,
    profiles_for,
    profiles_of,
    record_of,
    records,
    write_record,
)

Build = Callable[[Path, Sequence[Profile], str, Callable[[float], None]], Any]
Say = Callable[[str], None]  # one line for a person
Show = Callable[[str], None]  # the present state of the work, written over by the next
_POLL = 0.1  # seconds
_SMALL_HEADS = 8  # numbers of a head for which TensorRT-RTX 1.7 has no attention
_PROVIDERS = {"tensorrt-rtx": "NvTensorRTRTXExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that is ready; `built` is false when it was there already, or another process built it."""

    key: EngineKey
    path: Path
    size: int
    built: bool


def build_engines(
    bundle: Bundle,
    compute_capability: str = "",
    *,
    profiles: Sequence[str] = NAMES,
    say: Say,
    show: Show = lambda line: None,
    build: Build | None = None,
    builder: str | None = None,
) -> list[Engine]:
    """Make sure that the backbone and the heads have engines for a card; returns them.

    compute_capability: of the card, or of several, joined by "+"; "" makes one engine for every card that can run it. `build`
    and `builder` (its name and version) stand in for TensorRT-RTX. Raises Error when the bundle is lowered for anything but
    TensorRT, for an unknown card or profile, and when TensorRT is not installed or refuses a graph.
    """
    if bundle.target != "tensorrt":
        raise Error(
            f"{bundle.path} is lowered for {bundle.target}, which TensorRT does not read; export it with --target tensorrt"
        )
    if build is None and bundle.architecture.head_dim <= _SMALL_HEADS:
        raise Error(
            f"{bundle.path} has heads of {bundle.architecture.head_dim} numbers, and TensorRT attends with more than "
            f"{_SMALL_HEADS}; use another model, or --device cpu"
        )
    chosen = profiles_for(bundle, profiles)
    made_by = builder or rtx_builder.version()
    fp8 = FP8_WEIGHTS in bundle.needs
    compute_capability = compute_capability or rtx_builder.every_card(fp8=fp8)
    if build is None:
        rtx_builder.require_known(compute_capability, fp8=fp8)
    (bundle.path / FOLDER).mkdir(exist_ok=True)
    ready = []
    for graph in (name for name in ENGINES_OF if name in bundle.graphs):
        if own := profiles_of(graph, chosen):
            key = EngineKey(graph, graph_sha256(bundle, graph), made_by, compute_capability, described(own))
            with _locked(engine_path(bundle, key).with_suffix(".lock"), say):
                ready.append(_ready(bundle, key, own, build or rtx_builder.build, say, show))
    return ready


def _ready(bundle: Bundle, key: EngineKey, profiles: Sequence[Profile], build: Build, say: Say, show: Show) -> Engine:
    """The engine of a key, built unless a sound one is there. The lock is held."""
    path = engine_path(bundle, key)
    reason = fault(bundle, key, thorough=True)
    if reason is None:
        say(f"{path.name} fits, {size_in_words(path.stat().st_size)}")
        return Engine(key, path, path.stat().st_size, built=False)
    notice = _others(bundle, key) if reason == ABSENT else f"{path.name} {reason}: building it anew"
    say(notice or f"building {path.name}")
    started = time.monotonic()
    title = f"{key.graph} for compute capability {', '.join(key.capabilities)}"
    data = build(
        bundle.graph_path(key.graph), profiles, key.compute_capability, lambda part: show(f"{100 * part:3.0f}%  {title}")
    )
    _save(bundle, key, data)
    size = path.stat().st_size
    say(f"built {path.name}, {size_in_words(size)}, in {time.monotonic() - started:.1f} s")
    return Engine(key, path, size, built=True)


def _others(bundle: Bundle, key: EngineKey) -> str:
    """Why engines of the same graph that are there do not do; "" when there are none."""
    for path, record in records(bundle):
        if record.key.graph == key.graph and record.key != key:
            different = [
                name
                for name in ("graph_sha256", "builder", "compute_capability", "profile")
                if getattr(record.key, name) != getattr(key, name)
            ]
            built_for = ", ".join(f"{name.replace('_', ' ')} {getattr(record.key, name)[:40]}" for name in different)
            return f"{path.name} was built for {built_for}: building {key.stem}.engine"
    return ""


def _save(bundle: Bundle, key: EngineKey, data: Any) -> None:
    """Write the engine, the graph that a host opens, and last the record without which neither is used."""
    path = engine_path(bundle, key)
    record = path.with_suffix(".json")
    record.unlink(missing_ok=True)
    partial = path.with_suffix(f".part-{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            stream.write(memoryview(data))
            stream.flush()
            os.fsync(stream.fileno())
        content = record_of(key, partial)
        partial.replace(path)
        onnx.save(host_graph(bundle.graph_path(key.graph), key, path.name), str(host_graph_path(bundle, key)))
        write_record(partial, content)
        partial.replace(record)
    finally:
        partial.unlink(missing_ok=True)


def host_graph(graph: Path, key: EngineKey, engine: str) -> onnx.ModelProto:
    """A graph of the same inputs and outputs whose one node is the engine, as onnxruntime's provider reads it."""
    inner = onnx.load(str(graph), load_external_data=False).graph
    node = helper.make_node(
        "EPContext",
        [value.name for value in inner.input],
        [value.name for value in inner.output],
        name=f"{key.graph}_engine",
        domain=CONTRIB,
        main_context=1,
        embed_mode=0,
        ep_cache_context=engine,
        ep_sdk_version=key.builder.split()[-1],
        hardware_architecture=",".join(each.replace(".", "") for each in key.capabilities),
        onnx_model_filename=graph.name,
        partition_name=f"{key.graph}_0",
        source=_PROVIDERS.get(key.builder.split()[0], ""),
    )
    outer = helper.make_graph([node], key.graph, inner.input, inner.output)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
    return helper.make_model(outer, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mmada-lite")


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Only one process at a time; the others wait and say so. A process that dies lets go."""
    with path.open("w") as stream:
        waiting = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    say(f"another process is building {path.stem}.engine: waiting for it")
                waiting = True
                time.sleep(_POLL)
        yield
