"""Records as the benchmarks write them, with made-up numbers, for the laws of the page that shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmada_lite.bench import record
from mmada_lite.bench.speed.contestants import Plan
from mmada_lite.bench.synthetic import SIZES

Record = dict[str, Any]
PRECISIONS = ("int8", "int4", "fp32")


def spread(value: float) -> dict[str, float]:
    return record.spread([0.9 * value, value, 1.2 * value])


def peers(times: Mapping[str, float], reference: str = "torch bf16") -> Record:
    """Size S. times: "task side" -> how many times as fast as the reference; 2 where nothing is said."""
    plan, rows = Plan.of(SIZES["s"]), []
    for number, task in enumerate(plan.tasks):
        sides = {reference: "reference", "bitsandbytes nf4": "other"}
        sides |= {f"ours {p}": "ours" for p in PRECISIONS} if task.startswith("forward") else {}
        if not task.startswith("forward"):
            sides |= {f"ours int8 {policy}": "ours" for policy in ("exact", "prefix", "dual", "settled", "balanced", "fast")}
        for side, kind in sides.items():
            ratio = 1.0 if kind == "reference" else times.get(f"{task} {side}", 2.0)
            seconds = 10 * (number + 1) / ratio
            scaled = {"steps": 3, "of": 128} if kind == "reference" and number > 3 else None
            rows.append(
                {"task": task, "side": side, "kind": kind, "seconds": spread(seconds), "tokens_per_s": 128 / seconds}
                | {"steps": 128, "forwards": 128, "scaled_from": scaled}
                | {"times": {} if kind == "reference" else {reference: spread(ratio)}}
            )
    missing = {"optimum dynamic int8": "optimum.onnxruntime is not installed; pip install optimum-onnx"}
    return record.record("peers", ["--shape", "s"], rows, missing=missing, shape="s", threads=2)


def latency(shape: str, share: float, python: float, off: float, precision: str = "int8") -> Record:
    """share: of the ceiling; python: of a step; off: the cost model's error."""
    rows = []
    for tokens in (32, 128, 512):
        operators = {"matrix": 0.2, "rounding": 0.03, "attention": 0.05, "elementwise": 0.02}
        row: Record = {"task": "forward", "precision": precision, "threads": 2, "tokens": tokens, "seconds": spread(0.3)}
        rows.append(row | {"operators": operators, "matrix_share": share + 0.1, "ceiling_share": share})
    for task, caches in {"text": ("none", "prefix", "dual"), "understanding": ("none", "dual"), "drawing": (None,)}.items():
        for cache in caches:
            parts = {"embedder": 0.1, "backbone": 6.0, "head": 2.0, "copying": 0.2, "selection": 0.1}
            row = {"task": task, "cache": cache, "threshold": None, "precision": precision, "threads": 2}
            row |= {"seconds": spread(8.4), "parts": parts, "tokens_per_second": 15.0, "tokens_per_forward": 1.0}
            row |= {"first_step_seconds": spread(0.3), "python_share": python, "ceiling_share": share, "peak_bytes": 9e8}
            rows.append(row | {"scaled_from": None, "predicted_over_measured": 1.02})
    doubled = {
        "doubled": "prompt, cache none",
        "from": 256,
        "to": 512,
        "measured_ratio": 2.1,
        "predicted_ratio": 2.1 * (1 + off),
    }
    return record.record("latency", ["--shape", shape], rows, shape=shape, doubling=[doubled | {"off": off}])


def ceiling() -> Record:
    shared = {"shape": "s", "threads": 2}
    rows: list[Record] = [
        {"what": "product", "form": form, "k": 1024, "n": 1024, "count": 4, "tokens": tokens, "giga_per_s": spread(rate)}
        | shared
        for form, rate in (("int8", 700.0), ("int4-b128", 390.0), ("fp32", 190.0))
        for tokens in (1, 32, 128, 512, 1056)
    ]
    for what in ("attention", "elementwise"):
        rows += [{"what": what, "form": "fp32", "tokens": t, "giga_per_s": spread(50.0)} | shared for t in (1, 1056)]
    rows.append({"what": "node", "form": "fp32", "seconds": spread(1e-6)} | shared)
    rows.append({"what": "memory", "form": "numpy read", "giga_per_s": spread(20.0)} | shared)
    return record.record("ceiling", ["--shapes", "s"], rows, quick=True)


