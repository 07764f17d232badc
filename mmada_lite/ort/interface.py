"""Whether an opened graph is the one that bundle.json describes: names, types and fixed lengths of what goes in and comes out,
and, of the image tokenizer, what a run gives.

It opens nothing and knows no device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bundle import MANIFEST, Bundle
from mmada_lite.errors import Error, printable

Run = Callable[[], list[NDArray]]
# Graph -> its inputs, its outputs (docs/bundle.md): of each the name, the type and the axes. A letter is a free axis, a word a
# length that bundle.json says under `architecture` or `vocabulary`; k is the type of keys and values, L every layer.
_KEPT = "{0}key_L k B n_kv_heads P head_dim, {0}value_L k B n_kv_heads P head_dim"
_HEAD = "hidden f R Q d_model, mix f N R, temperature f, uniform f N Q"
_DRAWN = "token i N Q, log_probability f N Q, entropy f N Q, logits f N Q "
_GRAPHS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "embedder": ("tokens i B W", "embeddings f B W d_model"),
        "backbone": (
            f"embeddings f B W d_model, positions i B W, rows i B Q, {_KEPT.format('past_')}",
            f"hidden f B Q d_model, {_KEPT.format('')}",
        ),
        "text_head": (_HEAD, f"{_DRAWN}size"),
        "image_head": (_HEAD, f"{_DRAWN}codebook_size"),
        "image_encoder": ("pixels f B 3 H W", "codes i B H W"),
        "image_decoder": ("codes i B H W", "pixels f B 3 H W"),
    }
)
_LATER = {"magnitude"}  # outputs that older bundles lack


def check_interface(bundle: Bundle, graph: str, session: Any) -> None:
    """Raise Error, with the key of bundle.json and the graph's file, where a session is not what bundle.json says of it."""
    for fault in _faults(bundle, graph, session):
        file = bundle.graphs[graph].file
        raise Error(f"{bundle.path / MANIFEST}: graphs.{graph} is {file}, {printable(fault, '')}; export the bundle again")


def _faults(bundle: Bundle, graph: str, session: Any) -> Iterator[str]:
    info, layers, lengths = bundle.graphs[graph], bundle.architecture.n_layers, _lengths(bundle)
    given = (("inputs", info.inputs, session.get_inputs()), ("outputs", info.outputs, session.get_outputs()))
    for (side, said, values), declared in zip(given, _GRAPHS[graph], strict=True):
        found = {value.name: value for value in values}
        if graph == "backbone" and (count := sum("key_" in name for name in found)) != layers:
            yield f"which has {count} layers, and architecture.n_layers is {layers}"
        wanted = {name: rest for part in declared.split(", ") for name, *rest in _of_layers(part, layers)}
        for names, where in ((set(wanted) | (_LATER & set(found)), side), (set(said), f"{side} beside graphs.{graph}.{side}")):
            if lacking := sorted(names - set(found)):
                yield f"whose {where} lack {lacking[0]!r}"
            if beyond := sorted(set(found) - names):
                yield f"whose {where} have {beyond[0]!r}, which is not declared"
        for name, (kind, *axes) in wanted.items():
            yield from (f"whose {name} {fault}" for fault in _odd(found[name], _type(bundle, kind), axes, lengths))


def _of_layers(part: str, layers: int) -> list[list[str]]:
    """Name, type and axes of a value, or of the values that every layer has."""
    return [part.replace("_L ", f"_{layer} ").split() for layer in range(layers if "_L " in part else 1)]


def _type(bundle: Bundle, kind: str) -> str:
    return "tensor(float16)" if kind == "k" and bundle.half_caches else "tensor(int64)" if kind == "i" else "tensor(float)"


def _lengths(bundle: Bundle) -> Mapping[str, tuple[int, str]]:
    """Word -> the length, and the key that says it."""
    keys = [*(("architecture", name) for name in ("d_model", "n_kv_heads", "head_dim"))]
    keys += [("vocabulary", name) for name in ("size", "codebook_size")]
    return {name: (getattr(getattr(bundle, key), name), f"{key}.{name}") for key, name in keys} | {"3": (3, "what is needed")}


def _odd(value: Any, kind: str, axes: Sequence[str], lengths: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    if value.type != kind:
        yield f"is a {value.type} where a {kind} is needed"
    if len(value.shape) != len(axes):
        yield f"has {len(value.shape)} axes where {len(axes)} are needed"
    for place, (axis, length) in enumerate(zip(axes, value.shape, strict=False)):
        if axis in lengths and length != lengths[axis][0]:
            yield f"has the length {length} on axis {place}, and {lengths[axis][1]} is {lengths[axis][0]}"
        if axis not in lengths and isinstance(length, int):
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
