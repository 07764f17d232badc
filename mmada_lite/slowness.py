"""Where a bundle will be slow on a device, said aloud as a warning. Nothing here makes it fast or refuses it."""

import logging

from mmada_lite.bundle import Bundle
from mmada_lite.sessions import Device, exact_int8

_log = logging.getLogger("mmada_lite")


def warn_where_slow(bundle: Bundle, device: Device) -> None:
    """Say aloud where a bundle will be slow on this device."""
    dynamic = any(group.activation for group in bundle.quantization.values())
    fits = device.name in ("rtx", "tensorrt") if bundle.target == "tensorrt" else not dynamic or device.name == "cpu"
    if not fits:
        _log.warning(
            "%s is made for %s and will be slow on %s; export it with --target %s",
            *(bundle.path.name, bundle.target, device.name, "tensorrt" if device.name == "rtx" else device.name),
        )
    elif dynamic and not exact_int8():
        _log.warning(
            "%s multiplies in int8, for which this processor (it has no VNNI) needs kernels of half the speed; "
            "--precision int4, or --store backbone=int8-b128 and the same for the heads, may be faster here",
            bundle.path.name,
        )
