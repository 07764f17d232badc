"""What a card tells while it works: watts, joules, bytes that are taken. NVIDIA's management library where there is one, else
nvidia-smi; on a Jetson the board's own meters (INA3221), which Linux shows as files. Nothing here knows what is measured.

Power is that of the first card, of a Jetson that of the whole board (rail VDD_IN) or the sum of its rails.
"""

import ctypes
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from mmada_lite.bench.timed import card_bytes

LIBRARY = "libnvidia-ml.so.1"
EVERY = 0.02  # seconds between two looks
_ASK = ("nvidia-smi", "--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
_METERS = ("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*", "sys/bus/i2c/drivers/ina3221x/*/iio:device*")
_BOARD = ("VDD_IN", "POM_5V_IN")  # rails through which all of a board's power comes


@dataclass(frozen=True, slots=True)
class Sensor:
    """name: where it comes from; watts: now; joules: since the driver was loaded, where it counts them."""

    name: str
    watts: Callable[[], float | None]
    joules: Callable[[], float | None] = lambda: None


def sensor_here(system: Path = Path("/"), library: Any = None) -> Sensor | None:
    """The best of this machine; None where nothing tells. system: where the files of Linux lie; library: NVIDIA's, opened."""
    return _of_driver(library) or _of_board(system) or _of_command()


def _of_driver(library: Any) -> Sensor | None:
    with suppress(OSError, AttributeError):
        nvml = library or ctypes.CDLL(LIBRARY)
        card = ctypes.c_void_p()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(card)):
            return None

        def asked(function: str, kind: Any) -> float | None:
            value = kind()
            failed = getattr(nvml, function)(card, ctypes.byref(value))
            return None if failed else value.value / 1000  # milliwatts and millijoules

        def watts() -> float | None:
            return asked("nvmlDeviceGetPowerUsage", ctypes.c_uint)

        def joules() -> float | None:
            return asked("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)

        if watts() is not None or joules() is not None:
            return Sensor("NVML", watts, joules)
    return None


def _of_command() -> Sensor | None:
    if shutil.which(_ASK[0]) is None:
        return None

    def watts() -> float | None:
        with suppress(OSError, subprocess.SubprocessError):
            return watts_said(subprocess.run(_ASK, capture_output=True, text=True, timeout=5).stdout)
        return None

    return Sensor("nvidia-smi", watts) if watts() is not None else None


def watts_said(text: str) -> float | None:
    """What nvidia-smi answers, as a number; None for [N/A] and the like."""
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:W\s*)?", text)
    return float(number[1]) if number else None


def _of_board(system: Path) -> Sensor | None:
    rails = [rail for pattern in _METERS for meter in sorted(system.glob(pattern)) for rail in _rails(meter)]
    if not rails:
        return None
    whole = [rail for rail in rails if rail.name in _BOARD]
    chosen = whole[:1] or rails

    def watts() -> float | None:
        read = [rail.watts() for rail in chosen]
        found = [each for each in read if each is not None]
        return sum(found) if found else None

    return Sensor(f"INA3221 {'+'.join(rail.name for rail in chosen)}", watts)


@dataclass(frozen=True, slots=True)
class _Rail:
    """One supply of a board: a file of milliwatts, or one of millivolts and one of milliamperes."""

    name: str
    files: tuple[Path, ...]

    def watts(self) -> float | None:
        with suppress(OSError, ValueError):
            numbers = [float(file.read_text()) for file in self.files]
            return numbers[0] / 1e3 if len(numbers) == 1 else numbers[0] * numbers[1] / 1e6
        return None


def _rails(meter: Path) -> Iterable[_Rail]:
    for named in sorted((*meter.glob("in*_label"), *meter.glob("rail_name_*"))):
        with suppress(OSError):
            name, number = named.read_text().strip(), re.sub(r"\D", "", named.name)
            power = meter / f"in_power{number}_input"
            files = (power,) if power.is_file() else (meter / f"in{number}_input", meter / f"curr{number}_input")
            rail = _Rail(name, files)
            if rail.watts() is not None and name != "sum of shunt voltages":
                yield rail


@dataclass(slots=True)
class Watch:
    """Looks at a card while something runs: `with Watch(sensor) as watch`. samples: seconds, watts; held: bytes that are taken
    at its end, where runtimes keep what they took; meanwhile CUDA is left alone, since a capture may be under way."""

    sensor: Sensor | None
    bytes_now: Callable[[], int | None] = card_bytes
    every: float = EVERY
    samples: list[tuple[float, float]] = field(default_factory=list)
    held: int | None = None
    counted: float | None = None  # joules that the driver counted
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _began: tuple[float, float | None] = (0.0, None)  # seconds, joules
    _passed: float = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), self.sensor.joules() if self.sensor else None
        self._sample()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        assert self._thread is not None, "it was entered"
        self._thread.join()
        self._sample()
        self.held = self.bytes_now()
        ended, (started, began) = self.sensor.joules() if self.sensor else None, self._began
        self._passed = time.perf_counter() - started
        if began is not None and ended is not None:
            self.counted = ended - began

    @property
    def watts(self) -> float | None:
        """On average: by the driver's count of joules, else by the samples; None where neither tells."""
        if self.counted is not None:
            return self.counted / self._passed
        if (joules := joules_of(self.samples)) is None:
            return self.samples[0][1] if self.samples else None
        return joules / (self.samples[-1][0] - self.samples[0][0])

    def _look(self) -> None:
        while not self._end.wait(self.every):
            self._sample()

    def _sample(self) -> None:
        watts = self.sensor.watts() if self.sensor else None
        if watts is not None:
            self.samples.append((time.perf_counter(), watts))


def joules_of(samples: Sequence[tuple[float, float]]) -> float | None:
    """The area under samples of (seconds, watts), straight between two of them; None of fewer than two."""
    if len(samples) < 2:
        return None
    return sum((later - earlier) * (one + other) / 2 for (earlier, one), (later, other) in pairwise(samples))
