"""What the speed of this project is held to, looked up in the records of the benchmarks; and for what is missed, which part of
the time is left and what the ceiling says about it. It knows the names that records give things; it draws nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmada_lite.bench.speed import ceiling, cost
from mmada_lite.bench.synthetic import SIZES
from mmada_lite.memory_plan import PUBLISHED

Record = Mapping[str, Any]
Row = Mapping[str, Any]
REFERENCE, OTHERWISE = "torch bf16", "torch fp32"
FORWARDS = {32: 1.3, 128: 1.3, 512: 1.6, 1056: 1.6}
LOOPS = (
    ("text", "exact", 4.0),
    ("text", "dual", 12.0),
    ("text", "settled", 12.0),  # the dual cache, written tokens leaving the window of their block
    ("understanding", "prefix", 20.0),
    ("drawing", "exact", 2.5),
)
BALANCED, FAST, LOSS = 5.0, 40.0, 1.0  # times the reference, and points of quality at most
RATE, CEILING, PYTHON, MODEL = 16.0, 0.75, 0.03, 0.15
CACHES = {"exact": "none", "prefix": "prefix", "dual": "dual", "settled": "dual/4"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target: what was wanted and found, in words. met: None where no record tells; left: of a missed one, what is left."""

    what: str
    wanted: str
    found: str
    met: bool | None
    left: str = ""


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """Every target, in the order in which they are stated."""
    return [*_forwards(records), *_matrix(records), *_loops(records), *_presets(records), *_largest(records), *_laws(records)]


def _forwards(records: Sequence[Record]) -> Iterator[Verdict]:
    for tokens, wanted in FORWARDS.items():
        said = _peer(records, f"forward {tokens}", "ours int8")
        what = f"full forward of {tokens} tokens in int8, head over all rows, size S"
        yield _ratio(what, wanted, said, _forward_left(records, said, tokens))


def _matrix(records: Sequence[Record]) -> Iterator[Verdict]:
    what, wanted = "products of 128 tokens or more, share of the ceiling, size S", f"at least {CEILING:.0%}"
    found = [row for row in _apart(records) if row["tokens"] >= 128]
    if not found:
        yield Verdict(what, wanted, "not measured", None)
    for row in found:
        share = row["matrix_share"]
        said = f"{share:.0%} at {row['tokens']} tokens"
        yield Verdict(what, wanted, said, share >= CEILING, "" if share >= CEILING else f"of a forward: {_operators(row)}")


def _loops(records: Sequence[Record]) -> Iterator[Verdict]:
    for task, policy, wanted in LOOPS:
        said = _peer(records, task, f"ours int8 {policy}")
        yield _ratio(f"{task}, {policy}, size S", wanted, said, _loop_left(records, task, policy, said))
    for policy in ("dual", "settled"):
        said = _peer(records, "text", f"ours int8 {policy}")
        rate = said[1]["tokens_per_s"] if said else None
        text = "not measured" if rate is None else f"{rate:.1f} tokens/s"
        met = None if rate is None else rate >= RATE
        left = "" if met or said is None else _loop_left(records, "text", policy, said)
        yield Verdict(f"text, {policy}, size S", f"at least {RATE:.0f} tokens/s", text, met, left)
    said = _peer(records, "drawing", "ours int8 balanced")
    left = f"under exact, {_loop_left(records, 'drawing', 'exact', said)}"
    yield _ratio("drawing, balanced, size S", BALANCED, said, left)


def _presets(records: Sequence[Record]) -> Iterator[Verdict]:
    for policy, kind, wanted in (("fast", "text", FAST), ("fast", "image", None), ("balanced", "image", None)):
        row = next((r for e in _of(records, "presets") for r in e["rows"] if (r["policy"], r["kind"]) == (policy, kind)), None)
        name = {"text": "answers", "image": "pictures"}[kind]
        if wanted is not None:
            times = row["times_reference"]["median"] if row and "times_reference" in row else None
            said = "not measured" if times is None else f"{times:.1f} times"
            what = f"{name} of the small model, {policy}, against the published loop"
            calls = f"{row['forwards']:.1f} model calls an answer are left" if row else ""
            met = None if times is None else times >= wanted
            yield Verdict(what, f"at least {wanted:.0f} times", said, met, "" if met else calls)
        points: dict[str, float] = dict(row["points"]) if row else {}
        worst = min(points, key=lambda task: points[task], default=None)
        said = "not measured" if worst is None else f"{points[worst]:+.1f} points ({worst})"
        met = None if worst is None else points[worst] >= -LOSS
        left = "" if met is not False else "; ".join(f"{task} {value:+.1f}" for task, value in points.items())
        yield Verdict(f"{name} of the small model, {policy}, quality", f"at most {LOSS:.0f} point lost", said, met, left)


