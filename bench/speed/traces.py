"""What is launched on a card in a step of decoding, counted in a trace of torch's profiler, which sees all of a process; and
what a card can do at all, copied and multiplied by torch. It knows traces, and nothing of models.
"""

import gc
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmada_lite.bench.record import Row

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel")  # how calls that launch one kernel begin
GRAPHS = ("cudaGraphLaunch", "cuGraphLaunch")
LONGEST = 12  # kernels that a row names


def counted(events: Sequence[Mapping[str, Any]], steps: int) -> Row | None:
    """Of a trace's events over so many steps, for each step: calls that launch a kernel and those that launch a whole graph,
    kernels that ran, copies; the share of the time, first kernel to last, in which one ran; and the kernels that took longest,
    in milliseconds a step. None where no kernel ran."""
    kernels = [event for event in events if event.get("cat") == "kernel" and "dur" in event]
    if not kernels:
        return None
    calls = [str(event.get("name", "")) for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    copies = sum(event.get("cat") in ("gpu_memcpy", "gpu_memset") for event in events)
    spans = sorted((float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in kernels)
    taken: dict[str, float] = defaultdict(float)
    for event in kernels:
        taken[str(event["name"])[:120]] += float(event["dur"]) / 1000 / steps
    longest = sorted(taken.items(), key=lambda item: -item[1])[:LONGEST]
    return {
        "launches": sum(call.startswith(LAUNCHES) for call in calls) / steps,
        "graphs": sum(call.startswith(GRAPHS) for call in calls) / steps,
        "kernels": len(kernels) / steps,
        "copies": copies / steps,
        "busy": covered(spans) / max(max(end for _, end in spans) - spans[0][0], 1e-9),
        "longest_ms": dict(longest),
    }


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How much of a line spans (start, end), by their starts, cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def profiled(steps: Iterator[object], skip: int, count: int) -> Row | None:
    """`counted` of the `count` steps behind the first `skip`. None where there are none, without torch, or where its profiler
    sees no card."""
    try:
        from torch import profiler
    except ModuleNotFoundError:
        return None
    for _ in islice(steps, skip):
        pass
    done = 0
    kinds = profiler.supported_activities()  # type: ignore[no-untyped-call]
    with profiler.profile(activities=list(kinds)) as seen:
        for _ in islice(steps, count):
            done += 1
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return counted(events, done) if done else None


def peaks(device: str, *, size: int = 1 << 30, side: int = 8192, turn: float = 0.5) -> Row | None:
    """What torch reaches on a device ("cuda", "cpu"): bytes read and written a second by a copy of `size` bytes, and operations
    a second by a product of two bf16 matrices of `side` x `side`. None without torch."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    one = torch.empty(size, dtype=torch.uint8, device=device)
    other, matrix = torch.empty_like(one), torch.ones((side, side), dtype=torch.bfloat16, device=device)
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    copy = _fastest(lambda: other.copy_(one), wait, turn)
    product = _fastest(lambda: matrix @ matrix, wait, turn)
    return {"bytes_per_s": 2 * size / copy, "flops_per_s": 2 * side**3 / product, "copied_bytes": size, "side": side}


def give_back() -> None:
    """Let torch hand a card's memory back that it keeps for its next tensors."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _fastest(run: Callable[[], object], wait: Callable[[], object], turn: float) -> float:
    """Seconds of the fastest run in so many seconds, after one that does not count."""
    run()
    wait()
    fastest, end = float("inf"), time.perf_counter() + turn
    while fastest == float("inf") or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        wait()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest
