"""The most memory that this process has held. getrusage says what the process that started it held, where that was more."""

import resource
from pathlib import Path


def peak_memory() -> int:
    """Bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        held = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if held is not None:
            return int(held) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
