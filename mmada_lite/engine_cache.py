"""The folder `engines` of a bundle: TensorRT engines built ahead of time, each under a key that says what it fits.

It knows names, records and what makes an engine unusable here. How an engine is built is `mmada_lite.export.engines`; how
one is run is `sessions`. Engines are not listed in bundle.json: they belong to a card and may be made and thrown away at any
time.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmada_lite.bundle import HASHED_UP_TO, Bundle
from mmada_lite.errors import Error

FOLDER = "engines"
ABSENT = "is not there"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine was built from and for; an engine is used only where all of it is equal.

    graph: its name; graph_sha256: of the graph and its weights; builder: program and version, "tensorrt-rtx 1.7.1.116";
    compute_capability: of the card, "8.9"; profile: names of the optimization profiles, joined by "+", with a digest of their
    shapes.
    """

    graph: str
    graph_sha256: str
    builder: str
    compute_capability: str
    profile: str

    @property
    def stem(self) -> str:
        """The name of its files: readable in front, unmistakable behind."""
        digest = hashlib.sha256("\n".join(str(value) for value in asdict(self).values()).encode()).hexdigest()
        return f"{self.graph}-sm{self.compute_capability.replace('.', '')}-{digest[:16]}"


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What lies beside an engine: its key, and its size and sha256 as it was built."""

    key: EngineKey
    size: int
    sha256: str


def graph_sha256(bundle: Bundle, graph: str) -> str:
    """One digest of a graph's file and of the weights that it may point into, as bundle.json states them."""
    bundle.graph_path(graph)  # for its error
    parts = [bundle.files[bundle.graphs[graph].file].sha256]
    parts += [info.sha256 for name, info in sorted(bundle.files.items()) if name.endswith(".bin")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def engine_path(bundle: Bundle, key: EngineKey) -> Path:
    return bundle.path / FOLDER / f"{key.stem}.engine"


def host_graph_path(bundle: Bundle, key: EngineKey) -> Path:
    """The small ONNX file that onnxruntime opens in the engine's place (one EPContext node)."""
    return bundle.path / FOLDER / f"{key.stem}.onnx"


def fault(bundle: Bundle, key: EngineKey, *, thorough: bool = False) -> str | None:
    """Why the engine of a key cannot be used, in words that follow its name; None when it can.

    Its sha256 is compared up to 256 MiB, and always when `thorough`.
    """
    path = engine_path(bundle, key)
    if not path.is_file() and not path.with_suffix(".json").is_file():
        return ABSENT
    try:
        record = read_record(path.with_suffix(".json"))
    except Error as error:
        return f"is corrupt ({error})"
    for field in fields(EngineKey):
        found, wanted = getattr(record.key, field.name), getattr(key, field.name)
        if found != wanted:
            return f"was built for {field.name.replace('_', ' ')} {found}, not {wanted}"
    if not path.is_file() or not host_graph_path(bundle, key).is_file():
        return "is corrupt (a file of it is missing)"
    if path.stat().st_size != record.size:
        return f"is corrupt ({path.stat().st_size} bytes, and {record.size} were built)"
    if (thorough or record.size <= HASHED_UP_TO) and _sha256(path) != record.sha256:
        return "is corrupt (its sha256 is not that of what was built)"
    return None


def record_of(key: EngineKey, engine: Path) -> EngineRecord:
    return EngineRecord(key, engine.stat().st_size, _sha256(engine))


def write_record(path: Path, record: EngineRecord) -> None:
    path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> EngineRecord:
    """Raises Error, without the file's name, when it is missing or no record."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        key = EngineKey(**{field.name: str(content["key"][field.name]) for field in fields(EngineKey)})
        return EngineRecord(key, int(content["size"]), str(content["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Error("its record cannot be read") from error


def records(bundle: Bundle) -> Iterator[tuple[Path, EngineRecord]]:
    """Every engine with a record that can be read, by name."""
    for path in sorted((bundle.path / FOLDER).glob("*.json")):
        try:
            yield path.with_suffix(".engine"), read_record(path)
        except Error:
            continue


def find(
    bundle: Bundle, graph: str, compute_capability: str, program: str = "tensorrt-rtx", version: str = ""
) -> tuple[EngineKey | None, str]:
    """An engine of a graph that fits a card, or None; and in words what was found. program, version: what will run it; a
    version may be just the beginning of one."""
    wanted = graph_sha256(bundle, graph)
    said = f"no engine of {graph} was built ahead of time"
    for path, record in records(bundle):
        key = record.key
        made_by, _, made_with = key.builder.partition(" ")
        if key.graph != graph or key.stem != path.stem or made_by != program:
            continue
        if key.graph_sha256 != wanted:
            said = f"{path.name} was built from another graph"
        elif key.compute_capability != compute_capability:
            said = (
                f"{path.name} was built for compute capability {key.compute_capability}, and this card has {compute_capability}"
            )
        elif not made_with.startswith(version):
            said = f"{path.name} was built with {key.builder}, and {version} is here"
        elif (why := fault(bundle, key)) is not None:
            said = f"{path.name} {why}"
        else:
            return key, f"{path.name} fits"
    return None, said


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
