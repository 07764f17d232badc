"""Devices without a GPU: the device denoiser gives the plain one's numbers, what is missing is said with its mend, faults are a
line each."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import Model
from mmada_lite.ort import devices, engine_sessions, engines, lazy, loader, nvidia, session
from mmada_lite.ort.captured import CapturedDenoiser
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.device_denoiser import DeviceDenoiser, DeviceKeyValues, Handle
from mmada_lite.ort.device_graphs import FLOAT, HALF, cut_graph, join_graph, pick_graph
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.nvidia import Card
from mmada_lite.ort.session import PROVIDERS, Device, OutOfMemory, open_session

CPU = Device("cpu", "a test")
CARD = Card("a planted card", "8.9", 8 << 30)
RED = Image.new("RGB", (16, 16), "red")


def device_denoiser(bundle: Bundle, kind: type[DeviceDenoiser] = DeviceDenoiser) -> DeviceDenoiser:
    """The denoiser of a GPU, on the CPU provider."""
    plain = {name: loader.open_graph(bundle, name, CPU, 1) for name in ("embedder", "backbone", "text_head", "image_head")}
    a = bundle.architecture
    return kind(plain, (a.n_layers, a.n_kv_heads, a.head_dim), "cpu", lambda graph: open_session(graph, CPU, 1))


@pytest.fixture(scope="module")
def halves(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in half precision, as it is written for CUDA: its caches are float16."""
    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "bundle", precision="int8", target="cuda")


@pytest.fixture(params=["fp32", "cuda", "captured"])
def pair(request: pytest.FixtureRequest, tiny_bundle: Path, halves: Path) -> tuple[Model, Model]:
    """The same bundle, with the plain denoiser and with that of a device."""
    models = [mmada_lite.load(tiny_bundle if request.param == "fp32" else halves, device="cpu", threads=1) for _ in range(2)]
    models[1].denoiser = device_denoiser(models[1].bundle, CapturedDenoiser if request.param == "captured" else DeviceDenoiser)
    return models[0], models[1]


def rounding(model: Model) -> float:
    """What a captured step may differ by: its queries are filled up, and kernels add other numbers of rows in another order."""
    return 1e-3 if isinstance(model.denoiser, CapturedDenoiser) else 0.0


