"""A model as onnxruntime sessions on the CPU: the graphs of a bundle behind the protocol that the decoding loops use.

Which file a session opens and on which device is `loader`'s; a model that stays on a GPU is `device_denoiser`'s.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.ort.session import onnxruntime_package

if TYPE_CHECKING:
    import onnxruntime

HEAD_OUTPUTS = ("token", "log_probability", "entropy")
PAST_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}  # as onnxruntime says them: as numpy does


class OnnxDenoiser:
    """The sessions of a bundle tied together.

    onnxruntime holds every output of a graph to the end of a run, asked for or not: at 8B that would be 1.2 GB of keys and
    values for a picture with its question. So they are written into arrays of ours: those that are kept, where they stay, and
    all others one over the other, since a layer's are read before the next layer's can be made.
    """

    def __init__(
        self,
        sessions: "dict[str, onnxruntime.InferenceSession]",
        layers: int,
        heads: int,
        head_dim: int,
        guard: Callable[[Callable[[], Any], str], Any] = lambda run, graph: run(),
        most_logits: int | None = None,
        options: "onnxruntime.RunOptions | None" = None,
    ) -> None:
        """guard: runs something of a graph and turns its failures into ours; most_logits: bytes of logits that a head makes in
        one run, which further rows then wait for (None: all rows in one, which is a tenth faster); options: of every run."""
        self._sessions, self._guard, self._most_logits = sessions, guard, most_logits
        self._options = onnxruntime_package().RunOptions() if options is None else options
        self._shape = (layers, heads, head_dim)
        types = {value.name: value.type for value in sessions["backbone"].get_inputs()}
        self._past_type = np.dtype(PAST_TYPES[types["past_key_0"]])
        self._cache_names = [f"{kind}_{layer}" for kind in ("key", "value") for layer in range(layers)]
        self._last: _Binding | None = None

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        batch = window.tokens.shape[0]
        layers, heads, size = self._shape
        past = window.past or KeyValues.empty(layers, batch, heads, size, self._past_type)
        (embeddings,) = self._run("embedder", ["embeddings"], {"tokens": window.tokens})
        hidden = np.empty((batch, window.queries.shape[1], embeddings.shape[2]), np.float32)
        shape = (batch, heads, window.tokens.shape[1], size)
        binding = None if keep or self._last is None or not self._last.fits(past, shape) else self._last
        if binding is None:
            arrays = [np.empty(shape, self._past_type) for _ in range(2 * layers if keep else 2)]
            kept = arrays if keep else [arrays[0]] * layers + [arrays[1]] * layers
            binding = _Binding(self._sessions["backbone"], past, dict(zip(self._cache_names, kept, strict=True)), self._options)
        self._last = None if keep or window.past is None else binding
        positions = np.broadcast_to(window.positions, window.tokens.shape)
        feeds = {"embeddings": embeddings, "positions": positions, "rows": window.queries}
        self._guard(lambda: binding.run(feeds, hidden), "backbone")
        return hidden, KeyValues(tuple(kept[:layers]), tuple(kept[layers:])) if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        count, parts = max(1, hidden.shape[1]), []
        most = count if self._most_logits is None else max(1, self._most_logits // (4 * len(mix) * self._columns(head)))
        for start in range(0, count, most):
            part = slice(start, start + most)
            drawn = None if uniform is None else uniform[:, part]
            parts.append(self._run(f"{head}_head", HEAD_OUTPUTS, head_feeds(hidden[:, part], mix, temperature, drawn)))
        return Prediction(*parts[0] if len(parts) == 1 else (np.concatenate(each, 1) for each in zip(*parts, strict=True)))

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        (logits,) = self._run(f"{head}_head", ["logits"], head_feeds(hidden, mix, 0.0, None))
        return logits

    def interrupt(self, on: bool) -> None:
        """From another thread: end the run in flight, between two of its nodes, by an Error, and so any to come until it is
        switched off."""
        self._options.terminate = on

    def _columns(self, head: Head) -> int:
        shapes: dict[str, Any] = {value.name: value.shape for value in self._sessions[f"{head}_head"].get_outputs()}
        return int(shapes["logits"][-1])

    def _run(self, graph: str, outputs: Sequence[str], feeds: dict[str, NDArray]) -> list[NDArray]:
        results: list[NDArray] = self._guard(lambda: self._sessions[graph].run(list(outputs), feeds, self._options), graph)
        return results


class _Binding:
    """A past and the arrays that the window's own keys and values are written to, bound to the backbone: the steps of a block,
    one after another, have the same. It keeps no past alive, and fits none that came after its own."""

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        past: KeyValues,
        outputs: dict[str, NDArray],
        options: "onnxruntime.RunOptions",
    ) -> None:
        self._session, self._outputs, self._options = session, outputs, options  # a binding keeps no array alive
        self._binding = session.io_binding()
        given = (*past.keys, *past.values)
        self._past = [weakref.ref(array) for array in given]
        self._copies: list[NDArray] = []
        for name, array in zip(outputs, given, strict=True):
            straight = np.ascontiguousarray(array)
            if straight is not array:
                self._copies.append(straight)
            self._binding.bind_cpu_input(f"past_{name}", straight)
        for name, array in outputs.items():
            self._bind_output(name, array)

    def fits(self, past: KeyValues, shape: tuple[int, ...]) -> bool:
        """Whether it is of this past and of windows whose keys have this shape."""
        same = all(ref() is array for ref, array in zip(self._past, (*past.keys, *past.values), strict=True))
        return same and self._outputs["key_0"].shape == shape

    def run(self, feeds: dict[str, NDArray], hidden: Floats) -> None:
        """The window's states, written to `hidden`."""
        inputs = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # alive to the end of the run
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        self._bind_output("hidden", hidden)
        self._session.run_with_iobinding(self._binding, self._options)

    def _bind_output(self, name: str, array: NDArray) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def head_feeds(hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> dict[str, NDArray]:
    """A head's inputs. Where nothing is drawn any number does for `uniform`."""
    draws = np.full((mix.shape[0], hidden.shape[1]), 0.5, dtype=np.float32) if uniform is None else uniform
    return {"hidden": hidden, "mix": mix, "temperature": np.array(temperature, dtype=np.float32), "uniform": draws}
