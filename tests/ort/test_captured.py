"""What a captured step needs, on the CPU provider: memory of ours whose addresses and shapes never change within a captured
shape, the plain denoiser's ids, and one line where something of it fails."""

import re
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.lowering import Target
from mmada_lite.model import Model
from mmada_lite.ort import captured, devices, engine_sessions, engines, loader, nvidia, session
from mmada_lite.ort.captured import CapturedDenoiser, Pool, filled
from mmada_lite.ort.session import Device, OutOfMemory, open_session

CPU, CUDA, RTX = (Device(name, "a test") for name in ("cpu", "cuda", "rtx"))
IDS = {"cuda": "gpu_graph_id", "rtx": "cuda_graph_annotation_id"}  # what says which graph a run is of
ANSWER = TextSettings(answer_length=24, steps=24, block_length=8).replace(cache="dual")


@pytest.fixture(scope="module")
def halves(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as it is written for CUDA."""
    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "bundle", precision="fp16", target="cuda")


@pytest.fixture(scope="module", params=["cuda", "rtx"])
def card(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Device]:
    """The same as it is written for each card runtime that captures, and that runtime."""
    folder, device = tmp_path_factory.mktemp("card") / "bundle", {"cuda": CUDA, "rtx": RTX}[request.param]
    target: Target = "tensorrt" if device is RTX else "cuda"
    return export_checkpoint(tiny_checkpoint, folder, precision="fp16", target=target), device


class Recorded:
    """A binding that writes down what is bound: name, address, shape."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.bound = inner, list[tuple[str, int, tuple[int, ...]]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.bound.append((name, value.data_ptr(), tuple(value.shape())))
        self.inner.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.bound.append((name, value.data_ptr(), tuple(value.shape())))
        self.inner.bind_ortvalue_output(name, value)

    def bind_input(self, name: str, *about: Any) -> None:
        self.bound.append((name, about[-1], tuple(about[-2])))
        self.inner.bind_input(name, *about)

    def bind_output(self, name: str, *about: Any) -> None:
        if len(about) > 1:
            self.bound.append((name, about[-1], tuple(about[-2])))
        self.inner.bind_output(name, *about)


class Watched:
    """A session that keeps, for each run, the graph's id and what was bound. fail: called with the id before a run; word: how
    the runtime calls the id."""

    def __init__(self, inner: Any, fail: Callable[[str], None] = lambda graph_id: None, word: str = IDS["cuda"]) -> None:
        self.inner, self.fail, self.word = inner, fail, word
        self.runs, self.released = list[tuple[str, tuple[Any, ...]]](), list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def io_binding(self) -> Recorded:
        return Recorded(self.inner.io_binding())

    def run_with_iobinding(self, binding: Recorded, options: Any) -> None:
        graph_id = options.get_run_config_entry(self.word)
        self.fail(graph_id)
        self.runs.append((graph_id, tuple(binding.bound)))
        self.inner.run_with_iobinding(binding.inner, options)

    def release_captured_graph(self, graph_id: int) -> None:
        self.released.append(graph_id)


def watched(
    path: Path, fail: Callable[[str], None] = lambda graph_id: None, device: Device = CUDA
) -> tuple[Model, dict[str, Watched]]:
    """A model whose steps would be captured, and its sessions."""
    model = mmada_lite.load(path, device="cpu", threads=1)
    bundle, a = model.bundle, model.bundle.architecture
    sessions: dict[str, Any] = {}
    for name in ("embedder", "backbone", "text_head", "image_head"):
        opened = loader.open_graph(bundle, name, CPU, 1)
        sessions[name] = (
            opened
            if name == "embedder"
            else Watched(opened, fail if name == "backbone" else lambda graph_id: None, IDS[device.name])
        )
    guard = loader._guard(bundle, device)
    shape = (a.n_layers, a.n_kv_heads, a.head_dim)
    model.denoiser = CapturedDenoiser(sessions, shape, "cpu", lambda graph: open_session(graph, CPU, 1), guard)
    return model, sessions


def ids(model: Model, text: str = "hello", settings: TextSettings = ANSWER) -> list[int]:
    tokens: list[int] = model.chat(text, settings).result().ids.tolist()
    return tokens


def test_an_answer_has_two_shapes_and_their_addresses_never_change(card: tuple[Path, Device]) -> None:
    """The row at the beginning of each block, and the block over its context: each is bound once, and captured under an id.
    TensorRT-RTX, which keeps the last graph of a session, meets one place seven times in a row."""
    path, device = card
    model, sessions = watched(path, device=device)
    expected = ids(mmada_lite.load(path, device="cpu", threads=1))
    assert ids(model) == expected
    runs = sessions["backbone"].runs
    places = {place: [graph_id for graph_id, bound in runs if bound == place] for place in {bound for _, bound in runs}}
    assert sorted(map(len, places.values())) == [3, 21]
    for graph_ids in places.values():
        assert graph_ids[0] == "-1"
        assert len(set(graph_ids[1:])) == 1
    assert len({graph_ids[1] for graph_ids in places.values()}) == 2
    first = len(runs)
    assert ids(model) == expected  # the next answer of this length meets the same addresses
    assert {bound for _, bound in runs[first:]} == set(places)
    assert all(graph_id != "-1" for graph_id, _ in runs[first:])
    assert all(shape.alive for shape in model.denoiser.captures["backbone"].shapes.values())  # type: ignore[attr-defined]


def test_no_graph_of_a_step_branches(card: tuple[Path, Device]) -> None:
    """What branches on the device cannot be captured, by CUDA's provider or by TensorRT-RTX."""
    bundle = Bundle.open(card[0])
    for graph in ("backbone", "text_head", "image_head"):
        nodes = onnx.load(bundle.graph_path(graph), load_external_data=False).graph.node
        assert not {"If", "Loop", "Scan"} & {node.op_type for node in nodes}


def test_one_id_has_one_shape_whatever_is_decoded(card: tuple[Path, Device]) -> None:
    """Answers of several lengths, guidance, pictures and partial steps, in turns; all within what an engine is built for."""
    path, device = card
    model, sessions = watched(path, device=device)
    plain = mmada_lite.load(path, device="cpu", threads=1)
    texts = ("hello", "a longer question than the other")
    pictures = plain.image_defaults.replace(steps=4, guidance=2.0, refresh=2, candidate_ratio=2.0)
    for _ in range(2):
        for text in texts:
            for cache in ("none", "prefix", "dual", "prompt"):
                settings = ANSWER.replace(cache=cache, guidance=0.5)
                assert ids(model, text, settings) == ids(plain, text, settings)
        codes = [each.paint("a red apple", pictures, seed=2).result().codes.tolist() for each in (model, plain)]
        assert codes[0] == codes[1]
    for name in ("backbone", "text_head", "image_head"):
        by_id = defaultdict(set)
        for graph_id, bound in sessions[name].runs:
            by_id[graph_id].add(bound)
        by_id.pop("-1", None)
        assert by_id
        assert all(len(bound) == 1 for bound in by_id.values())
        first = engines.profiles_of(name, engines.profiles_for(model.bundle))[0]  # the one that TensorRT-RTX's plugin runs
        dims = engines.input_dims(model.bundle, name)
        for tensor, _, shape in {each for _, bound in sessions[name].runs for each in bound if each[0] in dims}:
            least, most = (first.shape(dims[tensor], which) for which in (0, 2))
            assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)), (tensor, shape)