TEXTS = {
    "no cache": TextSettings(answer_length=12, steps=6, block_length=6),
    "prefix": TextSettings(answer_length=12, steps=6, block_length=6).replace(cache="prefix"),
    "dual, guided": TextSettings(answer_length=12, steps=6, block_length=4, guidance=1.5).replace(cache="dual"),
    "prompt": TextSettings(answer_length=12, steps=6, block_length=4, guidance=0.5).replace(cache="prompt"),
    "committed": TextSettings(answer_length=12, steps=12, block_length=6).replace(cache="prompt", kv_commit_every=2),
    "drawn": TextSettings(answer_length=12, steps=6, block_length=6, temperature=0.8).replace(cache="dual"),
    "threshold": TextSettings(answer_length=12, steps=6, block_length=6, guidance=0.5).replace(threshold=0.02, cache="prefix"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_device_denoiser_equals_plain_in_text(pair: tuple[Model, Model], name: str) -> None:
    plain, other = (list(model.ask(RED, "what is this?", TEXTS[name], seed=5)) for model in pair)
    assert len(plain) == len(other) > 1
    for a, b in zip(plain, other, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, rtol=rounding(pair[1]))


CHEAPER: dict[str, dict[str, Any]] = {
    "exact": {},
    "partial steps": {"refresh": 3},
    "all": {"refresh": 3, "candidate_ratio": 1.5, "guidance_to": 0.7, "unconditional_every": 2},
}


@pytest.mark.parametrize("name", CHEAPER)
def test_device_denoiser_equals_plain_in_pictures(pair: tuple[Model, Model], name: str) -> None:
    settings = pair[0].image_defaults.replace(steps=5, guidance=2.0, **CHEAPER[name])
    plain, other = (list(model.paint("a red apple", settings, seed=3)) for model in pair)
    for a, b in zip(plain, other, strict=True):
        assert a.predicted_codes is not None
        np.testing.assert_array_equal(a.predicted_codes, b.predicted_codes)
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, rtol=rounding(pair[1]))


def test_states_and_caches_never_visit_the_host(tiny_bundle: Path) -> None:
    """What forward gives are handles that refuse to become numbers; with them all of decoding runs."""
    denoiser = device_denoiser(Bundle.open(tiny_bundle))
    window = Window(np.ones((1, 9), dtype=np.int64), np.arange(9), np.arange(9)[None])
    hidden, kept = denoiser.forward(window, keep=True)
    assert isinstance(hidden, Handle)
    assert isinstance(kept, DeviceKeyValues)
    for handle in (hidden, *kept.keys, *kept.values):
        with pytest.raises(TypeError, match="asked for on the host"):
            np.asarray(handle)
        with pytest.raises(TypeError):
            np.add(handle, handle)
    assert kept.shrunk(4).length == 4
    past = kept.without(2, 5, KVBuffer())
    assert past.length == 6
    assert all(isinstance(value, Handle) for value in (*past.keys, *past.values))
    again, _ = denoiser.forward(Window(window.tokens[:, 2:5], np.arange(2, 5), np.arange(3)[None], past), keep=False)
    assert np.concatenate([again, again]).shape == (2, 3, again.shape[2])


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (4, 9), (4, 40), (0, 9), (3, 3)])
@pytest.mark.parametrize(("kind", "dtype"), [(FLOAT, "float32"), (HALF, "float16")])
def test_cutting_on_the_device_equals_numpy(kind: int, dtype: str, start: int, stop: int) -> None:
    random = np.random.default_rng(0)
    arrays = tuple(random.standard_normal((2, 3, 9, 4)).astype(dtype) for _ in range(4))
    session = open_session(cut_graph(kind, 4), CPU, 1)
    feeds = {f"x_{n}": array for n, array in enumerate(arrays)} | {"start": np.array([start]), "stop": np.array([stop])}
    expected = KeyValues(arrays[:2], arrays[2:]).without(start, stop, KVBuffer())
    for cut, wanted in zip(session.run(None, feeds), (*expected.keys, *expected.values), strict=True):
        np.testing.assert_array_equal(cut, wanted)


