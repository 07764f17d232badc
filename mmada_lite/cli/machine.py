"""What this machine offers: device by device and library by library, what mends each gap, the best settings.

It looks and says; it installs nothing. What works is found out by `mmada_lite.ort.devices`, in the way of `--device auto`, and
how fast the forms are on its processor by `mmada_lite.ort.measured`.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmada_lite import __version__
from mmada_lite.cli import PAGES, speeds
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.memory_plan import memory_available, memory_total
from mmada_lite.ort import devices, measured, nvidia
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.session import PROVIDERS, exact_int8

# Package -> the extra of ours that brings it, and what for. Looked up by name, imported never.
_LIBRARIES: Mapping[str, tuple[str, str]] = {
    "numpy": ("cpu", "everything"),
    "tokenizers": ("cpu", "reading text"),
    "pillow": ("cpu", "pictures"),
    "onnxruntime": ("cpu", "running on a CPU, or with [rtx] on a consumer card"),
    "onnxruntime-gpu": ("cuda", "running on CUDA or TensorRT"),
    "onnxruntime-ep-nv-tensorrt-rtx-cu13": ("rtx", "TensorRT-RTX, for consumer cards"),
    "tensorrt": ("tensorrt", "TensorRT, for servers"),
    "openvino": ("openvino", "OpenVINO, for Intel's processors, GPUs and NPUs"),
    "tensorrt-rtx-cu13-bindings": ("rtx-build", "building engines ahead of time"),
    "onnx": ("export", "export and engines"),
    "torch": ("train", "quantizing, training and parity"),
}
# Shared library -> who brings it. Opened as onnxruntime would, and named where the system has none.
_SHARED: Mapping[str, str] = {
    "libcuda.so.1": "NVIDIA's driver",
    "libcudart.so": 'pip install "mmada-lite[cuda]"',
    "libcublasLt.so": 'pip install "mmada-lite[cuda]"',
    "libcudnn.so.9": 'pip install "mmada-lite[cuda]"',
    "libnvinfer.so.10": 'pip install "mmada-lite[tensorrt]", or JetPack on a Jetson',
    "libtensorrt_rtx.so.1": 'pip install "mmada-lite[rtx]"',
}
_NEEDED = ("numpy", "tokenizers", "pillow")


def examine(measure_anew: bool = False) -> dict[str, Any]:
    """Everything as plain data."""
    devices = _devices()
    cards = nvidia.cards()
    speed = speeds.as_json(*speeds.examined(measure_anew)) if _works("cpu", devices) else None
    return {
        "mmada_lite": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": {"cores": usable_cores(), "exact_int8": exact_int8()},
        "memory": {"total": memory_total(), "free": memory_available()},
        "driver": {"cuda": nvidia.version(), "cards": [_card(card) for card in cards]},
        "devices": devices,
        "libraries": [_library(name) for name in _LIBRARIES],
        "shared": [_shared(name) for name in _SHARED],
        "conflicts": _conflicts(),
        "speed": speed,
        "best": _best(devices, cards, speed),
    }


def as_text(machine: Mapping[str, Any]) -> str:
    """The same for a person; every gap with its mend."""
    processor, memory = machine["processor"], machine["memory"]
    vnni = "" if processor["exact_int8"] else "; without VNNI, so int8 runs on kernels whose sums cannot overflow"
    lines = [
        f"mmada-lite {machine['mmada_lite']}, Python {machine['python']}, {machine['system']}",
        f"processor  {processor['cores']} cores{vnni}",
        f"memory     {_size(memory['free'])} free of {_size(memory['total'])}",
        f"driver     {_driver(machine['driver'])}",
        "",
        "devices",
        *(f"  {_mark(device['works'])} {device['name']:12} {device['why']}" for device in machine["devices"]),
        "",
        "libraries",
        *(_library_line(library) for library in machine["libraries"]),
        *(_shared_line(library) for library in machine["shared"]),
        *(f"  !  {conflict}" for conflict in machine["conflicts"]),
        "",
        *([*speeds.lines(machine["speed"]), ""] if machine["speed"] else []),
        f"best here  {machine['best']['why']}",
        *(f"           {line}" for line in machine["best"]["settings"]),
        f"manual     {PAGES['doctor']}",
    ]
    return "\n".join(lines)


def _devices() -> list[dict[str, Any]]:
    results = []
    for name, provider in PROVIDERS.items():
        try:
            why = devices.fault(name) if name != "cpu" else _cpu_fault()
        except Error as error:
            why = str(error)
        reason = why or f"{provider.what} works: a graph was run on it"
        results.append({"name": name, "provider": provider.name, "works": why is None, "why": reason})
    return results


def _cpu_fault() -> str | None:
    """The CPU needs onnxruntime alone, and it is tried as well."""
    try:
        devices.trial("cpu")
    except Error as error:
        return str(error)
    return None


def _card(card: nvidia.Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "compute_capability": card.compute_capability,
        "fp8": card.reads_fp8,
        "memory": card.memory,
        "free": card.free,
    }


def _library(name: str) -> dict[str, Any]:
    extra, purpose = _LIBRARIES[name]
    try:
        installed: str | None = version(name)
    except PackageNotFoundError:
        installed = None
    return {"name": name, "version": installed, "for": purpose, "mend": None if installed else _mend(extra)}


def _shared(name: str) -> dict[str, Any]:
    """A shared library by its name: in NVIDIA's wheels beside our packages, or where the system's linker finds it."""
    folders = [Path(folder) for folder in sys.path if folder.endswith("site-packages")]
    wheels = [path for folder in folders for place in ("nvidia", "*tensorrt*") for path in folder.glob(f"{place}/**/{name}*")]
    path = str(wheels[0]) if wheels else find_library(name.removeprefix("lib").partition(".so")[0])
    return {"name": name, "found": path, "mend": None if path else _SHARED[name]}


def _shared_line(library: Mapping[str, Any]) -> str:
    state = Path(library["found"]).name if library["found"] else f"missing: {library['mend']}"
    return f"  {_mark(library['found'] is not None)} {library['name']:36} {state}"


def _mend(extra: str) -> str:
    line = f'pip install "mmada-lite[{extra}]"'
    return f"{line}, in an environment of its own" if extra in ("cuda", "tensorrt") else line


def _conflicts() -> list[str]:
    """Packages that overwrite each other's files."""
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _library(name)["version"]]
    if len(both) < 2:
        return []
    return ['onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall both, then pip install "mmada-lite[cuda]"']


