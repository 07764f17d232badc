"""The bundle, the folder that is deployed: bundle.json, tokenizer.json, the graphs and their weights. Opened, verified and
written.

It knows what bundle.json holds and says in one line what is wrong with a folder; it opens no graph and no tokenizer.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from mmada_lite.contracts import BITS, IN_FLOAT32, check_value, check_words, read_json
from mmada_lite.decoding import format_1
from mmada_lite.decoding.settings import ImageSettings, Settings, TextSettings, from_plain
from mmada_lite.errors import Error, did_you_mean, shown
from mmada_lite.families import FAMILIES, Rows
from mmada_lite.files import AtomicFolder, recover, require_readable, sha256_of
from mmada_lite.knowledge import Knowledge
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

MANIFEST = "bundle.json"
FORMAT = "mmada-lite-bundle"
FORMAT_VERSION = 2
HASHED_UP_TO = 256 << 20  # bytes; opening hashes larger bundles only when asked, `hashing` while they work
LARGE = 1 << 30  # bytes of weights from which a CPU's memory decides what is open at a time
LOGITS = 1 << 24  # bytes of logits that a head of such a model makes at a time: 31 rows of the published vocabulary
_AGAIN = "fetch the bundle again, or write it with `mmada-lite export CHECKPOINT -o FOLDER`"
_KEYS_1 = (
    *("format", "format_version", "name", "architecture", "vocabulary", "image"),
    *("quantization", "defaults", "graphs", "files", "provenance"),
)
_LATER_1 = ("target", "tensors")  # absent in older bundles of format 1
_KEYS = (*_KEYS_1, *_LATER_1, "family", "needs", "knows", "rows")
_GRAPHS = ("embedder", "backbone", "text_head", "image_head")
_PICTURES = ("image_encoder", "image_decoder")
HALF_CACHES = "float16_caches"  # keys and values in half precision where they would be in float32
PACKED_FOR_CUDA = "packed_for_cuda"  # codes lie as CUDA's kernels read them: other providers would read others, in silence
FP8_WEIGHTS = "fp8_weights"  # which TensorRT-RTX alone multiplies by, on cards of today
NEEDS: tuple[str, ...] = (HALF_CACHES, PACKED_FOR_CUDA, FP8_WEIGHTS)  # what a bundle may ask of a host, and this one has

_RIGHT: Mapping[Any, Callable[[Any], bool]] = MappingProxyType(
    {
        int: lambda value: type(value) is int and value >= 0,
        str: lambda value: isinstance(value, str),
        str | None: lambda value: value is None or isinstance(value, str),
        int | None: lambda value: value is None or (type(value) is int and value >= 0),
        bool | None: lambda value: value is None or type(value) is bool,
        dict[str, str]: lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    }
)  # type of a field -> whether a value of JSON is one

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The transformer's shape. vocab_size counts the rows of the embedding."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    mlp_hidden_size: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    max_sequence_length: int


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Side in pixels of the pictures that the model was trained on, and pixels per code along a side."""

    resolution: int
    downsample: int


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """One graph: its file within the bundle and the names of its inputs and outputs."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """How the matrices of one group are stored.

    format: fp32, fp16, bf16, int8 or int4; of the integers, bits a weight (7: codes within 63), block (weights along the inputs
    that share a scale; None, a whole column), symmetric (no zero points), scale (how the scales are stored). activation: how
    the graph rounds what is multiplied, None when it does not. bytes: what the group takes on disk. Bundles of before
    quantization say the format alone.
    """

    format: str
    bits: int | None = None
    block: int | None = None
    symmetric: bool | None = None
    scale: str | None = None
    activation: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FileInfo:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a bundle comes from: the checkpoint folder's name, the sha256 of its config.json, who exported it, with
    what, when (UTC); method: how its codes were found, None where they were rounded to nearest."""

    source: str
    exporter: str
    versions: dict[str, str]
    created: str
    source_sha256: str | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Without pictures `image` is None and graphs has no image_encoder and image_decoder."""

    path: Path
    name: str
    architecture: Architecture
    vocabulary: Vocabulary
    image: ImageInfo | None
    quantization: Mapping[str, WeightGroup]
    text_defaults: TextSettings
    image_defaults: ImageSettings
    graphs: Mapping[str, GraphInfo]
    files: Mapping[str, FileInfo]
    provenance: Provenance
    target: str  # the kind of device that the matrices are lowered for: one of contracts.TARGETS
    tensors: Mapping[str, Mapping[str, str]]  # graph -> tensor -> name of its format
    family: str
    needs: tuple[str, ...]  # what a host must be able to do, of `NEEDS`
    knows: Mapping[str, Any]  # what the model was taught, and whatever its maker adds
    knowledge: Knowledge  # of `knows`, what this program reads

    @classmethod
    def open(cls, path: str | Path, verify: str = "auto") -> "Bundle":
        """Read bundle.json and check that every file is there and has its size; check sha256 too, of bundles up to 256 MiB with
        verify="auto", always with verify="full". Raises Error for a folder that is missing, damaged, or of a newer format."""
        if verify not in ("auto", "full"):
            raise Error(f"verify is {verify!r}; use 'auto' or 'full'")
        path = Path(path)
        bundle = _parse(path, _read_manifest(path))
        _verify(bundle, hashes=verify == "full" or bundle.size <= HASHED_UP_TO)
        return replace(bundle, path=path.absolute())  # the process may go to another folder

    @property
    def half_caches(self) -> bool:
        """Whether keys and values are float16: as asked for, and on a GPU unless the backbone is fp32."""
        return HALF_CACHES in self.needs or (self.target not in IN_FLOAT32 and self.quantization["backbone"].format != "fp32")

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(info.size for info in self.files.values())

    @property
    def tokenizer_path(self) -> Path | None:
        return self.path / "tokenizer.json" if "tokenizer.json" in self.files else None

    def check_hashes(self) -> None:
        """Read every file. Raises Error where one is not what bundle.json says."""
        _verify(self, hashes=True)

    def graph_path(self, name: str) -> Path:
        """The file of a graph. Raises Error when the bundle has no such graph."""
        if name not in self.graphs:
            raise Error(f"{self.path} has no graph {name!r}; it has {', '.join(self.graphs)}")
        return self.path / self.graphs[name].file


class BundleWriter(AtomicFolder):
    """Writes a bundle whole or not at all: put the files into `folder`, then `finish`. AtomicFolder says the rest."""

    def __init__(self, target: Path, *, force: bool = False, needed: int = 0) -> None:
        super().__init__(target, marker=MANIFEST, force=force, needed=needed)

    def finish(self, description: Mapping[str, Any]) -> Path:
        """Add bundle.json (the description, with the format and every file's size and sha256) and rename the folder to its
        place."""
        files = {}
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            files[path.relative_to(self.folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **description, "files": files}
        _parse(self.folder, content)  # what is written must be what can be read
        (self.folder / MANIFEST).write_bytes(f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode())
        return self.commit()


def _read_manifest(path: Path) -> Mapping[str, Any]:
    if not path.is_dir():
        recover(path)
    if not path.is_dir():
        raise Error(
            f"{path}: no such bundle folder; check the name, or write one with `mmada-lite export CHECKPOINT -o {path}`"
        )
    manifest = path / MANIFEST
    with suppress(FileNotFoundError):
        require_readable(manifest)
    if not manifest.is_file():
        if (path / "config.json").is_file():
            raise Error(
                f"{path} is a checkpoint and not a bundle; run `mmada-lite export {path} -o FOLDER` and use that folder"
            )
        raise Error(f"{path} is not a bundle: it holds no {MANIFEST}; {_AGAIN}")
    try:
        content = read_json(manifest)
    except (OSError, ValueError) as fault:
        raise Error(f"{manifest} is damaged ({fault}); {_AGAIN}") from fault
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1 or content.get("format") != FORMAT:
        raise Error(f"{manifest} does not describe a mmada-lite bundle; {_AGAIN}")
    if version > FORMAT_VERSION:
        raise Error(
            f"{path} was made by a newer mmada-lite (bundle format {shown(version)}, this program reads up to "
            f"{FORMAT_VERSION}); upgrade with `pip install -U mmada-lite`"
        )
    assert isinstance(content, dict), "it has a version"
    return content


def _parse(path: Path, content: Mapping[str, Any]) -> Bundle:
    where = str(path / MANIFEST)
    told = ("rows", "knows")  # in these a text may have lines
    check_words({key: value for key, value in content.items() if key not in told}, where)
    check_words([content.get(key) for key in told], where, keep="\n\t")
    if content["format_version"] < FORMAT_VERSION:
        _check_keys(content, (*_KEYS_1, *_LATER_1), _KEYS_1, where)
        content = _upgraded(content, where)
    _check_keys(content, _KEYS, _KEYS, where)
    _check_host(content, where)
    defaults = _mapping(content["defaults"], f"{where}: defaults")
    _check_keys(defaults, ("text", "image"), ("text", "image"), f"{where}: defaults")
    try:
        rows = Rows.from_json(_mapping(content["rows"], "rows"), [each.name for each in fields(SpecialTokens)])
        vocabulary = Vocabulary.from_json(_mapping(content["vocabulary"], "vocabulary"), rows)
        knows = MappingProxyType(dict(_mapping(content["knows"], "knows")))
        knowledge = Knowledge.from_json(knows)
    except Error as fault:
        raise Error(f"{where}: {fault}") from None
    image = content["image"]
    bundle = Bundle(
        path=path,
        name=str(content["name"]),
        architecture=_record(Architecture, content["architecture"], f"{where}: architecture"),
        vocabulary=vocabulary,
        image=None if image is None else _record(ImageInfo, image, f"{where}: image"),
        quantization=_records(WeightGroup, content["quantization"], f"{where}: quantization"),
        text_defaults=read_settings(TextSettings, defaults["text"], f"{where}: defaults.text"),
        image_defaults=read_settings(ImageSettings, defaults["image"], f"{where}: defaults.image"),
        graphs=_records(GraphInfo, content["graphs"], f"{where}: graphs"),
        files=_records(FileInfo, content["files"], f"{where}: files"),
        provenance=_record(Provenance, content["provenance"], f"{where}: provenance"),
        target=_value(content["target"], str, f"{where}: target"),
        tensors=_formats(content["tensors"], f"{where}: tensors"),
        family=content["family"],
        needs=tuple(content["needs"]),
        knows=knows,
        knowledge=knowledge,
    )
    _check_files(bundle, where)
    check_value("target", bundle.target, f"{where}: target")
    _check_agreement(bundle, where)
    return bundle


def _upgraded(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content of format 1 as format 2 says it: its settings by their names of today, and what it could not say."""
    defaults, tables = content["defaults"], {"text": format_1.TEXT, "image": format_1.IMAGE}
    if isinstance(defaults, Mapping):
        defaults = {
            kind: format_1.read(tables[kind], said, f"{where}: defaults.{kind}")
            if kind in tables and isinstance(said, Mapping)
            else said
            for kind, said in defaults.items()
        }
    later = {"family": "mmada", "needs": [], "knows": {}, "rows": FAMILIES["mmada"].to_json()}
    return {"target": "cpu", "tensors": {}} | dict(content) | later | {"defaults": defaults}


def _check_host(content: Mapping[str, Any], where: str) -> None:
    """Raises Error for a bundle that asks for more than this program has."""
    newer = "it may be of a newer mmada-lite: `pip install -U mmada-lite`"
    if content["family"] not in tuple(FAMILIES):
        raise Error(f"{where}: family is {content['family']!r}, and this program knows {', '.join(FAMILIES)}; {newer}")
    for need in _value(content["needs"], tuple[str, ...], f"{where}: needs"):
        if need not in NEEDS:
            raise Error(f"{where}: the model needs {need!r}, which this program does not have; {newer}")


def _check_files(bundle: Bundle, where: str) -> None:
    for name in bundle.files:
        if Path(name).is_absolute() or ".." in Path(name).parts or len(name) > 200:
            raise Error(f"{where}: the file {shown(name)} lies outside the bundle; {_AGAIN}")


def _check_agreement(bundle: Bundle, where: str) -> None:
    """Raise Error for the first thing in which two parts of bundle.json do not agree."""
    for fault in _faults(bundle):
        raise Error(f"{where}: {fault}; fetch the bundle again, or export it again")


def _faults(bundle: Bundle) -> Iterator[str]:
    shape, words, image = bundle.architecture, bundle.vocabulary, bundle.image
    if shape.n_heads % shape.n_kv_heads:
        yield f"architecture.n_heads {shape.n_heads} is not a multiple of n_kv_heads {shape.n_kv_heads}"
    if shape.d_model != shape.n_heads * shape.head_dim or shape.head_dim % 2:
        yield f"architecture.d_model {shape.d_model} is not {shape.n_heads} heads of an even size {shape.head_dim} (head_dim)"
    if words.size != shape.vocab_size:
        yield f"vocabulary.size is {words.size} and architecture.vocab_size {shape.vocab_size}"
    for name, token in asdict(words.special).items():
        if 0 <= token - words.image_code_offset < words.codebook_size:
            yield f"vocabulary: special token {name!r} is {token}, which is a picture code"
        if token == words.special.mask and name != "mask":
            yield f"vocabulary: special token {name!r} is {token}, which is the mask"
    if image and image.resolution % image.downsample:
        yield f"image.resolution {image.resolution} is not a multiple of downsample {image.downsample}"
    if image and (codes := (image.resolution // image.downsample) ** 2) >= shape.max_sequence_length:
        longest = shape.max_sequence_length
        yield f"a picture of image.resolution {image.resolution} has {codes} codes, and max_sequence_length is {longest}"
    if HALF_CACHES in bundle.needs and bundle.target not in IN_FLOAT32:
        yield f"it needs {HALF_CACHES!r}, which is for {' and '.join(IN_FLOAT32)}, and target is {bundle.target!r}"
    if FP8_WEIGHTS in bundle.needs and bundle.target != "tensorrt":
        yield f"it needs {FP8_WEIGHTS!r}, which is for tensorrt, and target is {bundle.target!r}"
    for key, group in bundle.quantization.items():
        if group.format == "fp8" and FP8_WEIGHTS not in bundle.needs:
            yield f"quantization.{key} is fp8, and needs lacks {FP8_WEIGHTS!r}"
    pictures = any(name in bundle.graphs for name in _PICTURES) or "codec" in bundle.quantization
    if pictures and image is None:
        yield "it has an image tokenizer, and image is null"
    yield from _differences("graphs", bundle.graphs, (*_GRAPHS, *(_PICTURES if pictures else ())))
    yield from _differences("quantization", bundle.quantization, (*_GRAPHS, *(("codec",) if pictures else ())))
    if "weights.bin" not in bundle.files:
        yield "the file 'weights.bin' of the graphs is not listed under files"
    for name, graph in bundle.graphs.items():
        if graph.file not in bundle.files:
            yield f"the file {graph.file!r} of graph {name!r} is not listed under files"
    for key, group in bundle.quantization.items():
        described = (group.block, group.symmetric, group.scale, group.activation)
        narrow = group.bits == 7 and group.format == "int8" and group.block is None
        other = not narrow and group.bits not in (None, BITS[group.format])
        if other or (BITS[group.format] > 8 and described != (None,) * 4):
            yield f"quantization.{key} is {group.format}, and its other keys are not those of this format"
    for key, tensors in bundle.tensors.items():
        if key not in bundle.graphs:
            yield f"tensors names the graph {key!r}, which is not among graphs"
        if odd := next((name for name, stored in tensors.items() if stored.partition("-")[0] not in BITS), None):
            yield f"tensors.{key} says that {shown(odd)} is {shown(tensors[odd])}, which is no format"


def _differences(key: str, given: Mapping[str, Any], needed: tuple[str, ...]) -> Iterator[str]:
    for name in needed:
        if name not in given:
            yield f"{key} has no {name!r}"
    for name in given:
        if name not in needed:
            yield f"{key} has {name!r}, which such a model has not"


def _verify(bundle: Bundle, *, hashes: bool) -> None:
    for name, info in bundle.files.items():
        path = bundle.path / name
        try:
            require_readable(path)
        except FileNotFoundError:
            raise Error(f"{path}: this file of the bundle is missing; {_AGAIN}") from None
        if (size := path.stat().st_size) != info.size:
            what = "truncated" if size < info.size else "altered"
            raise Error(f"{path} is {what}: {size} bytes, and {MANIFEST} says {info.size}; {_AGAIN}")
        if hashes and sha256_of(path) != info.sha256:
            raise Error(f"{path} was edited or damaged: its sha256 is not the one in {MANIFEST}; {_AGAIN}")


def read_settings(cls: type[Settings], content: Any, where: str) -> Settings:
    """Settings from plain JSON. Every fault is an Error that begins with `where`."""
    try:
        return from_plain(cls, _mapping(content, where))
    except Error as fault:
        raise Error(str(fault) if str(fault).startswith(where) else f"{where}: {fault}") from None


def _formats(content: Any, where: str) -> Mapping[str, Mapping[str, str]]:
    graphs = _mapping(content, where)
    return MappingProxyType({name: _value(tensors, dict[str, str], f"{where}.{name}") for name, tensors in graphs.items()})


def _records(cls: type[Record], content: Any, where: str) -> Mapping[str, Record]:
    named = {name: _record(cls, value, f"{where}.{name}") for name, value in _mapping(content, where).items()}
    return MappingProxyType(named)


def _record(cls: type[Record], content: Any, where: str) -> Record:
    """A frozen dataclass from plain JSON, every key and type checked."""
    content = _mapping(content, where)
    known = fields(cls)  # type: ignore[arg-type]
    _check_keys(content, [f.name for f in known], [f.name for f in known if f.default is MISSING], where)
    values = {f.name: _value(content[f.name], f.type, f"{where}.{f.name}") for f in known if f.name in content}
    for name, value in values.items():
        check_value(name, value, f"{where}.{name}")
    return cls(**values)


def _value(value: Any, kind: Any, where: str) -> Any:
    if kind == tuple[str, ...] and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind is float and type(value) in (int, float):
        return float(max(-1e300, min(value, 1e300)))  # `check_value` says which there can be
    if not _RIGHT.get(kind, lambda _: False)(value):
        raise Error(f"{where} is {shown(value)}, which it cannot be; {_AGAIN}")
    return value


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise Error(f"{where} is {shown(content)} where an object is needed; {_AGAIN}")
    return content


def _check_keys(content: Mapping[str, Any], known: Collection[str], required: Collection[str], where: str) -> None:
    for key in content:
        if key not in known:
            hint = did_you_mean(key, known, f"the keys are {', '.join(known)}")
            raise Error(f"{where}: unknown key {shown(key)}; {hint}")
    for key in required:
        if key not in content:
            raise Error(f"{where}: the key {key!r} is missing; {_AGAIN}")
