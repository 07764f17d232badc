"""The measurement of a card: whole at a tiny shape, on the CPU; and its arithmetic, over recorded and faked readings."""

import ctypes
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made import speeds

from mmada_lite.bench import record
from mmada_lite.bench.speed import card, ceiling, latency, sensors, traces
from mmada_lite.bench.speed.card import Forward, Taken, Way
from mmada_lite.bench.speed.sensors import Sensor, Watch
from mmada_lite.bundle import Architecture
from mmada_lite.decoding.settings import PRESETS
from mmada_lite.export.synthetic import SIZES, AlikeTensors, cached_bundle
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session

PARTIAL = PRESETS["fast"][1].get("refresh", 1) > 1  # whether `fast` has steps of a drawing that are over a past
SHAPE = Architecture(64, 3, 4, 2, 16, 96, 144, 10000.0, 1e-5, 512)


@pytest.mark.slow
def test_the_whole_measurement_at_a_tiny_shape_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, work = tmp_path / "card.json", tmp_path / "work"
    words = ["--shape", "tiny", "--tasks", "card", "--quick", "--threads", "1", "--work", str(work), "-o", str(target)]
    monkeypatch.setattr(card, "sensor_here", lambda: Sensor("a planted meter", lambda: 20.0))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(traces, "profiled", stopped)
        assert latency.main(words) == 130
    assert not target.exists()
    with monkeypatch.context() as patch:
        patch.setattr(card.Session, "rows", lambda *_: pytest.fail("what was measured is measured again"))
        assert latency.main(words) == 0
    found = record.load(target)
    assert "going on behind what the card can do, opening, understanding, drawing" in capsys.readouterr().err
    rows = {(row["task"], row["contestant"]): row for row in found["rows"]}
    answers = [name for task, name in rows if task == "understanding"]
    pictures = [name for task, name in rows if task == "drawing"]
    assert answers == ["torch bf16", "fp16 dual", "int4 dual"]
    assert pictures == ["torch bf16", "fp16 exact", "fp16 fast", "int4 exact", "int4 fast"]
    for (_, name), row in rows.items():
        ours = row["kind"] == "ours"
        assert row["seconds"]["median"] > 0
        assert (set(row["times"]), row["planned_bytes"] is not None) == ({"torch bf16"} if ours else set(), ours)
        assert row["step_ms"]["whole"]["p50"] <= row["step_ms"]["whole"]["p99"]
        assert ("cached" in row["step_ms"]) == name.endswith((" dual", " fast") if PARTIAL else " dual")
        assert row["joules"]["median"] == pytest.approx(20 * row["seconds"]["median"])
        assert row["bandwidth_share"] > 0
        assert row["arithmetic_share"] > 0
        assert (row["energy_from"], row["launches"]) == ("a planted meter", None)
    assert rows["understanding", "fp16 dual"]["steps"] == SIZES["tiny"].answer // 2
    assert (found["missing"], found["agreement"], found["weights"]) == ({}, [], "random, layers alike")
    assert found["peak"]["bytes_per_s"] > 0 < found["peak"]["flops_per_s"]
    lines = {(each.task, each.how): each for each in speeds(found)}  # as docs/benchmarks.md lists them
    dual = lines["understanding, 4 steps", "fp16 dual"]
    assert dual.times == rows["understanding", "fp16 dual"]["times"]["torch bf16"]["median"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "card"], "say --shape, and no other task"),
        (["--tasks", "card", "text", "--shape", "tiny"], "say --shape, and no other task"),
        (["--tasks", "card", "--shape", "huge"], "no shape is called 'huge'"),
        (["--tasks", "card", "--shape", "tiny", "--limit", "0"], "seconds above 0"),
        (["--tasks", "card", "--shape", "tiny", "--precision", "int3"], "no precision is called 'int3'"),
    ],
)
def test_bad_requests_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = latency.main(words)
    except SystemExit as left:
        code = int(str(left.code))
    assert code == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]


def test_nothing_that_can_be_measured_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory\n  ; GPU=0")

    monkeypatch.setattr(card, "of_torch", full)
    monkeypatch.setattr(card, "of_ours", full)
    words = ["--shape", "tiny", "--tasks", "card", "--quick", "-o", str(tmp_path / "x.json")]
    assert latency.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "torch bf16: CUDA failure 2: out of memory ; GPU=0" in error
    assert "mmada-lite doctor" in error


# ---- turns and time


def steps(count: int, seconds: float = 0.0, fails: bool = False) -> Iterator[int]:
    for number in range(count):
        if fails and number == 1:
            raise RuntimeError("no room")
        time.sleep(seconds)
        yield number


def never() -> Watch:
    return Watch(None, lambda: None, every=10)


