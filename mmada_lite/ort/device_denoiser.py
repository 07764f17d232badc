"""A denoiser whose hidden states and caches never leave the device: what one session leaves there, the next one reads there.

The decoding loops see handles in place of arrays: a handle has a shape and can be joined, cut and picked from, which is all
that they do. On the CPU provider the same code gives the very numbers of `OnnxDenoiser`: so it is tested without a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.ort.denoiser import HEAD_OUTPUTS, PAST_TYPES, head_feeds
from mmada_lite.ort.device_graphs import FLOAT, HALF, cut_graph, join_graph, pick_graph
from mmada_lite.ort.session import onnxruntime_package

if TYPE_CHECKING:
    import onnxruntime

NO_CAPTURE = "-1"  # the id of a run that is launched node by node
_GRAPH_IDS = ("gpu_graph_id", "cuda_graph_annotation_id")  # as onnxruntime and the plugin of TensorRT-RTX name it
_TYPES = {"float32": FLOAT, "float16": HALF}
_AT_ONCE = 8  # tensors that are rearranged in one run where those before them are freed behind it
Open = Callable[[bytes], "onnxruntime.InferenceSession"]  # a graph of ours on the same device
Guard = Callable[[Callable[[], Any], str], Any]  # runs something of a graph and turns its failures into ours


class Handle:
    """A tensor that lies on the device. numpy's concatenate joins handles there, states are picked by [rows, places] as from an
    array; anything else that wants numbers fails."""

    def __init__(self, value: Any, runner: "Runner") -> None:
        self.value, self.runner = value, runner

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    def __array__(self, *_: object, **__: object) -> NDArray:
        raise TypeError("a tensor that lies on the device was asked for on the host")

    def __getitem__(self, key: tuple[NDArray[np.int64], NDArray[np.int64]]) -> "Handle":
        """States [B, K, D] of [B, Q, D] at places [B, K]; the first of the pair counts the rows [B, 1]."""
        rows, places = key
        assert rows[:, 0].tolist() == list(range(self.shape[0])), "rows of the batch are picked from in order"
        return self.runner.pick([self], places[..., None])[0]

    def __array_function__(self, function: Any, types: Any, given: Sequence[Any], named: Mapping[str, Any]) -> "Handle":
        if function is not np.concatenate or named or len(given) != 1:
            return cast("Handle", NotImplemented)
        return self.runner.join(given[0])


@dataclass(frozen=True, slots=True)
class DeviceKeyValues(KeyValues):
    """Keys and values as handles."""

    def without(self, start: int, stop: int, buffer: KVBuffer, *, last: bool = False) -> KeyValues:
        return self._rearranged(lambda handles: handles[0].runner.cut(handles, start, stop, buffer=buffer), last)

    def _rearranged(self, rearrange: Callable[[Sequence[Handle]], list[Any]], last: bool) -> KeyValues:
        """What is made of all handles; of the last ones some at a time, which are freed then."""
        handles, made = cast("tuple[Handle, ...]", (*self.keys, *self.values)), list[Any]()
        last = last and handles[0].runner.frees
        step = _AT_ONCE if last else len(handles)
        for first in range(0, len(handles), step):
            made += rearrange(own := handles[first : first + step])
            for handle in own if last else ():
                handle.value = None
        return DeviceKeyValues(tuple(made[: len(self.keys)]), tuple(made[len(self.keys) :]))

    def behind(self, past: KeyValues, start: int, stop: int, buffer: KVBuffer) -> KeyValues:
        handles, pasts = (cast("tuple[Handle, ...]", (*own.keys, *own.values)) for own in (self, past))
        left = cast("list[Any]", handles[0].runner.cut(handles, start, stop, pasts, buffer=buffer))
        return DeviceKeyValues(tuple(left[: len(self.keys)]), tuple(left[len(self.keys) :]))

    def shrunk(self, stop: int) -> KeyValues:
        return self.without(stop, self.length, KVBuffer())

    def at(self, places: NDArray[np.int64], buffer: KVBuffer, *, last: bool = False) -> KeyValues:
        batch, heads = cast("Handle", self.keys[0]).shape[:2]
        index = np.broadcast_to(places[:, None, :, None], (batch, heads, places.shape[1], 1))
        return self._rearranged(lambda handles: handles[0].runner.pick(handles, index, buffer=buffer), last)

    def picked_behind(self, past: KeyValues, places: NDArray[np.int64], buffer: KVBuffer) -> KeyValues:
        batch = cast("Handle", self.keys[0]).shape[0]
        picked = self.at(np.broadcast_to(places, (batch, len(places))), KVBuffer())  # which is read to write the next
        return picked.behind(past, 0, 0, buffer)


def run_options(graph_id: str) -> "onnxruntime.RunOptions":
    """Options of a run that belongs to a CUDA graph."""
    options = onnxruntime_package().RunOptions()
    for name in _GRAPH_IDS:
        options.add_run_config_entry(name, graph_id)
    return options


class Runner:
    """Runs sessions by io binding: inputs from wherever they lie, outputs left on the device or brought to the host. frees:
    whether the memory of a handle that nobody holds is given back."""

    frees = True

    def __init__(self, memory: str, open_graph: Open, guard: Guard) -> None:
        self.memory, self.guard, self._open = memory, guard, open_graph
        self._opened: dict[bytes, onnxruntime.InferenceSession] = {}
        self.options = run_options(NO_CAPTURE)  # of every run, as shapes and addresses change

    def run(self, session: Any, feeds: Mapping[str, Any], outputs: Sequence[str], *, home: bool) -> list[Any]:
        """Arrays for `home`, else handles. feeds: handles and arrays."""
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, Handle):
                self.bind_input(binding, name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in outputs:
            binding.bind_output(name, "cpu" if home else self.memory)
        self.guard(lambda: session.run_with_iobinding(binding, self.options), f"that gives {outputs[0]}")
        values = binding.get_outputs()
        return [value.numpy() for value in values] if home else [Handle(value, self) for value in values]

    def bind_input(self, binding: Any, name: str, handle: Handle) -> None:
        binding.bind_ortvalue_input(name, handle.value)

    def rearranged(
        self, session: Any, feeds: Mapping[str, Any], outputs: Sequence[str], shape: tuple[int, ...], buffer: KVBuffer | None
    ) -> list[Handle]:
        """Handles of a shape that a graph of `device_graphs` makes of others; they stand in `buffer`, where there is one."""
        return self.run(session, feeds, outputs, home=False)

    def join(self, handles: Sequence[Handle]) -> Handle:
        """Handles [A, Q, D] after each other along the first axis."""
        joined = handles[0]
        for other in handles[1:]:
            session = self._session(join_graph(_kind(joined)))
            (first, *rest), (more, *_) = joined.value.shape(), other.value.shape()
            (joined,) = self.rearranged(session, {"a": joined, "b": other}, ["joined"], (first + more, *rest), None)
        return joined

    def cut(
        self,
        handles: Sequence[Handle],
        start: int,
        stop: int,
        pasts: Sequence[Handle] = (),
        *,
        buffer: KVBuffer | None = None,
    ) -> list[Handle]:
        """Handles [B, H, P, D] without the positions start..stop-1, each behind its past where there are any."""
        session = self._session(cut_graph(_kind(handles[0]), len(handles), bool(pasts)))
        feeds: dict[str, Any] = {f"x_{n}": handle for n, handle in enumerate(handles)}
        feeds |= {f"p_{n}": past for n, past in enumerate(pasts)}
        batch, heads, length, size = handles[0].shape
        end = min(stop, length)
        feeds |= {"start": np.array([start]), "stop": np.array([end])}
        shape = (batch, heads, length - max(0, end - start) + sum(past.shape[2] for past in pasts[:1]), size)
        return self.rearranged(session, feeds, [f"y_{n}" for n in range(len(handles))], shape, buffer)

    def pick(self, handles: Sequence[Handle], places: NDArray[np.int64], *, buffer: KVBuffer | None = None) -> list[Handle]:
        """Handles [..., P, D] at places [..., K, 1]."""
        session = self._session(pick_graph(_kind(handles[0]), places.ndim, len(handles)))
        feeds = {f"x_{n}": handle for n, handle in enumerate(handles)} | {"places": places}
        shape = (*places.shape[:-1], handles[0].shape[-1])
        return self.rearranged(session, feeds, [f"y_{n}" for n in range(len(handles))], shape, buffer)

    def _session(self, graph: bytes) -> Any:
        if graph not in self._opened:
            self._opened[graph] = self._open(graph)
        return self._opened[graph]


def _kind(handle: Handle) -> int:
    return _TYPES[PAST_TYPES[handle.value.data_type()]]


class DeviceDenoiser:
    """The sessions of a bundle tied together on a device; the embedder's runs on the CPU, where its table is mapped."""

    def __init__(
        self,
        sessions: "dict[str, onnxruntime.InferenceSession]",
        shape: tuple[int, int, int],
        memory: str,
        open_graph: Open,
        guard: Guard = lambda run, graph: run(),
    ) -> None:
        """shape: layers, heads of keys, size of a head. memory: where the device's tensors lie, "cpu" or "cuda"."""
        self._sessions, self._shape, self._guard = sessions, shape, guard
        types = {value.name: value.type for value in sessions["backbone"].get_inputs()}
        self._past_type = np.dtype(PAST_TYPES[types["past_key_0"]])
        self._cache_names = [f"{kind}_{layer}" for kind in ("key", "value") for layer in range(shape[0])]
        self._runner = self._new_runner(memory, open_graph)

    def _new_runner(self, memory: str, open_graph: Open) -> Runner:
        return Runner(memory, open_graph, self._guard)

    def _embedded(self, window: Window) -> Floats:
        """[B, W, D], on the host."""
        run = self._sessions["embedder"].run
        (embeddings,) = self._guard(lambda: run(["embeddings"], {"tokens": window.tokens}, self._runner.options), "embedder")
        return cast("Floats", embeddings)

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        layers, heads, size = self._shape
        past = window.past or KeyValues.empty(layers, window.tokens.shape[0], heads, size, self._past_type)
        feeds: dict[str, Any] = {
            "embeddings": self._embedded(window),
            "positions": np.broadcast_to(window.positions, window.tokens.shape),
            "rows": window.queries,
        }
        for layer in range(layers):
            feeds[f"past_key_{layer}"], feeds[f"past_value_{layer}"] = past.keys[layer], past.values[layer]
        wanted = ["hidden", *(self._cache_names if keep else ())]
        hidden, *kept = self._runner.run(self._sessions["backbone"], feeds, wanted, home=False)
        return hidden, DeviceKeyValues(tuple(kept[:layers]), tuple(kept[layers:])) if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        feeds = head_feeds(hidden, mix, temperature, uniform)
        return Prediction(*self._runner.run(self._sessions[f"{head}_head"], feeds, HEAD_OUTPUTS, home=True))

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        feeds = head_feeds(hidden, mix, 0.0, None)
        logits: Floats = self._runner.run(self._sessions[f"{head}_head"], feeds, ["logits"], home=True)[0]
        return logits

    def interrupt(self, on: bool) -> None:
        """As `OnnxDenoiser.interrupt`."""
        self._runner.options.terminate = on
