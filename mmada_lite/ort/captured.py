"""A denoiser for a card whose steps are captured as CUDA graphs: every tensor stands in memory of ours, whose address and shape
never change within a captured shape, so that a step is one launch.

`DeviceDenoiser` is the same without capture. What a graph is told differs from step to step in content alone: queries are
filled up to a multiple of `PADDED`, which repeats the last of them, and keys and values, states and past stand in blocks of
memory that are taken again once nobody holds what stood in them. A shape is captured when it is met for the second time.
TensorRT-RTX captures by itself, whatever a run's id: the last shape of a session, while its addresses stay. On the CPU
provider, which captures nothing, the same code gives the plain denoiser's ids: so it is tested without a card.
"""

import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.ort.denoiser import HEAD_OUTPUTS, head_feeds
from mmada_lite.ort.device_denoiser import (
    NO_CAPTURE,
    DeviceDenoiser,
    DeviceKeyValues,
    Guard,
    Handle,
    Open,
    Runner,
    run_options,
)
from mmada_lite.ort.engines import PADDED
from mmada_lite.ort.session import first_line, is_out_of_memory, onnxruntime_package

if TYPE_CHECKING:
    import onnxruntime

MOST = 16  # shapes of a session that are captured at a time; the one that was not met for longest gives way
MOST_IDS = 256  # captures in the life of a session: onnxruntime frees none of them on CUDA before the session ends
_GROWN = 1 << 20  # bytes to which a block of memory is rounded up, so that an answer a little longer fits the next time
_log = logging.getLogger("mmada_lite")


class Memory:
    """A block of a device's memory. `users` are the views that somebody still holds."""

    def __init__(self, size: int, device: str) -> None:
        self.size = size
        self.value = onnxruntime_package().OrtValue.ortvalue_from_shape_and_type([size], np.uint8, device)
        self.address = int(self.value.data_ptr())
        self.users: weakref.WeakSet[View] = weakref.WeakSet()
        self.buffer: weakref.ref[KVBuffer] | None = None  # whose cuts stand here, one after another

    @property
    def free(self) -> bool:
        return not self.users and (self.buffer is None or self.buffer() is None)


