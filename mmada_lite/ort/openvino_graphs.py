"""Which of a bundle's graphs OpenVINO computes, in which precision, and where its compiled graphs are kept."""

import hashlib
import json
import logging
from functools import cache
from pathlib import Path

from mmada_lite.bundle import LARGE, Bundle
from mmada_lite.contracts import IN_FLOAT32
from mmada_lite.files import cache_folder
from mmada_lite.ort import openvino
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.session import Device, exact_int8

_log = logging.getLogger("mmada_lite")


def refusal(bundle: Bundle, device: Device) -> str | None:
    """Why a bundle is not computed by OpenVINO, with what mends it; None where it is."""
    name, backbone = bundle.path.name, bundle.quantization["backbone"]
    if bundle.target not in IN_FLOAT32:
        return f"{name} is made for {bundle.target}, which OpenVINO does not read; export it with --target openvino"
    groups = [group for group in bundle.quantization.values() if group.activation and group.bits != 7]
    if device.name == "openvino" and groups and not exact_int8():
        return (
            f"{name} is {backbone.format}, whose sums overflow in OpenVINO on a processor without VNNI; "
            "export it with --precision int8-7bit, or use --device cpu"
        )
    return None


def precision_of(bundle: Bundle, graph: str, device: Device) -> openvino.Precision:
    """What a graph is computed in: as it is stored; beside products of integers, in bf16 where a CPU has it, in half precision
    on a GPU. What a device lacks becomes float32."""
    stored = bundle.quantization["codec" if graph.startswith("image_") and graph != "image_head" else graph].format
    on_gpu = device.name == "openvino:gpu"
    wanted: openvino.Precision = "f32"
    if stored == "bf16":
        wanted = "bf16"
    elif stored in ("int8", "int4"):
        wanted = "f16" if on_gpu else "bf16"
    elif stored == "fp16" and on_gpu:
        wanted = "f16"
    return wanted if openvino.computes(device.name, wanted) else "f32"


def open_compiled(bundle: Bundle, graph: str, device: Device, threads: int | None) -> openvino.Session:
    """A graph compiled for a device, from the cache where it is kept there."""
    precision = precision_of(bundle, graph, device)
    how = openvino.Compiling(device.name, threads or usable_cores(), precision, _kept(bundle, device.name))
    return openvino.Session(bundle.graph_path(graph), how)


def _kept(bundle: Bundle, device: str) -> Path | None:
    """The folder of a bundle's compiled graphs: of one version of OpenVINO, one processor and the very bytes of the bundle.

    None where they are not kept: of a large model they would be as large again, and graphs for `cpu` turn keys by an operator
    that comes back from OpenVINO's cache (2026.4.1) with another setting, and gives rubbish."""
    if bundle.target != "openvino" or sum(group.bytes or 0 for group in bundle.quantization.values()) >= LARGE:
        return None
    facts = [openvino.version_here(), openvino.processor(device), sorted(info.sha256 for info in bundle.files.values())]
    folder = cache_folder() / "openvino" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return folder if _writable(folder) else None


@cache
def _writable(folder: Path) -> bool:
    """Whether it can be written. Where not, that is said once for all graphs."""
    why = openvino.unwritable(folder)
    if why is not None:
        _log.warning("%s, so that OpenVINO compiles at every load; set XDG_CACHE_HOME to a folder of yours", why)
    return why is None
