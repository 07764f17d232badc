"""OpenVINO's own runtime in onnxruntime's place: a graph of ours compiled for an Intel CPU, GPU or NPU, behind the calls that
`denoiser` and `interface` make of a session.

It knows OpenVINO's versions, devices, options and cache, and what of our graphs it does not run as ONNX says. Which precision a
graph is computed in, and whether it is kept, is told to it.
"""

import ctypes
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

LEAST, BEYOND = (2026, 4), 2027  # versions whose numbers were compared with onnxruntime's
PLACES = {"openvino": "CPU", "openvino:gpu": "GPU", "openvino:npu": "NPU"}  # our device -> OpenVINO's
INSTALL = 'pip install "mmada-lite[openvino]"'
Precision = Literal["f32", "bf16", "f16"]
_ABILITIES: dict[Precision, str] = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # as OpenVINO lists a device's
_TYPES = {"f32": "tensor(float)", "f16": "tensor(float16)", "i64": "tensor(int64)"}  # OpenVINO's -> onnxruntime's words
_POLL = 20  # milliseconds between two looks at whether a run is to end

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output, as onnxruntime describes one; a free axis is None."""

    name: str
    type: str
    shape: list[int | None]


@dataclass(frozen=True, slots=True)
class Compiling:
    """How a graph is compiled. device: ours; threads: of a CPU; kept: the folder where it is kept, None where it is not."""

    device: str
    threads: int
    precision: Precision = "f32"
    kept: Path | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """As OpenVINO takes them. One stream, so that a run has all threads; an NPU chooses its precision itself."""
        chosen: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.device == "openvino":
            chosen |= {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1}
        if self.device != "openvino:npu":
            chosen["INFERENCE_PRECISION_HINT"] = self.precision
        return chosen | ({"CACHE_DIR": str(self.kept)} if self.kept else {})


def lacking() -> str | None:
    """What must be installed, with the line; None where a version that suits is there."""
    try:
        found = version("openvino")
    except PackageNotFoundError:
        return f"OpenVINO is not installed; {INSTALL}"
    if not LEAST <= tuple(map(int, re.findall(r"\d+", found)[:2])) < (BEYOND,):
        return f"OpenVINO {found} is installed, and {LEAST[0]}.{LEAST[1]} or later, below {BEYOND}, is needed; {INSTALL}"
    return None


def absent(device: str) -> str | None:
    """Why OpenVINO has no such device here, and what mends it; None where it has one."""
    place, there = PLACES[device], [each.partition(".")[0] for each in core().available_devices]
    if place in there:
        return None
    has = f"it finds {', '.join(there)}" if there else "it finds none"
    return f"OpenVINO finds no {place} here ({has}); install Intel's driver for it, or use --device openvino for the CPU"


@contextmanager
def untracked() -> Iterator[None]:
    """What is imported within cannot import the package that sends usage data to Intel: the import of openvino 2026.4.1 would
    write an identity into the home and send an event."""
    tracker = "openvino_telemetry"
    there = tracker in sys.modules
    if not there:
        sys.modules[tracker] = None  # type: ignore[assignment]  # Python's way to say that it is not to be found
    try:
        yield
    finally:
        if not there:
            del sys.modules[tracker]


@cache
def library() -> Any:
    """OpenVINO's package, which nothing else of ours imports."""
    with untracked():
        return import_module("openvino")


@cache
def core() -> Any:
    """OpenVINO's core, one a process. How it reads a QuantizeLinear in blocks is ours: 2026.4.1 wants fixed lengths."""
    made = library().Core()
    with untracked():
        made.add_extension(import_module("openvino.frontend.onnx").ConversionExtension("QuantizeLinear", "", _rounding))
    return made


def _rounding(node: Any) -> Any:
    """x, a scale and a zero point -> codes uint8. Graphs of ours have one scale a token or one of all, and 128 stands for 0."""
    ops = library().opset13
    x, scale = node.get_input(0), node.get_input(1)
    ends = (ops.constant(np.float32(end)) for end in (-128, 127, 0, 255))
    return ops.convert(ops.fake_quantize(ops.divide(x, scale), *ends, 256), "u8").outputs()


