"""A run of the model that is ended from outside ends there, and the next one is what it would have been."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mmada_lite import Error, Model, load
from mmada_lite.ort.captured import CapturedDenoiser
from mmada_lite.ort.device_denoiser import DeviceDenoiser
from mmada_lite.ort.lazy import LazyDenoiser
from mmada_lite.ort.openvino import lacking
from mmada_lite.ort.session import Device, open_session

CPU = Device("cpu", "")


@pytest.fixture(params=["host", "device", "captured", "lazy", "openvino"])
def model(request: pytest.FixtureRequest, tiny_bundle: Path) -> Model:
    if request.param == "openvino":
        if fault := lacking():
            pytest.skip(fault)
        return load(tiny_bundle, device="openvino", threads=1)
    model = load(tiny_bundle, device="cpu", threads=1)
    inner: Any = model.denoiser
    if request.param in ("device", "captured"):
        a = model.bundle.architecture
        shape = (a.n_layers, a.n_kv_heads, a.head_dim)
        kind = CapturedDenoiser if request.param == "captured" else DeviceDenoiser
        model.denoiser = kind(inner._sessions, shape, "cpu", lambda graph: open_session(graph, CPU, 1), inner._guard)
    elif request.param == "lazy":
        model.denoiser = LazyDenoiser(lambda: inner)
    return model


def test_an_interrupted_model_answers_nothing_and_then_as_before(model: Model) -> None:
    denoiser: Any = model.denoiser
    settings = model.text_defaults.replace(answer_length=16, steps=16, cache="dual", block_length=8)
    expected = model.chat("hello", settings, seed=3).result().ids
    denoiser.interrupt(True)
    with pytest.raises(Error, match="terminate"):
        model.chat("hello", settings, seed=3).result()
    denoiser.interrupt(False)
    answer = model.chat("hello", settings, seed=3)
    next(answer)
    denoiser.interrupt(True)
    with pytest.raises(Error, match="terminate"):
        next(answer)
    denoiser.interrupt(False)
    assert model.chat("hello", settings, seed=3).result().ids.tolist() == expected.tolist()


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_run_in_flight_ends(device: str) -> None:
    """A row of the packaged model's full length takes long enough to be met in the middle."""
    if device == "openvino" and (fault := lacking()):
        pytest.skip(fault)
    model = load(device=device, threads=1)
    settings = model.text_defaults.replace(answer_length=400, block_length=400, steps=2, threshold=None, entropy_bound=None)
    answer = model.chat("what is 47 + 85?", settings)
    begun = time.monotonic()
    next(answer)
    whole = time.monotonic() - begun
    denoiser: Any = model.denoiser
    stop = threading.Timer(whole / 10, denoiser.interrupt, [True])
    begun = time.monotonic()
    stop.start()
    with pytest.raises(Error, match="terminate"):
        next(answer)
    stop.join()
    assert time.monotonic() - begun < whole