def frontier() -> Record:
    rows = []
    for kind, tasks in (("text", ("arithmetic", "what", "scenes")), ("image", ("drawing",))):
        for number, best in enumerate((False, True, True, False, True)):
            quality = {task: {"share": 0.5 + 0.07 * number, "low": 0.4, "high": 0.99} for task in tasks}
            row: Record = {"kind": kind, "policy": f"way {number}", "changes": {}, "seconds": spread(0.01 * 2**number)}
            row |= {"tokens_per_s": 100.0, "forwards": 8.0, "times": spread(1.0), "quality": quality, "frontier": best}
            rows.append(row | {"share": 0.5 + 0.07 * number})
    return record.record(
        "frontier", ["train/shipped/emoji"], rows, passed_over=["text sixth_sense=3: this version has no such"]
    )


def presets(times: float, points: float) -> Record:
    """times: of fast against the reference; points: what balanced and fast lose or gain."""
    rows = []
    for kind, tasks in (("text", ("arithmetic", "what", "scenes")), ("image", ("drawing",))):
        for policy, ratio in (("exact", 2.0), ("balanced", times / 2), ("fast", times), ("torch fp32", 1.0)):
            row: Record = {"kind": kind, "policy": policy, "seconds": spread(1 / ratio), "tokens_per_s": 10 * ratio}
            row |= {"forwards": 16.0, "times": spread(ratio / 2), "times_reference": spread(ratio)}
            if policy != "torch fp32":
                lost = 0.0 if policy == "exact" else points
                quality = {task: {"share": 0.9 + lost / 100, "low": 0.85, "high": 0.95} for task in tasks}
                row |= {"changes": {"cache": "dual"}, "quality": quality, "points": dict.fromkeys(tasks, lost)}
            rows.append(row)
    return record.record("presets", ["mmada_lite/models/emoji"], rows, passed_over=[])


def eight(layers: int = 32) -> Record:
    """Both answers of `bench eight`, and a part that answers nothing."""
    spent = {"picture": 8.0, "backbone": 140.0, "head": 2.0}
    answer: Record = {
        "peak_gb": 7.9,
        "minutes": 2.6,
        "processor_minutes": 5.1,
        "answer_tokens": 128,
        "steps": 16,
        "cache": "dual",
    }
    answer |= {"answer_seconds": 150.0, "seconds_of": spent, "targets": {}}
    rows = [{"part": f"{precision}-answer", **answer} for precision in ("int4", "int8")]
    limits = {"bundle_gb": {"at_most": 4.7, "met": True}, "peak_gb": {"at_most": 3.0, "met": False}}
    rows.append({"part": "int4", "peak_gb": 3.5, "minutes": 1.2, "processor_minutes": 1.2, "bundle_gb": 4.6, "targets": limits})
    return record.record("eight", ["--work", "w"], rows, shape="8b", layers=layers)


def good() -> list[Record]:
    """Records under which every target is met."""
    wanted = {
        "text ours int8 exact": 5.0,
        "text ours int8 dual": 30.0,
        "text ours int8 settled": 40.0,
        "understanding ours int8 prefix": 21.0,
    }
    wanted |= {"drawing ours int8 exact": 3.0, "drawing ours int8 balanced": 6.0}
    large = [latency("8b", 0.8, 0.01, 0.0, precision) for precision in ("int8", "int4")]
    return [peers(wanted), ceiling(), latency("s", 0.8, 0.01, 0.05), frontier(), presets(50.0, -0.5), *large, eight()]


def bad() -> list[Record]:
    """Records under which every target with a number is missed."""
    names: Sequence[str] = Plan.of(SIZES["s"]).tasks
    wanted = {
        f"{task} ours int8{policy}": 1.1
        for task in names
        for policy in ("", " exact", " prefix", " dual", " settled", " balanced")
    }
    return [peers(wanted), ceiling(), latency("s", 0.5, 0.06, -0.3), frontier(), presets(20.0, -3.0)]
