"""What a decode launches: how many nodes each run of a graph hands to its device, as onnxruntime's profile tells them.

A step that was captured as a CUDA graph is one launch, and its profile has no node. It opens a bundle's graphs with the profile
on, which makes them slower: nothing here is a time.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from mmada_lite.bench.record import Row
from mmada_lite.bench.speed.latency_cases import Case
from mmada_lite.bundle import Bundle
from mmada_lite.ort import loader
from mmada_lite.ort.session import Device

GRAPHS = ("backbone", "text_head", "image_head")
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")  # other names for what is there: nothing is launched


def rows(bundle: Bundle, device: Device, threads: int | None, cases: Sequence[Case]) -> Iterator[Row]:
    """A row a graph, of each case: runs, launches of the median run, by provider, and how many runs were replays."""
    for case in cases:
        with tempfile.TemporaryDirectory() as scratch:
            opened = {name: loader.open_graph(bundle, name, device, threads, Path(scratch) / name) for name in GRAPHS}
            sessions: dict[str, Any] = {"embedder": loader.open_graph(bundle, "embedder", Device("cpu", "its table"), 1)}
            denoiser = loader.tied(bundle, device, sessions | opened, threads)
            for _ in case.begin(denoiser).steps:
                pass
            profiles = {name: json.loads(Path(session.end_profiling()).read_text()) for name, session in opened.items()}
        for name, events in profiles.items():
            if counted := runs_of(events):
                yield {"task": "launches", "of": case.task, "settings": case.settings.flat(), "graph": name, **summary(counted)}


def runs_of(events: Sequence[Mapping[str, Any]]) -> list[Counter[str]]:
    """Provider -> nodes that it launched, of every run of a session, in their order."""
    runs = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    counted: list[Counter[str]] = [Counter() for _ in runs]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            about = event["args"]
            run = next((n for n, (begun, ended) in enumerate(runs) if begun <= event["ts"] <= ended), None)
            if run is not None and about["op_name"] not in VIEWS:
                counted[run][about["provider"]] += 1
    return counted


def summary(counted: Sequence[Counter[str]]) -> Row:
    """A run without a node is a replay, which is one launch. The first run, in which kernels are chosen, does not count."""
    later = counted[1:] or counted
    most: Counter[str] = max(counted, key=Counter.total)
    return {
        "runs": len(counted),
        "replays": sum(not run for run in counted),
        "launches": median(run.total() or 1 for run in later),
        "uncaptured": dict(most),
    }
