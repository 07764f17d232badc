"""The folder `engines` of a bundle: TensorRT engines built ahead of time, each under a key that says what it fits, and the
optimization profiles that they are built for.

It knows names, records, the lengths that a graph's axes may have, and what makes an engine unusable here. How an engine is
built is `mmada_lite.export.engines`; how one is run is `loader`'s. Engines are not listed in bundle.json: they belong to a card
and may be made and thrown away at any time.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mmada_lite.bundle import HASHED_UP_TO, Bundle
from mmada_lite.contracts import read_json
from mmada_lite.errors import Error
from mmada_lite.files import cache_folder, sha256_of

FOLDER = "engines"
ABSENT = "is not there"
NAMES = ("prefill", "block", "picture")  # of the profiles
TOGETHER = "+"  # between the compute capabilities of one engine
ENGINES_OF = ("backbone", "text_head", "image_head")
LONGEST_BLOCK = 256  # tokens that a text step may ask for at once
PADDED = 32  # queries are filled up to a multiple of it: as many rows as a product of a card takes for little more than one
_PROMPT = 130  # tokens around a picture's codes, likeliest: a sentence and the special ones
Range = tuple[int, int, int]  # least, likeliest, largest


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine was built from and for; an engine is used only where all of it is equal.

    graph: its name; graph_sha256: of the graph and its weights; builder: program and version, "tensorrt-rtx 1.7.1.116";
    compute_capability: of the card, "8.9", or of several, joined by "+"; profile: names of the optimization profiles, joined by
    "+", with a digest of their shapes.
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
        return f"{self.graph}-sm{self.compute_capability.replace('.', '').replace(TOGETHER, '-')}-{digest[:16]}"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Of every card that it is for."""
        return tuple(self.compute_capability.split(TOGETHER))


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


def provider_folder(bundle: Bundle, graph: str, compute_capability: str, version: str, driver: str) -> Path:
    """Where TensorRT's provider keeps the engines of a graph that it builds itself, of one version for one card under one
    driver; made where it is not there. Raises Error where it may not be made."""
    card = f"sm{compute_capability.replace('.', '')}-driver-{driver}"
    cache = bundle.path / FOLDER / f"tensorrt-{version or 'unknown'}-{card}" / graph
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"engines cannot be kept in {cache} ({error.strerror}); copy the bundle where you may write") from error
    return cache


def kernel_folder(bundle: Bundle, graph: str, compute_capability: str, builder: str, driver: str) -> Path | None:
    """Where TensorRT-RTX's provider keeps the kernels that it compiles for a graph, of one version for one card under one
    driver; None where it cannot be made, so that they are compiled at every load."""
    facts = [graph_sha256(bundle, graph), compute_capability, builder, driver]
    folder = cache_folder() / "rtx" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def none_built(graph: str) -> str:
    """What `find` says where there is nothing to choose from."""
    return f"no engine of {graph} was built ahead of time"


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
        recorded, wanted = getattr(record.key, field.name), getattr(key, field.name)
        if recorded != wanted:
            return f"was built for {field.name.replace('_', ' ')} {recorded}, not {wanted}"
    if not path.is_file() or not host_graph_path(bundle, key).is_file():
        return "is corrupt (a file of it is missing)"
    if path.stat().st_size != record.size:
        return f"is corrupt ({path.stat().st_size} bytes, and {record.size} were built)"
    if (thorough or record.size <= HASHED_UP_TO) and sha256_of(path) != record.sha256:
        return "is corrupt (its sha256 is not that of what was built)"
    return None


def record_of(key: EngineKey, engine: Path) -> EngineRecord:
    return EngineRecord(key, engine.stat().st_size, sha256_of(engine))


def write_record(path: Path, record: EngineRecord) -> None:
    path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> EngineRecord:
    """Raises Error, without the file's name, when it is missing or no record."""
    try:
        content: Any = read_json(path)
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
    """An engine of a graph that fits a card, or None; and in words why. program, version: what will run it; a version may be
    just the beginning of one."""
    wanted = graph_sha256(bundle, graph)
    why_not = none_built(graph)
    for path, record in records(bundle):
        key = record.key
        made_by, _, made_with = key.builder.partition(" ")
        if key.graph != graph or key.stem != path.stem or made_by != program:
            continue
        if key.graph_sha256 != wanted:
            why_not = f"{path.name} was built from another graph"
        elif compute_capability not in key.capabilities:
            built_for = ", ".join(key.capabilities)
            why_not = f"{path.name} was built for compute capability {built_for}, and this card has {compute_capability}"
        elif not made_with.startswith(version):
            why_not = f"{path.name} was built with {key.builder}, and {version} is here"
        elif key.profile != described(profiles_of(graph, profiles_for(bundle, profile_names(key)))):
            why_not = f"{path.name} was built for other shapes"
        elif (reason := fault(bundle, key)) is not None:
            why_not = f"{path.name} {reason}"
        else:
            return key, f"{path.name} fits"
    return None, why_not


def profile_names(key: EngineKey) -> tuple[str, ...]:
    """Of the optimization profiles of an engine, those that there are."""
    return tuple(name for name in key.profile.partition(" ")[0].split(TOGETHER) if name in NAMES)