def _largest(records: Sequence[Record]) -> Iterator[Verdict]:
    """Answers that `bench latency` timed, or of the whole model that `bench eight` wrote and converted."""
    for precision in ("int4", "int8"):
        rows = [row for row in _latency(records, "8b", precision) if row["task"] == "understanding"]
        what, wanted = f"an answer about a picture at 8B shapes in {precision}, end to end", "measured, with memory and parts"
        said = []
        for row in rows:
            peak = f"{row['peak_bytes'] / 1e9:.2f} GB at most" if row["peak_bytes"] else "peak memory not known"
            said.append(f"{row['cache']}: {row['seconds']['median']:.1f} s, {peak}; {_parts(row)}")
        whole = [each for each in _of(records, "eight") if each["layers"] == PUBLISHED["8b"].architecture.n_layers]
        for row in (row for each in whole for row in each["rows"] if row["part"] == f"{precision}-answer"):
            took = f"{row['answer_tokens']} tokens in {row['steps']} steps, {row['cache']}: {row['answer_seconds']:.1f} s"
            said.append(f"{took}, {row['peak_gb']:.2f} GB at most; {_shares(row['seconds_of'])}")
        for text in said:
            yield Verdict(what, wanted, text, True)
        if not said:
            yield Verdict(what, wanted, "not measured", None)


def _laws(records: Sequence[Record]) -> Iterator[Verdict]:
    doubled = [row for each in _of(records, "latency", "s") for row in each.get("doubling", ())]
    what, wanted = "time when the prompt or the picture doubles, against the cost model, size S", f"within {MODEL:.0%}"
    if not doubled:
        yield Verdict(what, wanted, "not measured", None)
    for row in doubled:
        said = f"{row['doubled']}: {row['measured_ratio']:.2f} times, predicted {row['predicted_ratio']:.2f}"
        met = abs(row["off"]) <= MODEL
        yield Verdict(what, wanted, said, met, "" if met else f"the model is off by {row['off']:+.0%}")
    rows = sorted(_latency(records, "s", "int8"), key=lambda row: row.get("scaled_from") is None)  # whole answers tell last
    shares = {f"{row['task']} {row['cache'] or ''}".strip(): row["python_share"] for row in rows}
    worst = max(shares, key=lambda name: shares[name], default=None)
    met = None if worst is None else shares[worst] < PYTHON
    said = "not measured" if worst is None else f"{shares[worst]:.1%} at most ({worst})"
    left = "" if met is not False else "; ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= PYTHON)
    yield Verdict("Python's own share of a step, size S", f"under {PYTHON:.0%}", said, met, left)


def _ratio(what: str, wanted: float, said: tuple[Record, Row] | None, left: str) -> Verdict:
    """A target that is a ratio to the reference; to its fp32 form, which is said, where bf16 was not run or was slower."""
    goal = f"at least {wanted:g} times {REFERENCE}"
    if said is None:
        return Verdict(what, goal, "not measured", None)
    against, times = _against(said[1])
    if times is None:
        return Verdict(what, goal, "the reference was not run", None)
    why = f"{REFERENCE.split()[1]} {'is slower here' if REFERENCE in said[1]['times'] else 'was not run'}"
    aside = "" if against == REFERENCE else f" {against} ({why})"
    met = times >= wanted
    return Verdict(what, goal, f"{times:.2f} times{aside}", met, "" if met else left)