def test_one_that_fails_is_told_of_and_the_others_take_turns() -> None:
    order: list[str] = []

    def way(name: str, fails: bool = False) -> Way:
        def begin() -> Iterator[int]:
            order.append(name)
            return steps(3, fails=fails)

        return Way(begin, list)

    ways = {"a": way("a"), "b": way("b", fails=True), "c": way("c")}
    taken, failures = card.in_turns(ways, 3, time.perf_counter() + 60, {}, never)
    assert order == ["a", "b", "c", "c", "a", "a", "c"]
    assert failures == {"b": "no room"}
    assert [len(taken[name].steps) for name in ("a", "c")] == [3, 3]


def test_time_that_is_short_leaves_rounds_and_equal_steps_out() -> None:
    whole, equal = Way(lambda: steps(6), list), Way(lambda: steps(40, 0.001), list, equal=40)
    taken, _ = card.in_turns({"whole": whole, "equal": equal}, 5, time.perf_counter(), {"equal": 0.001}, never)
    assert (len(taken["whole"].steps), len(taken["whole"].steps[0])) == (1, 6)
    assert (len(taken["equal"].steps), len(taken["equal"].steps[0])) == (1, 4)
    (seconds,) = taken["equal"].seconds(equal)
    assert seconds == pytest.approx(10 * sum(taken["equal"].steps[0]))
    taken, _ = card.in_turns({"equal": equal}, 2, time.perf_counter() + 60, {"equal": 0.001}, never)
    assert [len(run) for run in taken["equal"].steps] == [40, 40]


def test_steps_are_told_apart_by_their_past() -> None:
    known: list[Forward] = [(1, 9, 0, 9)]  # of an earlier run

    def begin() -> Iterator[int]:
        for number in range(4):
            known.append((1, 2, 7, 2) if number % 2 else (1, 9, 0, 2))
            yield number

    way = Way(begin, lambda: known)
    seconds, forwards = card.run_once(way)
    assert len(seconds) == 4
    assert forwards == [[(1, 9, 0, 2)], [(1, 2, 7, 2)], [(1, 9, 0, 2)], [(1, 2, 7, 2)]]
    taken = Taken([[0.004, 0.001, 0.006, 0.003]], [None], forwards)
    found = card.steps_in_words(taken)
    assert found["whole"] == {"p50": pytest.approx(5.0), "p99": pytest.approx(5.98), "count": 2}
    assert found["cached"]["p50"] == pytest.approx(2.0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99, 1.0])
def test_quantiles_are_numpys(share: float) -> None:
    values = np.random.default_rng(1).random(37).tolist()
    assert card.quantile(values, share) == pytest.approx(float(np.quantile(values, share)))
    assert card.quantile([7.0], share) == 7.0


@pytest.mark.parametrize(("window", "past"), [(7, 0), (1, 64), (5, 5)])
def test_work_is_that_of_the_products_and_of_attention(window: int, past: int) -> None:
    read, flops = card.work_of(SHAPE, (1, window, past, window), 144, 1000, 2)
    products = sum(each for _, each in ceiling.backbone_products(SHAPE, [(1, window, past, window)]))
    attention = 3 * 4 * 16 * 2 * 2 * window * (window + past)  # layers, heads, numbers, two products, two operations
    assert flops == products + attention + 2 * window * 144 * 64
    assert read == 1000 + 2 * 3 * 2 * 16 * past * 2
    pair = card.work_of(SHAPE, (2, window, past, window), 144, 1000, 2)
    assert pair == (1000 + 2 * (read - 1000), 2 * flops)


def test_shares_are_of_what_the_card_does_and_the_head_runs_once_a_step() -> None:
    size = SIZES["tiny"]
    who = card.Contestant({}, 10_000, {"drawing": 500}, {"drawing": size.codes}, 2)
    guided: list[Forward] = [(1, 20, 0, 16), (1, 20, 0, 16)]
    taken = Taken([[0.5, 0.25]], [None], [guided, [(1, 4, 16, 4)]])
    found = card.shares(who, "drawing", taken, size, {"bytes_per_s": 1e6, "flops_per_s": 1e9})
    kept = 2 * size.architecture.n_layers * 64 * 16 * 2
    assert found["bandwidth_share"] == pytest.approx((3 * 10_000 + 2 * 500 + kept) / 0.75 / 1e6)
    assert found["cached_bandwidth_share"] == pytest.approx((10_500 + kept) / 0.25 / 1e6)
    assert found["arithmetic_share"] > 0
    assert card.shares(who, "drawing", taken, size, None) == {}


# ---- what is launched


def event(category: str, name: str, begun: float = 0.0, taken: float | None = None) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": begun} | ({} if taken is None else {"dur": taken})