@dataclass(frozen=True, slots=True)
class Profile:
    """axes: letter -> range. B rows, W window, P past, Q queried positions, R states, N mixed rows."""

    name: str
    axes: Mapping[str, Range]

    def shape(self, dims: Sequence[int | str], which: int) -> tuple[int, ...]:
        """The dims of an input with every letter replaced by its least (0), likeliest (1) or largest (2) length."""
        return tuple(self.axes[dim][which] if isinstance(dim, str) else dim for dim in dims)


def profiles_for(bundle: Bundle, names: Sequence[str] = NAMES) -> tuple[Profile, ...]:
    """The named profiles in their own order. Prefill spans everything, so that a host that knows one profile can run all.

    prefill: the whole row, no past. block: a block over a long past. picture: the whole row, all codes queried; left out of
    the default where the model has no pictures. Raises Error for an unknown name or a picture profile without pictures.
    """
    require_profiles(names)
    profiles = {profile.name: profile for profile in _all(bundle)}
    if tuple(names) != NAMES and "picture" in names and "picture" not in profiles:
        raise Error(f"{bundle.path} sees and draws no pictures; leave out --profile picture")
    return tuple(profiles[name] for name in NAMES if name in names and name in profiles)


def require_profiles(names: Sequence[str]) -> None:
    """Raise Error for an unknown name."""
    for name in names:
        if name not in NAMES:
            raise Error(f"no profile is called {name!r}; use one of {', '.join(NAMES)}")


def profiles_of(graph: str, profiles: Sequence[Profile]) -> tuple[Profile, ...]:
    """Those of the chosen profiles that a graph is run with. A head sees the queried rows alone, so one does for it."""
    wanted = {"text_head": ("block", "prefill"), "image_head": ("picture",)}.get(graph)
    if wanted is None:
        return tuple(profiles)
    return tuple(profile for name in wanted for profile in profiles if profile.name == name)[:1]


def input_dims(bundle: Bundle, graph: str) -> dict[str, tuple[int | str, ...]]:
    """The dims of every input of a graph, free axes by their letter (docs/bundle.md)."""
    a = bundle.architecture
    if graph != "backbone":
        return {"hidden": ("R", "Q", a.d_model), "mix": ("N", "R"), "uniform": ("N", "Q")}
    past: tuple[int | str, ...] = ("B", a.n_kv_heads, "P", a.head_dim)
    pasts = {f"past_{kind}_{layer}": past for layer in range(a.n_layers) for kind in ("key", "value")}
    return {"embeddings": ("B", "W", a.d_model), "positions": ("B", "W"), **pasts, "rows": ("B", "Q")}


def shapes_of(bundle: Bundle, graph: str, profile: Profile) -> dict[str, str]:
    """min, opt and max -> the shapes of all inputs, `embeddings:1x1x4096,positions:1x1,...`."""
    dims_of = input_dims(bundle, graph)
    return {
        end: ",".join(f"{name}:{'x'.join(map(str, profile.shape(dims, which)))}" for name, dims in dims_of.items())
        for which, end in enumerate(("min", "opt", "max"))
    }


def shape_options(bundle: Bundle, graph: str, option: str) -> dict[str, str]:
    """The profile that spans everything, as the providers' options want it.

    option: a provider's name for it, with a place for min, opt and max."""
    profile = profiles_of(graph, profiles_for(bundle))[0]
    return {option.format(end): shapes for end, shapes in shapes_of(bundle, graph, profile).items()}


def described(profiles: Sequence[Profile]) -> str:
    """Names and a digest of the shapes, for an engine's key."""
    text = repr([(profile.name, sorted(profile.axes.items())) for profile in profiles])
    return "+".join(profile.name for profile in profiles) + f" {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _all(bundle: Bundle) -> list[Profile]:
    longest = bundle.architecture.max_sequence_length
    block = min(bundle.text_defaults.block_length, longest)
    most = min(longest, max(block, LONGEST_BLOCK))
    codes = (bundle.image.resolution // bundle.image.downsample) ** 2 if bundle.image else 0
    queried = max(most, codes)
    rows: dict[str, Range] = {"B": (1, 1, 1), "N": (1, 1, 1), "R": (1, 1, 2)}
    likeliest = min(longest, codes + _PROMPT if codes else longest // 2)
    profiles = [
        Profile("prefill", rows | {"W": (1, likeliest, longest), "P": (0, 0, longest), "Q": (1, block, queried)}),
        Profile("block", rows | {"W": (1, block, most), "P": (0, likeliest, longest), "Q": (1, block, most)}),
    ]
    if codes:
        pictures = {"W": (codes, likeliest, longest), "P": (0, 0, 0), "Q": (1, codes, codes), "R": (1, 2, 2)}
        profiles.append(Profile("picture", rows | pictures))
    return [replace(each, axes={**each.axes, "Q": _filled(each.axes["Q"])}) for each in profiles]


def _filled(queries: Range) -> Range:
    """So many queries, or so many as they are filled up to (`captured`)."""
    least, *more = queries
    likeliest, largest = (-(-count // PADDED) * PADDED for count in more)
    return least, likeliest, largest