def test_two_answers_at_once_do_not_meet(halves: Path) -> None:
    model, _ = watched(halves)
    expected = [ids(model, text) for text in ("hello", "goodbye")]
    answers = [model.chat(text, ANSWER) for text in ("hello", "goodbye")]
    for steps in zip(*answers, strict=True):
        assert len(steps) == 2
    assert [answer.result().ids.tolist() for answer in answers] == expected


def test_few_shapes_are_kept_and_the_oldest_gives_way(halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "MOST", 2)
    model, sessions = watched(halves)
    expected = ids(model)
    for text in ("one", "one two", "one two three four"):
        ids(model, text)
    assert len(model.denoiser.captures["backbone"].shapes) == 2  # type: ignore[attr-defined]
    assert sessions["backbone"].released
    assert ids(model) == expected
    monkeypatch.setattr(captured, "MOST_IDS", 0)
    before = len(sessions["backbone"].runs)
    assert ids(model, "a question that was never met") is not None
    assert {graph_id for graph_id, _ in sessions["backbone"].runs[before:]} == {"-1"}


def test_a_shape_whose_memory_is_gone_is_bound_anew(halves: Path) -> None:
    model, sessions = watched(halves)
    expected = ids(model)
    shapes = model.denoiser.captures["backbone"].shapes  # type: ignore[attr-defined]
    for shape in shapes.values():
        shape.memories = (weakref.ref(captured.Memory(8, "cpu")),)  # which nobody holds
    before = set(map(id, shapes.values()))
    assert ids(model) == expected
    assert not before & set(map(id, shapes.values()))
    assert len(sessions["backbone"].released) == 2