@pytest.mark.parametrize(
    "graph",
    [
        join_graph(FLOAT),
        join_graph(HALF),
        cut_graph(HALF, 3),
        cut_graph(FLOAT, 200),
        pick_graph(FLOAT, 3, 1),
        pick_graph(HALF, 4, 9),
    ],
)
def test_our_own_bytes_are_onnx(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 23


# ---- choosing


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with chosen packages, driver and cards, and devices on which a trial succeeds."""

    def make(
        installed: tuple[str, ...] = (),
        cards: tuple[Card, ...] = (CARD,),
        works: tuple[str, ...] = (),
        drv: str | None = "13.0",
    ) -> None:
        monkeypatch.setattr(devices, "not_installed", lambda d: None if d in installed else f"no {d}; {PROVIDERS[d].install}")
        monkeypatch.setattr(nvidia, "version", lambda: drv)
        monkeypatch.setattr(nvidia, "cards", lambda: cards)

        def trial(device: str) -> None:
            if device not in works:
                raise RuntimeError("libcublasLt.so.13: cannot open shared object file")

        monkeypatch.setattr(devices, "trial", trial)

    return make


def test_auto_takes_the_best_that_works_and_says_why(world: Callable[..., None]) -> None:
    world(("cuda", "rtx", "tensorrt"), works=("cuda", "rtx", "tensorrt"))
    assert choose_device("auto", "cpu").name == "cuda"
    assert choose_device("auto", "cuda").name == "cuda"
    assert choose_device("auto", "tensorrt").name == "rtx"
    assert choose_device("auto", "integers") == Device("cpu", "int8 with rounded activations is a form for CPUs")
    assert "fastest for graphs lowered for cuda" in choose_device("auto", "cuda").reason
    world(("cuda", "tensorrt"), works=("tensorrt",))
    chosen = choose_device("auto", "tensorrt")
    assert (chosen.name, "no rtx" in chosen.reason) == ("tensorrt", True)
    broken = choose_device("auto", "cuda")
    assert broken.name == "cpu"
    assert "CUDA does not run here: libcublasLt.so.13" in broken.reason


@pytest.mark.parametrize("device", ["cuda", "rtx", "tensorrt"])
def test_asked_for_and_missing_is_an_error_with_its_mend(world: Callable[..., None], device: str) -> None:
    for arguments, reason in (
        ({}, f'pip install "mmada-lite[{device}]"'),
        ({"installed": (device,), "drv": None}, "there is no NVIDIA driver here (libcuda.so.1)"),
        ({"installed": (device,), "cards": ()}, "finds no card"),
        ({"installed": (device,)}, "does not run here: libcublasLt"),
    ):
        world(**arguments)  # type: ignore[arg-type]
        with pytest.raises(Error) as caught:
            choose_device(device)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
    world((device,), works=(device,))
    assert choose_device(device) == Device(device, "asked for")


def test_an_unknown_device_is_an_error() -> None:
    with pytest.raises(
        Error,
        match="no device is called 'tpu'; use one of auto, cpu, cuda, rtx, tensorrt, openvino, openvino:gpu, openvino:npu",
    ):
        choose_device("tpu")


@pytest.mark.parametrize("device", ["cuda", "rtx", "tensorrt"])
def test_the_command_line_never_falls_back(device: str, tiny_bundle: Path) -> None:
    """On this very machine, if it has no such device: exit code 2 and one line, nothing on standard output."""
    if devices.fault(device) is None:
        pytest.skip(f"{device} works here")
    command = [sys.executable, "-m", "mmada_lite", "chat", "hello", "-m", str(tiny_bundle), "--device", device]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mmada-lite: ")
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr or "driver" in done.stderr


# ---- faults


class Full:
    """A session of a device that has no memory left: what CUDA's arena says."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, *_: object) -> None:
        raise RuntimeError("bfc_arena.cc:359 Failed to allocate memory for requested buffer of size 173408256")

    run_with_iobinding = run


@pytest.mark.parametrize("kind", ["plain", "device"])
def test_out_of_memory_is_one_line_with_the_plan(tiny_bundle: Path, kind: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    sessions = {name: loader.open_graph(bundle, name, CPU, 1) for name in ("embedder", "backbone", "text_head")}
    sessions["backbone"] = Full(sessions["backbone"])  # type: ignore[assignment]
    a, guard = bundle.architecture, loader._guard(bundle, CPU)
    if kind == "plain":
        model.denoiser = OnnxDenoiser(sessions, a.n_layers, a.n_kv_heads, a.head_dim, guard)
    else:
        shape = (a.n_layers, a.n_kv_heads, a.head_dim)
        model.denoiser = DeviceDenoiser(sessions, shape, "cpu", lambda graph: open_session(graph, CPU), guard)
    with pytest.raises(OutOfMemory) as caught:
        _ = model.chat("hello", TextSettings(answer_length=4, steps=2)).text
    message = str(caught.value)
    assert "ran out of memory on cpu: the plan counts" in message
    assert all(word in message for word in ("weights", "activations", "--precision", f"mmada-lite plan -m {tiny_bundle}"))
    assert "\n" not in message


def test_out_of_memory_at_load_names_the_card(
    tiny_bundle: Path, world: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world(("cuda",), works=("cuda",))

    def full(graph: Any, device: str, options: Any, settings: Any) -> Any:
        if device == "cuda":
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return original(graph, device, options, settings)

    original = session._create
    monkeypatch.setattr(session, "_create", full)
    with pytest.raises(OutOfMemory, match=r"ran out of memory on cuda: the plan counts .*a planted card has 8\.6 GB"):
        mmada_lite.load(tiny_bundle, device="cuda")


def test_other_failures_of_a_session_are_one_line_with_the_graph(tiny_bundle: Path) -> None:
    with pytest.raises(Error, match="the graph backbone fails in onnxruntime: integer division"):
        loader._guard(Bundle.open(tiny_bundle), CPU)(lambda: 1 // 0, "backbone")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced": (lambda folder: replaced(folder / "weights.bin"), "weights.bin has changed on disk"),
    "written to": (lambda folder: os.utime(folder / "backbone.onnx", ns=(1, 1)), "backbone.onnx has changed on disk"),
    "removed": (lambda folder: (folder / "text_head.onnx").unlink(), "text_head.onnx is gone"),
    "exported again": (lambda folder: replaced(folder / "bundle.json"), "bundle.json has changed on disk"),
}


def replaced(path: Path) -> None:
    shutil.copyfile(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("name", CHANGES)
def test_a_bundle_that_changes_while_loaded_is_noticed(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    model = mmada_lite.load(folder, device="cpu", threads=1)
    assert len(list(model.paint("x", model.image_defaults.replace(steps=2)))) == 2
    change, reason = CHANGES[name]
    change(folder)
    for call in (lambda: model.chat("hello"), lambda: model.paint("x"), lambda: model.ask(RED, "what?")):
        with pytest.raises(Error, match=reason) as caught:
            call()
        assert "load the model again" in str(caught.value)


# ---- TensorRT without a GPU: which file is opened, with which settings


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, world: Callable[..., None], tmp_path: Path) -> list[tuple[Any, dict[str, str]]]:
    """Every session that would have been opened on TensorRT: its file and its settings."""
    world(("rtx", "tensorrt"), works=("rtx", "tensorrt"))
    monkeypatch.setattr(devices, "rtx_version", lambda: "")
    monkeypatch.setattr(nvidia, "tensorrt_version", lambda: "101306")
    monkeypatch.setattr(nvidia, "driver", lambda: "580.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls: list[tuple[Any, dict[str, str]]] = []

    def record(graph: Any, device: Device, threads: int | None = None, settings: Any = None) -> str:
        calls.append((graph, dict(settings or {})))
        return "a session"

    monkeypatch.setattr(engine_sessions, "open_session", record)
    return calls


@pytest.fixture
def lowered(tiny_checkpoint: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "lowered", target="tensorrt"))


def test_rtx_opens_the_engine_that_fits_and_says_when_none_does(
    lowered: Bundle, opened: list[tuple[Any, dict[str, str]]], caplog: pytest.LogCaptureFixture
) -> None:
    from mmada_lite.export.engines import build_engines

    build_engines(lowered, "8.6", say=lambda line: None, build=lambda *_: b"engine", builder="tensorrt-rtx 1")
    loader.open_graph(lowered, "backbone", Device("rtx", "a test"))
    assert opened[-1][0] == lowered.graph_path("backbone")
    assert "was built for compute capability 8.6, and this card has 8.9: it is built now" in caplog.text
    for end in ("min", "opt", "max"):
        assert opened[-1][1][f"nv_profile_{end}_shapes"].startswith("embeddings:1x")
    (engine, *_) = build_engines(lowered, "8.9", say=lambda line: None, build=lambda *_: b"engine", builder="tensorrt-rtx 1")
    loader.open_graph(lowered, "backbone", Device("rtx", "a test"))
    path, settings = opened[-1]
    assert path == engines.host_graph_path(lowered, engine.key)
    assert settings | {"nv_multi_profile_enable": "1", "enable_cuda_graph": "1"} == settings
    engine.path.write_bytes(b"engina")
    caplog.clear()
    loader.open_graph(lowered, "backbone", Device("rtx", "a test"))
    assert opened[-1][0] == lowered.graph_path("backbone")
    assert "is corrupt" in caplog.text


def test_profiles_of_a_provider_name_every_input(lowered: Bundle, opened: list[tuple[Any, dict[str, str]]]) -> None:
    for graph in ("backbone", "text_head", "image_head"):
        loader.open_graph(lowered, graph, Device("tensorrt", "a test"))
        session = open_session(lowered.graph_path(graph), CPU, 1)
        shaped = {value.name: value.shape for value in session.get_inputs() if value.shape}
        shapes = dict(part.split(":") for part in opened[-1][1]["trt_profile_max_shapes"].split(","))
        assert set(shapes) == set(shaped)
        for name, dims in shaped.items():
            sizes = [int(size) for size in shapes[name].split("x")]
            assert len(sizes) == len(dims)
            assert all(size == dim for size, dim in zip(sizes, dims, strict=True) if isinstance(dim, int))


def test_a_corrupt_cache_of_tensorrt_is_built_anew_and_that_is_said(
    lowered: Bundle, opened: list[tuple[Any, dict[str, str]]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader.open_graph(lowered, "backbone", Device("tensorrt", "a test"))
    assert "TensorRT builds its engine for compute capability 8.9 now" in caplog.text
    cache = Path(opened[-1][1]["trt_engine_cache_path"])
    assert cache == lowered.path / "engines" / "tensorrt-101306-sm89-driver-580.1" / "backbone"
    (cache / "x_sm89.engine").write_bytes(b"rubbish")
    record = engine_sessions.open_session

    def refuses(graph: Any, device: Device, threads: int | None = None, settings: Any = None) -> Any:
        if (cache / "x_sm89.engine").exists():
            raise Error("onnxruntime cannot load backbone.onnx: could not deserialize engine")
        return record(graph, device, threads, settings)

    monkeypatch.setattr(engine_sessions, "open_session", refuses)
    assert loader.open_graph(lowered, "backbone", Device("tensorrt", "a test")) == "a session"
    assert "are corrupt or of another TensorRT" in caplog.text
    assert "building them anew" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_bundle_for_tensorrt_runs_on_the_cpu_and_says_that_it_is_slow(
    lowered: Bundle, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["chat", "hello", "-m", str(lowered.path), "--answer-length", "4", "--device", "cpu"]) == 0
    assert "is made for tensorrt and will be slow on cpu" in caplog.text


def test_a_large_bundle_is_opened_by_threads_and_says_the_same(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, window = Bundle.open(tiny_bundle), Window(np.array([[1, 2, 3]]), np.arange(3), np.array([[2]]))
    small, _ = loader.open_denoiser(bundle, CPU, 1).forward(window, keep=False)
    codec = loader.open_codec(bundle, CPU, 1)
    opened: set[int] = set()
    record = loader.open_graph

    def watched(*given: Any) -> Any:
        opened.add(threading.get_ident())
        return record(*given)

    monkeypatch.setattr(loader, "open_graph", watched)
    monkeypatch.setattr(loader, "is_large", lambda *_: True)
    large = loader.open_denoiser(bundle, CPU, 1)
    assert isinstance(large, lazy.LazyDenoiser)
    assert (large.forward(window, keep=False)[0] == small).all()
    assert threading.get_ident() not in opened
    given_back: list[int] = []
    monkeypatch.setattr(lazy, "give_back_freed_memory", lambda: given_back.append(1))
    pixels = np.zeros((1, 3, 64, 64), np.float32)
    assert (loader.open_codec(bundle, CPU, 1).encode(pixels) == codec.encode(pixels)).all()
    assert given_back == [1]


def test_freed_memory_is_given_back_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy.give_back_freed_memory()
    monkeypatch.setattr(lazy.sys, "platform", "win32")
    monkeypatch.setattr(lazy.ctypes, "CDLL", None)
    lazy.give_back_freed_memory()