def _works(name: str, devices: Sequence[Mapping[str, Any]]) -> bool:
    return any(device["works"] for device in devices if device["name"] == name)


def _best(
    devices: Sequence[Mapping[str, Any]], cards: tuple[nvidia.Card, ...], speed: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The device that is likely the fastest, and how to export and run for it; of a CPU, as it was measured."""
    for name, target in (("rtx", "tensorrt"), ("tensorrt", "tensorrt"), ("cuda", "cuda")):
        if _works(name, devices):
            card = cards[0]
            settings = [f"mmada-lite export CHECKPOINT -o BUNDLE --precision {_precision(card.memory)} --target {target}"]
            if name == "rtx":
                settings.append("mmada-lite export BUNDLE --engine rtx")
            settings += [f"mmada-lite plan -m 8b --device {name}", f"run with --device {name} --cache dual"]
            return {"device": name, "why": f"{name}, on {card.name}", "settings": settings}
    if speed is None:
        return {"device": None, "why": "nothing runs here yet; begin with onnxruntime above", "settings": []}
    form, threads = speed["order"][0], speed["thread_order"][0]
    smallest = "and the smallest" if form == "int4-b128" else "--precision int4 is the smallest"
    device, chosen = ("openvino", "--device openvino ") if measured.on_openvino(form) else ("cpu", "")
    settings = [
        f"mmada-lite export CHECKPOINT -o BUNDLE {measured.EXPORTS[form]}  (the fastest here; {smallest})",
        f"mmada-lite plan -m 8b{f' --device {device}' if chosen else ''}",
        f"run with {chosen}--threads {threads} --cache dual",
    ]
    return {"device": device, "why": f"{device}, {threads} threads, in {measured.form_in_words(form)}", "settings": settings}


def _precision(memory: int) -> str:
    """For the published model: half precision takes 15 GB of a card for weights alone, int8 8 GB, int4 4 GB."""
    return "fp16" if memory >= 24 * 10**9 else "int8" if memory >= 16 * 10**9 else "int4"


def _driver(driver: Mapping[str, Any]) -> str:
    if driver["cuda"] is None:
        return f"no NVIDIA driver ({nvidia.LIBRARY} is missing); {devices.DRIVER}"
    if not driver["cards"]:
        return f"CUDA {driver['cuda']}, but no card; {devices.DRIVER}"
    cards = (f"{card['name']} (compute capability {card['compute_capability']}{', reads fp8' if card['fp8'] else ''}, "
             f"{_size(card['memory'])}, {_size(card['free'])} free)" for card in driver["cards"])  # fmt: skip
    return f"CUDA {driver['cuda']}: " + "; ".join(cards)


def _library_line(library: Mapping[str, Any]) -> str:
    mark = _mark(library["version"] is not None)
    needed = " (needed)" if library["name"] in _NEEDED and not library["version"] else ""
    state = library["version"] or f"missing{needed}: {library['mend']}"
    return f"  {mark} {library['name']:36} {state}  [{library['for']}]"


def _mark(good: bool) -> str:
    return "ok" if good else "- "


def _size(size: int | None) -> str:
    return "?" if size is None else size_in_words(size)
