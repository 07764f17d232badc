"""Engines are never mixed: another driver, card or version gets a place of its own, and one that is refused is told with its
mend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.engines import build_engines
from mmada_lite.ort import devices, engine_sessions, engines, nvidia
from mmada_lite.ort.engines import EngineKey
from mmada_lite.ort.nvidia import Card
from mmada_lite.ort.session import Device, OutOfMemory

RTX, TENSORRT = Device("rtx", "a test"), Device("tensorrt", "a test")
Here = Callable[..., None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    """A machine with a chosen card, driver and versions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(card: str = "8.9", driver: str = "580.1", rtx: str = "1.7.1", tensorrt: str = "101306") -> None:
        monkeypatch.setattr(nvidia, "cards", lambda: (Card("planted", card, 8 << 30),))
        monkeypatch.setattr(nvidia, "driver", lambda: driver)
        monkeypatch.setattr(nvidia, "tensorrt_version", lambda: tensorrt)
        monkeypatch.setattr(devices, "rtx_version", lambda: rtx)

    make()
    return make


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, str]]]:
    """Every session that would have been opened: its file and its settings."""
    calls: list[tuple[Path, dict[str, str]]] = []

    def record(graph: Path, device: Device, threads: int | None = None, settings: Any = None) -> str:
        calls.append((graph, dict(settings or {})))
        return "a session"

    monkeypatch.setattr(engine_sessions, "open_session", record)
    return calls


@pytest.fixture
def lowered(tiny_checkpoint: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "lowered", target="tensorrt"))


def built(bundle: Bundle, capability: str, builder: str) -> EngineKey:
    """The key of the backbone's engine, which nobody could run."""
    return build_engines(bundle, capability, say=lambda line: None, build=lambda *_: b"engine", builder=builder)[0].key


MACHINES: dict[str, dict[str, str]] = {
    "as it was": {},
    "another driver": {"driver": "590.2"},
    "another card": {"card": "12.0"},
    "another TensorRT": {"tensorrt": "101400", "rtx": "1.8.0"},
}


@pytest.mark.parametrize("device", [RTX, TENSORRT], ids=["rtx", "tensorrt"])
def test_drivers_cards_and_versions_never_share_a_folder(
    device: Device, lowered: Bundle, here: Here, opened: list[tuple[Path, dict[str, str]]]
) -> None:
    name = "nv_runtime_cache_path" if device is RTX else "trt_engine_cache_path"
    folders = set()
    for changes in MACHINES.values():
        here(**changes)
        for graph in ("backbone", "text_head"):
            engine_sessions.open_engine(lowered, graph, device, 1)
            folders.add(opened[-1][1][name])
    assert len(folders) == 2 * len(MACHINES)
    assert all(Path(folder).is_dir() for folder in folders)


def test_an_engine_for_several_cards_runs_on_each_of_them_and_on_no_other(
    lowered: Bundle, here: Here, opened: list[tuple[Path, dict[str, str]]], caplog: pytest.LogCaptureFixture
) -> None:
    key = built(lowered, "8.6+8.9+12.0", "tensorrt-rtx 1.7.1.116")
    assert engines.engine_path(lowered, key).name.startswith("backbone-sm86-89-120-")
    for card in key.capabilities:
        here(card)
        engine_sessions.open_engine(lowered, "backbone", RTX, 1)
        assert opened[-1][0] == engines.host_graph_path(lowered, key)
    assert not caplog.messages
    here("12.1")
    engine_sessions.open_engine(lowered, "backbone", RTX, 1)
    assert opened[-1][0] == lowered.graph_path("backbone")
    assert "was built for compute capability 8.6, 8.9, 12.0, and this card has 12.1" in caplog.text


def test_what_is_captured_keeps_its_memory_whoever_built_the_engine(
    lowered: Bundle, here: Here, opened: list[tuple[Path, dict[str, str]]]
) -> None:
    """TensorRT-RTX captures again where an address is another, that of its own memory too."""
    for _ in range(2):
        for captured in (True, False):
            engine_sessions.open_engine(lowered, "backbone", RTX, 1, captured=captured)
            settings = opened[-1][1]
            assert [name in settings for name in ("enable_cuda_graph", "nv_persistent_context_memory")] == [captured] * 2
        built(lowered, "8.9", "tensorrt-rtx 1.7.1.116")
    assert len({path for path, _ in opened}) == 2


def test_an_engine_for_other_shapes_is_not_used_and_that_is_said(
    lowered: Bundle, here: Here, opened: list[tuple[Path, dict[str, str]]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(engines, "PADDED", 8)
        built(lowered, "8.9", "tensorrt-rtx 1.7.1.116")
    engine_sessions.open_engine(lowered, "backbone", RTX, 1)
    assert opened[-1][0] == lowered.graph_path("backbone")
    assert "was built for other shapes: it is built now" in caplog.text


@pytest.mark.parametrize(
    ("device", "builder", "found", "mend"),
    [
        (RTX, "tensorrt-rtx 1.6.0.1", "1.7.1 is here", "mmada-lite export {} --engine rtx"),
        (TENSORRT, "tensorrt 100300", "101306 is here", "python -m mmada_lite.export.jetson {}"),
    ],
)
def test_an_engine_of_another_version_is_not_used_and_its_mend_is_named(
    device: Device,
    builder: str,
    found: str,
    mend: str,
    lowered: Bundle,
    here: Here,
    opened: list[tuple[Path, dict[str, str]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    built(lowered, "8.9", builder)
    engine_sessions.open_engine(lowered, "backbone", device, 1)
    assert opened[-1][0] == lowered.graph_path("backbone")
    (line,) = [line for line in caplog.messages if "was built with" in line]
    assert found in line
    assert mend.format(lowered.path) in line


def test_an_engine_that_the_provider_refuses_is_one_line_with_its_mend(
    lowered: Bundle, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = built(lowered, "8.9", "tensorrt-rtx 1.7.1.116")
    fault: Error = Error("onnxruntime cannot load x: failed to deserialize engine")

    def refuses(*_: object) -> None:
        raise fault

    monkeypatch.setattr(engine_sessions, "open_session", refuses)
    with pytest.raises(
        Error, match=r"is refused on rtx .*failed to deserialize engine.*; remove .* and run `mmada-lite export"
    ) as told:
        engine_sessions.open_engine(lowered, "backbone", RTX, 1)
    assert str(engines.engine_path(lowered, key)) in str(told.value)
    assert "\n" not in str(told.value)
    fault = OutOfMemory("out of memory")  # the loader adds what the plan counts
    with pytest.raises(OutOfMemory):
        engine_sessions.open_engine(lowered, "backbone", RTX, 1)


DRIVERS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12": "535.183.01",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)": "580.65.06",
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build": "540.4.0",
    "something else": "R36.4.3",
}


@pytest.mark.parametrize("said", DRIVERS)
def test_the_driver_says_its_version(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(said)
    (tmp_path / "board").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64")
    monkeypatch.setattr(nvidia, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(nvidia, "_BOARD", tmp_path / "board")
    assert nvidia.driver() == DRIVERS[said]
    (tmp_path / "version").unlink()
    (tmp_path / "board").unlink()
    for newest, told in (("13.0", "cuda13.0"), (None, "unknown")):
        monkeypatch.setattr(nvidia, "version", lambda newest=newest: newest)
        assert nvidia.driver() == told