def test_memory_is_taken_again_and_what_stood_there_is_captured_anew() -> None:
    """A block that is too small gives way once nobody holds it; a shape whose block is gone is not run again."""
    pool = Pool("cpu")
    (first,) = pool.views((3, 5), np.float16)
    (second,) = pool.views((3, 5), np.float16)
    assert first.memory is not second.memory
    address, held = first.memory.address, first.memory
    del first
    (again,) = pool.views((2, 2), np.float32)
    assert (again.memory.address, again.memory) == (address, held)
    buffer = captured.KVBuffer()
    cut = pool.views((4, 4), np.float16, 3, buffer)
    assert len({view.memory for view in cut}) == 1
    assert all(view.address % 64 == cut[0].address % 64 for view in cut)
    (over,) = pool.views((4, 4), np.float16, 1, buffer)
    assert over.memory is cut[0].memory  # which its owner may write over
    del cut, over
    (other,) = pool.views((4, 4), np.float16)
    assert other.memory.buffer is None
    assert other.memory.address != pool.take(1, buffer).address
    (large,) = pool.views((1 << 20, 4), np.float32)
    assert large.memory.size == 1 << 24


def test_queries_are_filled_up_with_the_last() -> None:
    places = filled(np.array([[4, 7, 9], [1, 2, 3]]))
    assert places.shape == (2, captured.PADDED)
    assert (places[:, 3:] == [[9], [3]]).all()
    assert filled(places) is places


# ---- faults, as onnxruntime and CUDA say them


def raising(words: str, when: Callable[[str], bool]) -> Callable[[str], None]:
    def fail(graph_id: str) -> None:
        if when(graph_id):
            raise RuntimeError(words)

    return fail


def test_what_cannot_be_captured_is_said_and_launched_node_by_node(
    card: tuple[Path, Device], caplog: pytest.LogCaptureFixture
) -> None:
    words = "CUDA failure 900: operation not permitted when stream is capturing ; GPU=0"
    path, device = card
    model, sessions = watched(path, raising(words, lambda graph_id: graph_id != "-1"), device)
    assert ids(model) == ids(mmada_lite.load(path, device="cpu", threads=1))
    said = [message for message in caplog.messages if "captured" in message]
    assert len(said) == 1
    assert re.search("a step of backbone cannot be captured as a CUDA graph and is launched node by node.*900", said[0])
    assert {graph_id for graph_id, _ in sessions["backbone"].runs} == {"-1"}