def _against(row: Row) -> tuple[str, float | None]:
    """The faster form of the reference of those that ran, and how many times its speed a row has."""
    found = {name: row["times"][name]["median"] for name in (REFERENCE, OTHERWISE) if name in row["times"]}
    return min(found.items(), key=lambda pair: pair[1], default=(REFERENCE, None))


def _peer(records: Sequence[Record], task: str, side: str) -> tuple[Record, Row] | None:
    for each in _of(records, "peers", "s"):
        for row in each["rows"]:
            if (row["task"], row["side"]) == (task, side):
                return each, row
    return None


def _forward_left(records: Sequence[Record], said: tuple[Record, Row] | None, tokens: int) -> str:
    """How much of a forward its products at the ceiling would take."""
    if said is None:
        return ""
    rates = _rates(records, said[0]["threads"])
    if rates is None:
        return "no record of `bench ceiling` for this shape and these threads was given"
    size, (against, times) = SIZES["s"], _against(said[1])
    forms, nothing = dict.fromkeys(("backbone", "text_head"), "int8"), dict.fromkeys(("backbone", "text_head"), 0)
    model = cost.Transformer(size.architecture, size.codes, forms, nothing)
    pieces = [*cost.forward(model, tokens, 0, tokens), *cost.head(model, "text_head", tokens)]
    least = sum(piece.flops / cost.at(rates.matrix["int8"], piece.tokens) for piece in pieces if piece.kind == "matrix")
    seconds = said[1]["seconds"]["median"]
    best = f"; at the ceiling it would be {times * seconds / least:.2f} times {against}" if times else ""
    apart = next((f"; of its backbone: {_operators(row)}" for row in _apart(records) if row["tokens"] == tokens), "")
    return f"of {seconds:.3f} s, products at the ceiling take {least:.3f} s, the rest is {seconds - least:.3f} s{best}{apart}"


def _rates(records: Sequence[Record], threads: int) -> cost.Rates | None:
    for each in _of(records, "ceiling"):
        rows = [row for row in each["rows"] if row["shape"] == "s"]
        if any(row["threads"] == threads for row in rows):
            return ceiling.rates(rows, threads)
    return None


def _loop_left(records: Sequence[Record], task: str, policy: str, said: tuple[Record, Row] | None) -> str:
    """Where the time of a whole decode goes, by `bench latency` of the same task and cache."""
    rows = [row for row in _latency(records, "s", "int8") if row["task"] == task and row["cache"] in (CACHES[policy], None)]
    if said is None:
        return ""
    if not rows:
        return "no record of `bench latency` for this task at size S was given, so where its time goes is not known"
    row = rows[0]
    backbone, whole = row["parts"]["backbone"], row["seconds"]["median"]
    best = whole - backbone * (1 - row["ceiling_share"])
    return f"{_parts(row)}; with its backbone at the ceiling it would be {whole / best:.2f} times as fast as now"


def _parts(row: Row) -> str:
    return f"{row['task']}: {_shares(row['parts'])}; its products reach {row['ceiling_share']:.0%} of the ceiling"


def _shares(parts: Mapping[str, float]) -> str:
    whole = sum(parts.values()) or 1
    return ", ".join(f"{part} {value / whole:.0%}" for part, value in parts.items() if value / whole >= 0.005)


def _apart(records: Sequence[Record]) -> list[Row]:
    """Whole forwards of size S in int8 that `bench latency` took apart by operators."""
    found = [row for each in _of(records, "latency", "s") for row in each["rows"] if "operators" in row]
    return [row for row in found if row["precision"] == "int8"]


def _operators(row: Row) -> str:
    whole = sum(row["operators"].values()) or 1
    return ", ".join(f"{kind} {seconds / whole:.0%}" for kind, seconds in row["operators"].items())


def _latency(records: Sequence[Record], shape: str, precision: str) -> list[Row]:
    found = [row for each in _of(records, "latency", shape) for row in each["rows"] if "parts" in row]
    return [row for row in found if row["precision"] == precision and row["threshold"] is None]


def _of(records: Sequence[Record], bench: str, shape: str | None = None) -> list[Record]:
    return [each for each in records if each["bench"] == bench and (shape is None or each.get("shape") == shape)]