def computes(device: str, precision: Precision) -> bool:
    """Whether a device has products of this precision."""
    return _ABILITIES[precision] in core().get_property(PLACES[device], "OPTIMIZATION_CAPABILITIES")


def processor(device: str) -> str:
    """A device's full name."""
    return str(core().get_property(PLACES[device], "FULL_DEVICE_NAME"))


def version_here() -> str:
    """Of OpenVINO, to its last digit."""
    return str(library().get_version())


def unwritable(folder: Path) -> str | None:
    """Why compiled graphs cannot be kept in a folder, which is made where it is not there; None where they can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".written"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as fault:
        return f"{folder} cannot be written ({fault.strerror or fault})"
    return None


class Session:
    """A compiled graph in the place of an onnxruntime session: the same names, types and shapes, `run` and io binding.

    Runs from several threads take turns. RunOptions count for `terminate` alone.
    """

    def __init__(self, graph: Path | bytes, how: Compiling, change: Callable[[Any], Any] = lambda model: model) -> None:
        """change: what becomes of OpenVINO's model before it is compiled. Raises RuntimeError, in OpenVINO's words, where it
        cannot be read or compiled."""
        model = change(_plainly(lambda: core().read_model(str(graph) if isinstance(graph, Path) else graph)))
        if (broken := _not_finite(model)) is not None:
            raise RuntimeError(f"its weights {broken} are not finite; check the files with `mmada-lite info --verify`")
        self._names = {port.get_any_name() for port in (*model.inputs, *model.outputs)}
        mixed = "mix" in self._names
        model = _without_branches(model)
        if how.precision == "bf16" and not mixed:  # a head's logits, rounded to eight bits, would tie
            model = _with_products_in_bf16(model)
        compile_model = core().compile_model
        self.compiled = _plainly(lambda: compile_model(model, PLACES[how.device], how.properties))
        if how.kept and how.device == "openvino" and not self.compiled.get_property("LOADED_FROM_CACHE"):
            del self.compiled  # what was just compiled holds weights that a kept one maps from its file
            self.compiled = _plainly(lambda: compile_model(model, PLACES[how.device], how.properties))
        self._rounds_states = mixed and how.precision != "f32"
        self._request = self.compiled.create_infer_request()
        self._turn = threading.Lock()

    def get_inputs(self) -> list[Value]:
        return [self._value(port) for port in self.compiled.inputs]

    def get_outputs(self) -> list[Value]:
        return [self._value(port) for port in self.compiled.outputs]

    def _value(self, port: Any) -> Value:
        """Compiling gives an output the names of nodes beside its own."""
        name = next(name for name in port.get_names() if name in self._names)
        shape = [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]
        kind = port.get_element_type().to_string()
        return Value(name, _TYPES.get(kind, kind), shape)

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray], options: Any = None) -> list[NDArray]:
        """As onnxruntime's; arrays of its own."""
        names = [value.name for value in self.get_outputs()] if outputs is None else outputs
        with self._turn:
            self._infer(feeds, {}, options)
            return [np.array(self._request.get_tensor(name).data) for name in names]

    def io_binding(self) -> "_Binding":
        return _Binding()

    def run_with_iobinding(self, binding: "_Binding", options: Any = None) -> None:
        with self._turn:
            self._infer(binding.inputs, binding.outputs, options)

    def _infer(self, feeds: Mapping[str, NDArray], into: Mapping[str, NDArray], options: Any) -> None:
        tensor = library().Tensor
        given = self._mixed(feeds) if self._rounds_states else feeds
        arrays = {name: np.require(array, requirements=["C", "W"]) for name, array in given.items()} | dict(into)
        for name, array in arrays.items():  # the very arrays, alive to the end of the run; a scalar has to be copied
            self._request.set_tensor(name, tensor(array, shared_memory=True) if array.ndim else tensor(array))
        _ended(options)
        self._request.start_async()
        try:
            while not _plainly(lambda: self._request.wait_for(_POLL)):
                if options is not None and options.terminate:
                    self._request.cancel()
            _plainly(self._request.wait)
        except RuntimeError:
            _ended(options)
            raise

    def _mixed(self, feeds: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        """A head's states mixed before they are rounded: guidance takes the difference of two, and would enlarge what rounding
        does to each."""
        states = np.einsum("nr,rqd->nqd", feeds["mix"], feeds["hidden"])
        return {**feeds, "hidden": states, "mix": np.eye(len(states), dtype=np.float32)}


class _Binding:
    """Arrays that a run reads and writes, in the words of onnxruntime's io binding."""

    def __init__(self) -> None:
        self.inputs: dict[str, NDArray] = {}
        self.outputs: dict[str, NDArray] = {}

    def bind_cpu_input(self, name: str, array: NDArray) -> None:
        self.inputs[name] = array

    def bind_output(self, name: str, _device: str, _number: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        """An output is written to the memory of an array of this type and shape."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_byte * size).from_address(address)
        self.outputs[name] = np.ndarray(shape, dtype, memory)


def _plainly(call: Callable[[], Result]) -> Result:
    """What a call gives. Its errors say where in OpenVINO's sources they were raised, line by line, before they say why."""
    try:
        return call()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
        raise RuntimeError(said[-1] if said else type(error).__name__) from error


def _ended(options: Any) -> None:
    """Raise where a run's options say that it is to end."""
    if options is not None and options.terminate:
        raise RuntimeError("the terminate flag is set")


def _not_finite(model: Any) -> str | None:
    """The first floats beside integer weights that are not finite: OpenVINO rounds what they make to integers, and nothing
    behind would show it. Floats alone carry it to the end."""
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    if not any(node.get_element_type().to_string() in ("i8", "u8", "i4", "u4") for node in constants):
        return None
    floats = (node for node in constants if node.get_element_type().is_real())
    return next((node.get_friendly_name() for node in floats if not np.isfinite(node.data).all()), None)


def _without_branches(model: Any) -> Any:
    """A model with both branches of every If in its own graph, where the first gets no rows unless the condition holds, so that
    it costs nothing.

    With it, the first greedy tokens of a compiled head are rubbish on OpenVINO's CPU (2026.4.1), and the next ones right
    (tests/runtime/test_openvino.py). Both branches of ours give rows [N, ...] of the same shape.
    """
    ops = library().opset13
    for node in [node for node in model.get_ops() if node.get_type_name() == "If"]:
        zero, one, all_of_them = (ops.constant(np.array([number], np.int64)) for number in (0, 1, 2**62))
        rows = ops.gather(ops.shape_of(_rows_of(node), "i64"), zero, ops.constant(np.int64(0)))
        count = ops.multiply(rows, ops.reshape(ops.convert(node.input_value(0), "i64"), one, special_zero=False))
        branches = []
        for which in (0, 1):
            body = node.get_function(which)
            for given in node.get_input_descriptions(which):
                value = node.input_value(given.input_index)
                if which == 0 and value.get_partial_shape().rank.get_length() > 1:
                    value = ops.slice(value, zero, count, one, zero).output(0)
                for reader in body.get_parameters()[given.body_parameter_index].output(0).get_target_inputs():
                    reader.replace_source_output(value)
            branches.append(body.get_results()[0].input_value(0))
        rest = ops.slice(branches[1], count, all_of_them, one, zero)
        chosen = ops.concat([branches[0], rest.output(0)], 0).output(0)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(chosen)
    model.validate_nodes_and_infer_types()
    return model


def _with_products_in_bf16(model: Any) -> Any:
    """Products whose weights are stored in bf16 take their other side in it too, as OpenVINO multiplies them anyway. So weights
    stay as they are in their file; read as float32, they would be kept, and held, in twice as many bytes."""
    ops = library().opset13
    for product in [node for node in model.get_ops() if node.get_type_name() == "MatMul"]:
        widened = product.input_value(1).get_node()
        if widened.get_type_name() != "Convert" or widened.get_input_element_type(0).to_string() != "bf16":
            continue
        turned = (product.get_attributes()[f"transpose_{side}"] for side in "ab")
        narrow = ops.matmul(ops.convert(product.input_value(0), "bf16"), widened.input_value(0), *turned)
        product.output(0).replace(ops.convert(narrow, "f32").output(0))
    model.validate_nodes_and_infer_types()
    return model


def _rows_of(branching: Any) -> Any:
    """A value [N, ...] that a branch of an If reads."""
    values = (branching.input_value(number) for number in range(1, branching.get_input_size()))
    return next(value for value in values if value.get_partial_shape().rank.get_length() > 1)