FAULTS = {
    "no memory to capture": (
        "bfc_arena.cc:359 Failed to allocate memory for requested buffer of size 173408256",
        OutOfMemory,
        r"ran out of memory on {device}: the plan counts .*use a smaller --precision",
    ),
    "memory that is gone": (
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaGraphLaunch(graph_exec, stream_)",
        Error,
        r"backbone met memory of the card that is gone \(CUDA failure 700.*start the program again",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_captured_step_is_one_line_with_its_mend(card: tuple[Path, Device], name: str) -> None:
    words, kind, said = FAULTS[name]
    path, device = card
    runs = list[str]()

    def fail(graph_id: str) -> None:
        runs.append(graph_id)
        first = runs.count(graph_id) == 1
        if graph_id != "-1" and first == (kind is OutOfMemory):  # while it is captured, or when it is launched again
            raise RuntimeError(words)

    model, _ = watched(path, fail, device)
    with pytest.raises(kind, match=said.replace("{device}", device.name)) as caught:
        ids(model)
    assert "\n" not in str(caught.value)


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(device: str) -> None:
        raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1")

    monkeypatch.setattr(devices, "not_installed", lambda device: None)
    monkeypatch.setattr(devices, "trial", trial)
    monkeypatch.setattr(nvidia, "version", lambda: "12.4")
    monkeypatch.setattr(nvidia, "cards", lambda: (nvidia.Card("a planted card", "8.9", 8 << 30),))
    with pytest.raises(Error, match=r"newer CUDA than the 12\.4 that this NVIDIA driver runs; install a newer driver.*CUDA 12"):
        devices.choose_device("cuda")


def test_a_bundle_for_cuda_runs_on_no_other_card_runtime(halves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "fault", lambda device: None)
    for device in ("rtx", "tensorrt"):
        with pytest.raises(Error, match=f"is made for cuda, and not for {device}; export it with --target tensorrt"):
            loader.device_for(Bundle.open(halves), device)
    assert loader.device_for(Bundle.open(halves), "cuda").name == "cuda"


# ---- how sessions are opened


def test_what_cuda_is_told(halves: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the fused kernels, and capture for graphs of the form that can be, by an onnxruntime that does it rightly."""
    opened: dict[str, tuple[Any, dict[str, str]]] = {}

    def create(graph: str, device: str, options: Any, settings: Any) -> Any:
        opened[Path(graph).name] = options, dict(settings)
        raise RuntimeError("far enough")

    monkeypatch.setattr(session, "_create", create)
    for path, captures in ((halves, True), (tiny_bundle, False)):
        bundle = Bundle.open(path)
        for graph in ("backbone", "text_head", "image_head"):
            with pytest.raises(Error, match="far enough"):
                loader.open_graph(bundle, graph, CUDA)
            options, settings = opened[f"{graph}.onnx"]
            assert (settings == {"enable_cuda_graph": "1"}) == captures
            assert options.get_session_config_entry("ep.cuda.fpa_intb_gemm") == "1"
            assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
            rows = options.get_session_config_entry("ep.cuda.fpa_intb_profile_m")
            assert rows == ("32" if graph == "text_head" else "32,1024")
            with pytest.raises(Error, match="far enough"):
                loader.open_graph(bundle, graph, CUDA, lean=True)  # a card without room for keys and values twice
            assert opened[f"{graph}.onnx"][1] == {}
    assert not loader.captures(Bundle.open(halves), CPU)


def test_what_tensorrt_rtx_is_told(card: tuple[Path, Device], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs for it are captured, with memory that stays, unless they take turns; TensorRT's provider is told nothing of it."""
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        engine_sessions, "open_engine", lambda b, graph, device, n, captured: asked.append((device.name, captured))
    )
    bundle = Bundle.open(card[0])
    fits = bundle.target == "tensorrt"
    for device in (RTX, Device("tensorrt", "a test")):
        loader.open_graph(bundle, "backbone", device)
    loader.open_graph(bundle, "backbone", RTX, lean=True)
    loader.open_graph(Bundle.open(tiny_bundle), "backbone", RTX)
    assert asked == [("rtx", fits), ("tensorrt", False), ("rtx", False), ("rtx", False)]
    for lean in (False, True):
        sessions = {name: loader.open_graph(bundle, name, CPU) for name in ("embedder", "backbone", "text_head", "image_head")}
        monkeypatch.setattr(captured, "Memory", lambda size, device: None)  # there is no card to have any
        assert isinstance(loader.tied(bundle, RTX, sessions, lean=lean), CapturedDenoiser) == (fits and not lean)


def test_a_card_without_memory_for_steps_is_one_line(card: tuple[Path, Device], monkeypatch: pytest.MonkeyPatch) -> None:
    path, device = card
    sessions = watched(path)[1]

    def full(size: int, where: str) -> None:
        raise RuntimeError(f"CUDA failure 2: out of memory ; GPU=0 ; {size} bytes on {where}")

    monkeypatch.setattr(captured, "Memory", full)
    with pytest.raises(OutOfMemory, match=f"ran out of memory on {device.name}: the plan counts"):
        loader.tied(Bundle.open(path), device, sessions)


def test_an_onnxruntime_that_captures_wrongly_captures_nothing_and_says_so(
    card: tuple[Path, Device], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "captures_here", lambda: False)
    path, device = card
    assert not loader.captures(Bundle.open(path), device)
    loader.warn_where_not_captured(Bundle.open(path), device)
    assert f'pip install -U "onnxruntime{"-gpu" if device is CUDA else ""}>=1.31"' in caplog.text


def test_a_graph_that_is_refused_capture_is_opened_without_and_that_is_said(
    halves: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What onnxruntime says where a node has no kernel on the card."""
    real, said = session._create, "This session cannot use the graph capture feature as requested by the user"
    tried: list[dict[str, str]] = []

    def create(graph: Any, device: str, options: Any, settings: Any) -> Any:
        tried.append(dict(settings))
        if settings:
            raise RuntimeError(said)
        return real(graph, "cpu", options, settings)

    monkeypatch.setattr(session, "_create", create)
    monkeypatch.setattr(Device, "providers", property(lambda self: ["CPUExecutionProvider"]))
    loader.open_graph(Bundle.open(halves), "backbone", CUDA)
    assert tried == [{"enable_cuda_graph": "1"}, {}]
    assert f"backbone.onnx is launched node by node, which is slower: {said}" in caplog.text