def test_launches_are_counted_in_a_trace() -> None:
    trace = [
        *(event("cuda_runtime", name, 1.0, 2.0) for name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cudaMemcpyAsync")),
        *(event("cuda_driver", name, 1.0, 2.0) for name in ("cuLaunchKernelEx", "cuMemAlloc")),
        event("cuda_runtime", "cudaGraphLaunch", 5.0, 1.0),
        *(event("kernel", name, begun, taken) for name, begun, taken in (("gemm", 10, 40), ("norm", 30, 40), ("gemm", 90, 10))),
        *(event("gpu_memcpy", "Memcpy HtoD", 5.0, 1.0), event("cpu_op", "aten::mm", 0.0, 500.0)),
        {"ph": "i", "cat": "kernel", "name": "a mark", "ts": 0.0},
    ]
    assert traces.counted(trace, 2) == {
        "launches": 1.5,
        "graphs": 0.5,
        "kernels": 1.5,
        "copies": 0.5,
        "busy": pytest.approx(70 / 90),
        "longest_ms": {"gemm": pytest.approx(0.025), "norm": pytest.approx(0.02)},
    }
    assert traces.counted([event("cpu_op", "aten::mm", 0.0, 9.0)], 1) is None


@pytest.mark.parametrize(("spans", "length"), [([], 0), ([(0, 2), (1, 3), (5, 6)], 4), ([(0, 9), (1, 2), (3, 4)], 9)])
def test_covered_counts_nothing_twice(spans: Sequence[tuple[float, float]], length: float) -> None:
    assert traces.covered(spans) == length


def test_a_processor_launches_nothing_and_has_a_ceiling() -> None:
    assert traces.profiled(steps(5), 2, 4) is None
    assert traces.profiled(steps(2), 2, 4) is None
    found = traces.peaks("cpu", size=1 << 16, side=32, turn=0.001)
    assert found is not None
    assert found["bytes_per_s"] > 0 < found["flops_per_s"]


# ---- readings


@pytest.mark.parametrize(
    ("text", "watts"), [("71.23\n", 71.23), ("  250 W", 250.0), ("[N/A]", None), ("", None), ("Unknown Error", None)]
)
def test_what_nvidia_smi_says(text: str, watts: float | None) -> None:
    assert sensors.watts_said(text) == watts


def board(folder: Path, kind: str, rails: dict[str, tuple[str, ...]]) -> Path:
    """The files of a Jetson's meter: of each rail its numbers as the kernel writes them."""
    new = kind == "new"
    place = folder / (
        "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3" if new else "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    )
    place.mkdir(parents=True)
    for number, (name, values) in enumerate(rails.items(), 1 if new else 0):
        names = (f"in{number}_input", f"curr{number}_input") if new else (f"in_power{number}_input",)
        (place / (f"in{number}_label" if new else f"rail_name_{number}")).write_text(f"{name}\n")
        for file, value in zip(names, values, strict=True):
            (place / file).write_text(f"{value}\n")
    return folder


ORIN_NANO = {"VDD_IN": ("5040", "1144"), "VDD_CPU_GPU_CV": ("5032", "400"), "VDD_SOC": ("5032", "300")}
ORIN_AGX = {"VDD_GPU_SOC": ("19152", "200"), "VDD_CPU_CV": ("19152", "100"), "VIN_SYS_5V0": ("4952", "600")}


@pytest.mark.parametrize(
    ("kind", "rails", "name", "watts"),
    [
        ("new", ORIN_NANO, "INA3221 VDD_IN", 5.04 * 1.144),
        ("new", ORIN_AGX, "INA3221 VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 19.152 * 0.3 + 4.952 * 0.6),
        ("new", {**ORIN_NANO, "sum of shunt voltages": ("1", "1")}, "INA3221 VDD_IN", 5.04 * 1.144),
        ("old", {"VDD_IN": ("5731",), "VDD_SOC": ("1391",)}, "INA3221 VDD_IN", 5.731),
    ],
)
def test_a_jetson_is_read_by_its_meters(
    kind: str, rails: dict[str, tuple[str, ...]], name: str, watts: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "LIBRARY", "libno-such.so.1")
    sensor = sensors.sensor_here(board(tmp_path, kind, rails))
    assert sensor is not None
    assert sensor.name == name
    assert sensor.watts() == pytest.approx(watts)
    assert sensor.joules() is None
    for file in tmp_path.rglob("*_input"):
        file.write_text("no number")
    assert sensor.watts() is None


class Library:
    """NVIDIA's library, planted: milliwatts, millijoules that grow, or an error of either."""

    def __init__(self, watts: int | None = None, joules: int | None = None) -> None:
        self.milliwatts, self.millijoules = watts, joules

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, card: Any) -> int:
        return 0

    def nvmlDeviceGetPowerUsage(self, card: Any, value: Any) -> int:
        return self._give(self.milliwatts, value, ctypes.c_uint)

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Any, value: Any) -> int:
        if self.millijoules is not None:
            self.millijoules += 1500
        return self._give(self.millijoules, value, ctypes.c_ulonglong)

    @staticmethod
    def _give(number: int | None, value: Any, kind: Any) -> int:
        if number is None:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        ctypes.cast(value, ctypes.POINTER(kind))[0] = number
        return 0


def test_the_driver_is_asked_first_and_its_own_count_of_joules_is_taken(tmp_path: Path) -> None:
    sensor = sensors.sensor_here(board(tmp_path, "new", ORIN_NANO), Library(71_230, 1_000_000))
    assert sensor is not None
    assert (sensor.name, sensor.watts()) == ("NVML", 71.23)
    with Watch(sensor, lambda: 5, every=0.001) as watch:
        time.sleep(0.01)
    assert (watch.counted, watch.held) == (1.5, 5)
    assert watch.watts is not None
    assert 0 < watch.watts < 1.5 / 0.01
    without = sensors.sensor_here(tmp_path, Library(50_000))
    assert without is not None
    with Watch(without, lambda: None, every=0.001) as watch:
        time.sleep(0.05)
    assert watch.watts == pytest.approx(50)
    assert len(watch.samples) > 2
    assert watch.held is None
    board_after_all = sensors.sensor_here(tmp_path, Library())  # it tells neither, as on a Jetson
    assert board_after_all is not None
    assert board_after_all.name == "INA3221 VDD_IN"


def test_energy_is_the_area_under_power() -> None:
    assert sensors.joules_of([(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)]) == 55.0
    assert sensors.joules_of([(0.0, 10.0)]) is None
    asked: list[int] = []
    with Watch(None, lambda: asked.append(1) or 9, every=0.001) as watch:  # type: ignore[func-returns-value]
        time.sleep(0.02)
        assert not asked  # CUDA is left alone while something runs
    assert watch.held == 9
    assert watch.watts is None


# ---- weights that are quick to make


@pytest.mark.parametrize(("form", "target"), [("fp16", "cuda"), ("int4", "cuda"), ("int8", "cpu"), ("int4", "tensorrt")])
def test_layers_that_are_alike_lie_in_the_file_once(form: str, target: str, tmp_path: Path) -> None:
    bundle = cached_bundle("tiny", form, tmp_path, target=target, alike=True)
    plain = cached_bundle("tiny", form, tmp_path, target=target)
    (alike_bytes, plain_bytes) = (
        each.graph_path("backbone").with_name("weights.bin").stat().st_size for each in (bundle, plain)
    )
    assert alike_bytes < plain_bytes
    assert {name: group.bytes for name, group in bundle.quantization.items()} == {
        name: group.bytes for name, group in plain.quantization.items()
    }
    graph = onnx.load(bundle.graph_path("backbone"), load_external_data=False).graph
    places = {tensor.name: [(each.key, each.value) for each in tensor.external_data] for tensor in graph.initializer}
    outside = [name for name, place in places.items() if place and ".0." in name and name.replace(".0.", ".1.") in places]
    assert outside  # the last layer of a graph for CUDA has matrices of its own, as fewer positions leave it
    assert all(places[name] == places[name.replace(".0.", ".1.")] for name in outside)
    session = open_session(bundle.graph_path("text_head"), choose_device("cpu"), 1)
    feeds = {"hidden": np.ones((1, 1, 64), np.float32), "mix": np.ones((1, 1), np.float32)}
    feeds |= {"temperature": np.array(0.0, np.float32), "uniform": np.zeros((1, 1), np.float32)}
    assert np.isfinite(session.run(["log_probability"], feeds)[0]).all()


def test_alike_tensors_are_the_first_layers_and_repeat_their_rows() -> None:
    from mmada_lite.export.synthetic import RandomTensors, config_of

    shapes = config_of(SIZES["tiny"]).expected_tensors()
    alike, drawn = AlikeTensors(shapes), RandomTensors(shapes)
    name = "model.transformer.blocks.1.q_proj.weight"
    np.testing.assert_array_equal(alike.read(name), drawn.read(name.replace(".1.", ".0.")))
    np.testing.assert_array_equal(alike.read(name, slice(3, 9)), alike.read(name)[3:9])
    assert alike.read("model.transformer.wte.weight", slice(5, 150)).shape == (145, 64)
    assert json.dumps(AlikeTensors.same("blocks.12.q_proj.weight.scale")) == '"blocks.0.q_proj.weight.scale"'
