"""What the operators of one forward take, by onnxruntime's own profile: products, rounding for them, attention, and the rest.

The graph runs in a session of its own, opened as every other, with the profile switched on. It knows names of operators and one
window of random embeddings; what a good share is, others say.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from mmada_lite.bundle import Bundle
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session

KINDS = ("matrix", "rounding", "attention", "elementwise")
_ROUNDING = ("ReduceMax", "ReduceMin", "Max", "Neg", "Div", "QuantizeLinear", "DynamicQuantizeLinear")


def operator_seconds(bundle: Bundle, threads: int, tokens: int, runs: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each of some whole forwards of so many tokens, after one that does not count, and a forward's by kind."""
    a = bundle.architecture
    empty = KeyValues.empty(a.n_layers, 1, a.n_kv_heads, a.head_dim)
    places = np.arange(tokens, dtype=np.int64)[None]
    embeddings = np.random.default_rng(0).standard_normal((1, tokens, a.d_model), dtype=np.float32)
    feeds = {"embeddings": embeddings, "positions": places, "rows": places}
    for layer in range(a.n_layers):
        feeds |= {f"past_key_{layer}": empty.keys[layer], f"past_value_{layer}": empty.values[layer]}
    durations = []
    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(bundle.graph_path("backbone"), choose_device("cpu"), threads, profile=Path(scratch) / "profile")
        for _ in range(runs + 1):
            started = time.perf_counter()
            session.run(["hidden"], feeds)
            durations.append(time.perf_counter() - started)
        events = json.loads(Path(session.end_profiling()).read_text())
    return durations[1:], {kind: seconds / runs for kind, seconds in by_kind(events).items()}


def by_kind(events: list[dict]) -> dict[str, float]:
    """Seconds by kind of operator, of every run but the first."""
    begun = sorted(event["ts"] for event in events if event["name"] == "model_run")
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begun[1]:
            seconds[kind_of(event["args"]["op_name"])] += 1e-6 * event["dur"]
    return seconds


def kind_of(operator: str) -> str:
    """The kind of an operator, fused ones too."""
    if "MatMul" in operator or "Gemm" in operator:
        return "matrix"
    if "Attention" in operator or operator in ("Softmax", "Concat"):
        return "attention"
    return "rounding" if operator in _ROUNDING else "elementwise"
