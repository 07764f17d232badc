"""Whether an opened graph is the one that bundle.json describes: names, types and fixed lengths of what goes in and comes out,
and, of the image tokenizer, what a run gives.

It opens nothing and knows no device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bundle import MANIFEST, Bundle
from mmada_lite.errors import Error, printable

Axis = str | int  # a fixed length by the key of bundle.json that says it; free ones by a letter
Values = Mapping[str, tuple[str, tuple[Axis, ...]]]  # name -> type, axes
Run = Callable[[], list[NDArray]]
_FLOAT, _INT = "tensor(float)", "tensor(int64)"


def check_interface(bundle: Bundle, graph: str, session: Any) -> None:
    """Raise Error, with the key of bundle.json and the graph's file, where a session is not what bundle.json says of it."""
    info = bundle.graphs[graph]
    where = f"{bundle.path / MANIFEST}: graphs.{graph} is {info.file}"
    inputs, outputs = _declared(bundle, graph)
    lengths = _lengths(bundle)
    sides = (("inputs", inputs, session.get_inputs()), ("outputs", outputs, session.get_outputs()))
    for side, declared, values in sides:
        found = {value.name: value for value in values}
        _check_layers(bundle, graph, found, where)
        optional = {"magnitude"} & set(found)
        if (fault := _difference(set(declared) | optional, set(found))) is not None:
            raise Error(f"{where}, whose {side} {fault}; export the bundle again")
        if (fault := _difference(set(getattr(info, side)), set(found))) is not None:
            raise Error(f"{where}, whose {side} beside graphs.{graph}.{side} {fault}; export the bundle again")
        for name, (kind, axes) in declared.items():
            for fault in _faults(found[name], kind, axes, lengths):
                raise Error(f"{where}, whose {name} {fault}; export the bundle again")


def _declared(bundle: Bundle, graph: str) -> tuple[Values, Values]:
    """The inputs and the outputs that a graph must have (docs/bundle.md)."""
    half = bundle.target != "cpu" and bundle.quantization["backbone"].format != "fp32"
    kept, width = "tensor(float16)" if half else _FLOAT, "architecture.d_model"
    states = ("architecture.n_kv_heads", "W", "architecture.head_dim")
    layers = range(bundle.architecture.n_layers)
    if graph == "embedder":
        return {"tokens": (_INT, ("B", "W"))}, {"embeddings": (_FLOAT, ("B", "W", width))}
    if graph == "backbone":
        kinds = [f"{kind}_{layer}" for kind in ("key", "value") for layer in layers]
        past = {f"past_{name}": (kept, ("B", *states)) for name in kinds}
        given: Values = {"embeddings": (_FLOAT, ("B", "W", width)), "positions": (_INT, ("B", "W")), "rows": (_INT, ("B", "Q"))}
        return {**given, **past}, {"hidden": (_FLOAT, ("B", "Q", width)), **dict.fromkeys(kinds, (kept, ("B", *states)))}
    if graph in ("text_head", "image_head"):
        columns = "vocabulary.size" if graph == "text_head" else "vocabulary.codebook_size"
        drawn = dict.fromkeys(("log_probability", "entropy"), (_FLOAT, ("N", "Q")))
        given = {"hidden": (_FLOAT, ("R", "Q", width)), "mix": (_FLOAT, ("N", "R"))}
        return (
            {**given, "temperature": (_FLOAT, ()), "uniform": (_FLOAT, ("N", "Q"))},
            {"token": (_INT, ("N", "Q")), **drawn, "logits": (_FLOAT, ("N", "Q", columns))},
        )
    pixels, codes = {"pixels": (_FLOAT, ("B", 3, "H", "W"))}, {"codes": (_INT, ("B", "h", "w"))}
    return (pixels, codes) if graph == "image_encoder" else (codes, pixels)


def _lengths(bundle: Bundle) -> Mapping[str, int]:
    shape, words = bundle.architecture, bundle.vocabulary
    named = {f"architecture.{name}": getattr(shape, name) for name in ("d_model", "n_kv_heads", "head_dim")}
    return {**named, "vocabulary.size": words.size, "vocabulary.codebook_size": words.codebook_size}


def _check_layers(bundle: Bundle, graph: str, found: Mapping[str, Any], where: str) -> None:
    count, said = sum("key_" in name for name in found), bundle.architecture.n_layers
    if graph == "backbone" and count != said:
        raise Error(f"{where}, which has {count} layers, and architecture.n_layers is {said}; export the bundle again")


def _difference(wanted: set[str], found: set[str]) -> str | None:
    lacking, beyond = sorted(wanted - found), sorted(found - wanted)
    if lacking:
        return f"lack {lacking[0]!r}"
    return f"have {beyond[0]!r}, which is not declared" if beyond else None


def _faults(value: Any, kind: str, axes: Sequence[Axis], lengths: Mapping[str, int]) -> Iterator[str]:
    if value.type != kind:
        yield f"is a {printable(value.type)} where a {kind} is needed"
    if len(value.shape) != len(axes):
        yield f"has {len(value.shape)} axes where {len(axes)} are needed"
    for place, (axis, length) in enumerate(zip(axes, value.shape, strict=False)):
        if axis in lengths and length != lengths[str(axis)]:
            yield f"has the length {length} on axis {place}, and {axis} is {lengths[str(axis)]}"
        elif axis == 3 and length != 3:
            yield f"has the length {length} on axis {place} where 3 is needed"
        elif axis not in lengths and axis != 3 and isinstance(length, int):
            yield f"has the fixed length {length} on axis {place}, which must be free"


class CodecSession:
    """A graph of the image tokenizer in a session's place: each run is guarded, and what it gives is what bundle.json says."""

    def __init__(self, bundle: Bundle, graph: str, session: Any, guard: Callable[[Run, str], list[NDArray]]) -> None:
        self._bundle, self._graph, self._session, self._guard = bundle, graph, session, guard
        self._outputs = list(bundle.graphs[graph].outputs)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray]) -> list[NDArray]:
        """As a session's. Raises Error for numbers that no sound graph gives."""
        (given,) = feeds.values()
        values = self._guard(lambda: self._session.run(self._outputs, feeds), self._graph)
        made = dict(zip(self._outputs, values, strict=True))
        for fault in self._faults(given, made):
            file = self._bundle.graph_path(self._graph)
            raise Error(f"{file} {fault}; check the bundle with `mmada-lite info {self._bundle.path} --verify`")
        return [made[name] for name in outputs]

    def _faults(self, given: NDArray, made: Mapping[str, NDArray]) -> Iterator[str]:
        assert self._bundle.image is not None, "a bundle without pictures has no image tokenizer"
        pixels, words = self._bundle.image.downsample, self._bundle.vocabulary
        if self._graph == "image_decoder":
            picture, sides = made["pixels"], tuple(pixels * side for side in given.shape[1:])
            if picture.shape != (len(given), 3, *sides):
                yield f"draws {picture.shape} from {given.shape} codes, and image.downsample is {pixels}"
            if not np.isfinite(picture).all():
                yield "draws pixels that are not finite, so its weights are damaged"
            return
        codes, sides = made["codes"], tuple(side // pixels for side in given.shape[2:])
        if codes.shape != (len(given), *sides):
            yield f"gives codes {codes.shape} of pixels {given.shape}, and image.downsample is {pixels}"
        if codes.size and not 0 <= codes.min() <= codes.max() < words.codebook_size:
            yield f"gives a code beyond vocabulary.codebook_size {words.codebook_size}"
        if "magnitude" in made and not np.isfinite(made["magnitude"]).all():
            yield "reads a picture as numbers that are not finite, so its weights are damaged"