class View:
    """A tensor that stands in a block of memory, from a number of bytes on."""

    def __init__(self, memory: Memory, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.memory, self.address, self._shape, self.dtype = memory, memory.address + offset, shape, dtype
        memory.users.add(self)

    def shape(self) -> tuple[int, ...]:
        return self._shape

    def data_type(self) -> str:
        return {"float16": "tensor(float16)", "float32": "tensor(float)"}[self.dtype.name]


class Filled(Handle):
    """States [B, Q, D] that stand in a tensor of more queries."""

    def __init__(self, value: Any, runner: "StaticRunner", queries: int) -> None:
        super().__init__(value, runner)
        self.queries = queries

    @property
    def shape(self) -> tuple[int, ...]:
        batch, _, width = self.value.shape()
        return (batch, self.queries, width)


class Pool:
    """Blocks of memory for one purpose. The order is fixed, so that the steps of an answer meet the same blocks as those of the
    one before."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._blocks: list[Memory] = []

    def take(self, size: int, buffer: KVBuffer | None = None) -> Memory:
        """A block of at least so many bytes that nobody holds; with a buffer, the one that its last cut stands in, as it may
        be written over. Blocks that are too small and free are given back."""
        own = [block for block in self._blocks if buffer is not None and block.buffer is not None and block.buffer() is buffer]
        for block in own or [block for block in self._blocks if block.free]:
            if block.size >= size:
                break
            self._blocks.remove(block)
        else:
            block = Memory(-(-size // _GROWN) * _GROWN, self._device)
            self._blocks.append(block)
        block.buffer = None if buffer is None else weakref.ref(buffer)
        return block

    def views(
        self, shape: tuple[int, ...], dtype: np.typing.DTypeLike, count: int = 1, buffer: KVBuffer | None = None
    ) -> list[View]:
        """So many tensors of a shape, one after another in a block."""
        kind = np.dtype(dtype)
        step = -(-math.prod(shape) * kind.itemsize // 256) * 256  # each begins where a card's kernels like it
        memory = self.take(max(1, step * count), buffer)
        return [View(memory, number * step, shape, kind) for number in range(count)]


@dataclass(slots=True)
class Shape:
    """One shape of a session: its binding, made once, what is written to its inputs, and where its outputs stand."""

    binding: Any
    inputs: dict[str, Any]
    options: Any
    memories: tuple["weakref.ref[Memory]", ...]
    graph_id: int | None = None
    runs: int = 0
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        return all(memory() is not None for memory in self.memories)


class Captures:
    """The shapes of one session, the one that was met last at the end."""

    def __init__(self, session: Any, graph: str, runner: "StaticRunner") -> None:
        self._session, self._graph, self._runner = session, graph, runner
        self.shapes: OrderedDict[tuple[Any, ...], Shape] = OrderedDict()
        self._next = 1

    def run(
        self,
        feeds: Mapping[str, NDArray],
        held: Mapping[str, View],
        given: Mapping[str, View],
        made: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    ) -> Shape:
        """Run the session. feeds: arrays that are copied in; held: inputs that stand on the device; given: outputs that go to
        views; made: shape and type of outputs that the shape keeps for itself."""
        key = (
            *((name, array.shape) for name, array in feeds.items()),
            *((name, view.address, view.shape()) for name, view in (*held.items(), *given.items())),
            *made,
        )
        shape = self.shapes.pop(key, None)
        if shape is None or not shape.alive:
            if shape is not None:
                self._release(shape)
            shape = self._bound(feeds, held, given, made)
        self.shapes[key] = shape
        if len(self.shapes) > MOST:
            self._release(self.shapes.popitem(last=False)[1])
        for name, array in feeds.items():
            shape.inputs[name].update_inplace(np.ascontiguousarray(array))
        if shape.runs and shape.graph_id is None and self._next <= MOST_IDS and self._runner.captures:
            shape.graph_id, self._next = self._next, self._next + 1
            shape.options = run_options(str(shape.graph_id))
            self._runner.guard(lambda: self._captured(shape), self._graph)
        else:
            self._runner.guard(lambda: self._launch(shape), self._graph)
        shape.runs += 1
        return shape

    def _bound(
        self,
        feeds: Mapping[str, NDArray],
        held: Mapping[str, View],
        given: Mapping[str, View],
        made: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    ) -> Shape:
        runner, binding = self._runner, self._session.io_binding()
        inputs = {name: runner.value(array.shape, array.dtype) for name, array in feeds.items()}
        outputs = {name: runner.value(*each) for name, each in made.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, view in held.items():
            runner.bind(binding, name, view, output=False)
        for name, view in given.items():
            runner.bind(binding, name, view, output=True)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        memories = {view.memory for view in (*held.values(), *given.values())}
        return Shape(binding, inputs, run_options(NO_CAPTURE), tuple(map(weakref.ref, memories)), outputs=outputs)

    def _captured(self, shape: Shape) -> None:
        """The first run under an id, in which onnxruntime captures it. Where that fails for another reason than memory, the
        steps of this session are launched node by node from now on, which is said."""
        try:
            self._launch(shape)
        except Exception as error:  # onnxruntime's own errors share no base class
            if is_out_of_memory(error) or self._runner.interrupted:
                raise
            _log.warning("a step of %s cannot be captured as a CUDA graph and is launched node by node, which is slower: %s",
                         self._graph, first_line(error))  # fmt: skip
            self._runner.captures, shape.graph_id = False, None
            shape.options = run_options(NO_CAPTURE)
            self._launch(shape)

    def _launch(self, shape: Shape) -> None:
        if self._runner.interrupted:  # a captured step asks nobody
            raise RuntimeError("Exiting due to terminate flag being set to true.")
        self._session.run_with_iobinding(shape.binding, shape.options)

    def _release(self, shape: Shape) -> None:
        if shape.graph_id is not None and hasattr(self._session, "release_captured_graph"):
            self._session.release_captured_graph(shape.graph_id)


class StaticRunner(Runner):
    """As `Runner`, with all that it makes in memory of ours. captures: whether shapes are captured; interrupted: whether every
    run is to end at once."""

    frees = False

    def __init__(self, memory: str, open_graph: Open, guard: Guard) -> None:
        super().__init__(memory, open_graph, guard)
        self.captures, self.interrupted = True, False
        self.states, self.kept, self.pasts = (Pool(memory) for _ in range(3))

    def value(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> Any:
        """A tensor of ours on the device."""
        return onnxruntime_package().OrtValue.ortvalue_from_shape_and_type(list(shape), np.dtype(dtype).type, self.memory)

    def bind(self, binding: Any, name: str, view: View, *, output: bool) -> None:
        place = name, self.memory, 0, view.dtype.type, list(view.shape()), view.address
        (binding.bind_output if output else binding.bind_input)(*place)

    def bind_input(self, binding: Any, name: str, handle: Handle) -> None:
        self.bind(binding, name, handle.value, output=False)

    def join(self, handles: Sequence[Handle]) -> Handle:
        joined, queries = super().join(handles), cast("Filled", handles[0]).queries
        return Filled(joined.value, self, queries)

    def pick(self, handles: Sequence[Handle], places: NDArray[np.int64], *, buffer: KVBuffer | None = None) -> list[Handle]:
        if not isinstance(handles[0], Filled):
            return super().pick(handles, places, buffer=buffer)
        queries = places.shape[1]
        return [Filled(handle.value, self, queries) for handle in super().pick(handles, filled(places))]

    def rearranged(
        self, session: Any, feeds: Mapping[str, Any], outputs: Sequence[str], shape: tuple[int, ...], buffer: KVBuffer | None
    ) -> list[Handle]:
        dtype = next(value for value in feeds.values() if isinstance(value, Handle)).value.dtype
        pool = self.states if len(shape) == 3 else self.pasts
        views, binding = pool.views(shape, dtype, len(outputs), buffer), session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, Handle):
                self.bind_input(binding, name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name, view in zip(outputs, views, strict=True):
            self.bind(binding, name, view, output=True)
        self.guard(lambda: session.run_with_iobinding(binding, self.options), f"that gives {outputs[0]}")
        return [Handle(view, self) for view in views]


class CapturedDenoiser(DeviceDenoiser):
    """The sessions of a bundle that is written for CUDA, opened so that they can capture."""

    _runner: StaticRunner

    def __init__(
        self,
        sessions: "dict[str, onnxruntime.InferenceSession]",
        shape: tuple[int, int, int],
        memory: str,
        open_graph: Open,
        guard: Guard = lambda run, graph: run(),
    ) -> None:
        super().__init__(sessions, shape, memory, open_graph, guard)
        self.captures = {
            name: Captures(session, name, self._runner) for name, session in sessions.items() if name != "embedder"
        }
        self._nothing = Memory(1, memory)

    def _new_runner(self, memory: str, open_graph: Open) -> StaticRunner:
        return StaticRunner(memory, open_graph, self._guard)

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        (batch, width), (layers, heads, size) = window.tokens.shape, self._shape
        queries = filled(window.queries)
        feeds: dict[str, NDArray] = {
            "embeddings": self._embedded(window),
            "positions": np.broadcast_to(window.positions, window.tokens.shape),
            "rows": queries,
        }
        if window.past is None:
            pasts = [View(self._nothing, 0, (batch, heads, 0, size), self._past_type)] * 2 * layers
        else:
            pasts = [cast("Handle", handle).value for handle in (*window.past.keys, *window.past.values)]
        held = {f"past_{name}": view for name, view in zip(self._cache_names, pasts, strict=True)}
        (hidden,) = self._runner.states.views((batch, queries.shape[1], feeds["embeddings"].shape[2]), np.float32)
        given = {"hidden": hidden}
        if keep:
            kept = self._runner.kept.views((batch, heads, width, size), self._past_type, 2 * layers)
            given |= dict(zip(self._cache_names, kept, strict=True))
        self.captures["backbone"].run(feeds, held, given, {})
        states = cast("Floats", Filled(hidden, self._runner, window.queries.shape[1]))
        if not keep:
            return states, None
        handles: list[Any] = [Handle(view, self._runner) for view in kept]
        return states, DeviceKeyValues(tuple(handles[:layers]), tuple(handles[layers:]))

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        states = cast("Filled", hidden)
        feeds = head_feeds(hidden, mix, temperature, uniform)
        feeds["uniform"] = filled(feeds["uniform"])
        drawn = feeds["uniform"].shape
        made = {name: (drawn, np.dtype(np.int64 if name == "token" else np.float32)) for name in HEAD_OUTPUTS}
        view = {"hidden": cast("View", feeds.pop("hidden").value)}  # type: ignore[attr-defined]
        outputs = self.captures[f"{head}_head"].run(feeds, view, {}, made).outputs
        return Prediction(*(outputs[name].numpy()[:, : states.queries] for name in HEAD_OUTPUTS))

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        states = cast("Filled", hidden)
        feeds = head_feeds(hidden, mix, 0.0, None)
        feeds["uniform"] = filled(feeds["uniform"])
        logits: Floats = self._runner.run(self._sessions[f"{head}_head"], feeds, ["logits"], home=True)[0]
        return logits[:, : states.queries]

    def interrupt(self, on: bool) -> None:
        """As `OnnxDenoiser.interrupt`; a captured step ends by itself, and the next does not begin."""
        self._runner.interrupted = on
        super().interrupt(on)
        for captures in self.captures.values():
            for shape in list(captures.shapes.values()):
                shape.options.terminate = on


def filled(values: NDArray) -> NDArray:
    """Values [B, Q, ...] with the last of them repeated, up to a multiple of `PADDED`."""
    more = -values.shape[1] % PADDED
    return np.concatenate([values, np.repeat(values[:, -1:], more, axis=1)], axis=1) if more else values
