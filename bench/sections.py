"""What a page of benchmarks shows of each record: its plots, and a table of its rows. One function a benchmark, and a plain
table for those that have none here. It knows what rows hold; the page around it and the targets are others'.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from mmada_lite.bench.charts import Bar, Point, bars, legend, lines, scatter, show, stacked
from mmada_lite.bench.speed import ceiling

Record = Mapping[str, Any]
Row = Mapping[str, Any]
_KINDS = {"reference": 7, "ours": 0, "other": 1}  # colours
_TITLES = {
    "ceiling": "The ceiling of this machine",
    "peers": "The published way, and others, against ours",
    "latency": "Where the time goes",
    "frontier": "Quality against latency",
    "presets": "The named speeds, on the small model",
    "eight": "A model of the published size, from its checkpoint to its answers",
}


def title(record: Record) -> str:
    name = _TITLES.get(record["bench"], f"bench {record['bench']}")
    return f"{name}, shape {record['shape']}" if "shape" in record else name


def section(record: Record) -> str:
    """The plots and tables of a record."""
    return SECTIONS.get(record["bench"], _plain)(record)


def _peers(record: Record) -> str:
    parts = [legend({"ours": 0, "the published way in torch": 7, "others, the published way": 1})]
    for task in dict.fromkeys(row["task"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["task"] == task]
        values = [_peer_bar(row) for row in rows]
        parts.append(f"<h3>{escape(task)}, seconds</h3>{bars(values)}")
    against = list(dict.fromkeys(row["side"] for row in record["rows"] if row["kind"] == "reference"))
    head = ["task", "side", "seconds", "lowest", "highest", "tokens/s", "model calls", *(f"× {n}" for n in against), "measured"]
    cells = []
    for row in record["rows"]:
        seconds, scaled = row["seconds"], row["scaled_from"]
        times = [show(row["times"][name]["median"]) if name in row["times"] else "" for name in against]
        how = f"{scaled['steps']} of {scaled['of']} steps, scaled" if scaled else "whole"
        numbers = [show(seconds[key]) for key in ("median", "min", "max")]
        cells.append([row["task"], row["side"], *numbers, show(row["tokens_per_s"]), str(row["forwards"]), *times, how])
    missing = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in record["missing"].items())
    return "".join(parts) + table(head, cells, words=2) + (f"<p>Not run:</p><ul>{missing}</ul>" if missing else "")


def _peer_bar(row: Row) -> Bar:
    seconds = row["seconds"]
    times = next((f", {show(each['median'])}× {name}" for name, each in row["times"].items()), "")
    note = f"{show(seconds['median'])} s{times}"
    return Bar(row["side"], seconds["median"], seconds["min"], seconds["max"], _KINDS[row["kind"]], note)


def _frontier(record: Record) -> str:
    parts = []
    for kind, name in (("text", "Answers"), ("image", "Pictures")):
        rows = sorted((row for row in record["rows"] if row["kind"] == kind), key=lambda row: row["seconds"]["median"])
        if not rows:
            continue
        best = [row["policy"] for row in rows if row["frontier"]]
        points = [
            Point(1000 * row["seconds"]["median"], 100 * row["share"], _policy_title(row), _place(row["policy"], best))
            for row in rows
        ]
        tasks = list(rows[0]["quality"])
        head = ["no.", "policy", "ms", "lowest", "highest", "tokens/s", "× first", "model calls", "right %", *tasks]
        cells = []
        for row in rows:
            number = str(place) if (place := _place(row["policy"], best)) else ""
            spread = [show(1000 * row["seconds"][key]) for key in ("median", "min", "max")]
            shares = [f"{100 * row['quality'][task]['share']:.1f}" for task in tasks]
            rate = [show(row["tokens_per_s"]), show(row["times"]["median"]), show(row["forwards"])]
            cells.append([number, row["policy"], *spread, *rate, f"{100 * row['share']:.1f}", *shares])
        plot = scatter(points, "ms, one at a time", "right, %")
        parts.append(
            f"<h3>{name}</h3>{plot}<p>Numbered: no other is both as fast and as good.</p>{table(head, cells, words=2)}"
        )
    passed = "".join(f"<li>{escape(line)}</li>" for line in record["passed_over"])
    return "".join(parts) + (f"<p>Passed over:</p><ul>{passed}</ul>" if passed else "")


def _place(policy: str, best: Sequence[str]) -> int | None:
    return best.index(policy) + 1 if policy in best else None


def _policy_title(row: Row) -> str:
    return f"{row['policy']}: {show(1000 * row['seconds']['median'])} ms, {100 * row['share']:.1f}% right"


def _presets(record: Record) -> str:
    parts = []
    for kind, name in (("text", "Answers"), ("image", "Pictures")):
        rows = [row for row in record["rows"] if row["kind"] == kind]
        values = [_preset_bar(row) for row in rows]
        tasks = list(rows[0]["quality"])
        head = ["preset", "ms", "tokens/s", "× exact", "× published loop", "model calls", *(f"{task} %" for task in tasks)]
        cells = []
        for row in rows:
            reference = show(row["times_reference"]["median"]) if "times_reference" in row else ""
            numbers = [show(1000 * row["seconds"]["median"]), show(row["tokens_per_s"]), show(row["times"]["median"])]
            known = row.get("quality", {})
            shares = [_share(known[task], row["points"][task]) if task in known else "" for task in tasks]
            cells.append([row["policy"], *numbers, reference, show(row["forwards"]), *shares])
        changes = "".join(f"<li>{escape(row['policy'])}: {escape(_changes(row))}</li>" for row in rows if "changes" in row)
        parts.append(f"<h3>{name}, ms one at a time</h3>{bars(values)}{table(head, cells, words=1)}<ul>{changes}</ul>")
    return "".join(parts)


def _share(found: Row, points: float) -> str:
    return f"{100 * found['share']:.1f} ±{50 * (found['high'] - found['low']):.1f} ({points:+.1f})"


def _changes(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row["changes"].items()) or "the model's own settings"


def _preset_bar(row: Row) -> Bar:
    seconds = {key: 1000 * value for key, value in row["seconds"].items()}
    series = 0 if "quality" in row else _KINDS["reference"]
    return Bar(row["policy"], seconds["median"], seconds["min"], seconds["max"], series, f"{show(seconds['median'])} ms")


def _latency(record: Record) -> str:
    rows = [row for row in record["rows"] if "parts" in row]
    shown, notes, cells = {}, {}, []
    for row in rows:
        cache = {None: "", "none": ", no cache"}.get(row["cache"], f", {row['cache']} cache")
        sure = f", sure of {row['threshold']}" if row["threshold"] else ""
        label = f"{row['task']}{cache}{sure}, {row['precision']}, {row['threads']} threads"
        shown[label], notes[label] = row["parts"], f"{show(row['seconds']['median'])} s"
        said = row.get("predicted_over_measured")
        peak = f"{row['peak_bytes'] / 1e6:,.0f}" if row["peak_bytes"] else ""
        cells.append(
            [
                label,
                *(show(row["seconds"]["median"]), f"{show(row['seconds']['min'])} to {show(row['seconds']['max'])}"),
                *(show(row["tokens_per_second"]), show(row["tokens_per_forward"])),
                show(row["first_step_seconds"]["median"]),
                *(f"{100 * row[key]:.1f}" for key in ("python_share", "ceiling_share")),
                *(peak, show(said) if said else "", str(row["scaled_from"] or "whole")),
            ]
        )
    head = ["decode", "seconds", "lowest to highest", "tokens/s", "a call", "first step, s"]
    head += ["Python %", "of ceiling %", "peak MB", "predicted / measured", "measured"]
    parts = ["<h3>Decodes, seconds by part</h3>", stacked(shown, "s", notes), table(head, cells, words=1), _apart(record)]
    if record.get("doubling"):
        more = ["doubled", "from", "to", "measured ×", "predicted ×", "off"]
        keys = ("from", "to", "measured_ratio", "predicted_ratio")
        doubled = [[row["doubled"], *(show(row[key]) for key in keys), f"{row['off']:+.1%}"] for row in record["doubling"]]
        parts.append("<h3>Cost against length</h3>" + table(more, doubled, words=1))
    return "".join(parts)


def _apart(record: Record) -> str:
    """Whole forwards by kinds of operators."""
    rows = {f"{r['tokens']} tokens, {r['precision']}, {r['threads']} threads": r for r in record["rows"] if "operators" in r}
    if not rows:
        return ""
    notes = {label: f"{show(row['seconds']['median'])} s" for label, row in rows.items()}
    head = ["forward", "seconds", *next(iter(rows.values()))["operators"], "products of ceiling %", "whole of ceiling %"]
    cells = [
        [label, show(row["seconds"]["median"]), *map(show, row["operators"].values())]
        + [f"{100 * row[key]:.1f}" for key in ("matrix_share", "ceiling_share")]
        for label, row in rows.items()
    ]
    plot = stacked({label: row["operators"] for label, row in rows.items()}, "s", notes)
    return f"<h3>Whole forwards, seconds by operator</h3>{plot}{table(head, cells, words=1)}"


def _ceiling(record: Record) -> str:
    parts = []
    for shape, threads in dict.fromkeys((row.get("shape", ""), row["threads"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row.get("shape", ""), row["threads"]) == (shape, threads)]
        rates = ceiling.rates(rows, threads)
        series = {form: {float(t): rate / 1e9 for t, rate in by.items()} for form, by in rates.matrix.items()}
        series["attention, fp32"] = {float(t): rate / 1e9 for t, rate in rates.attention.items()}
        tokens = sorted({t for values in series.values() for t in values})
        cells = [[form, *(show(values[t]) if t in values else "" for t in tokens)] for form, values in series.items()]
        memory = [f"{row['form']} {show(row['giga_per_s']['median'])} GB/s" for row in rows if row["what"] == "memory"]
        parts.append(f"<h3>Shape {escape(shape)}, {threads} threads: a layer's products</h3>")
        parts.append(lines(series, "tokens", "GFLOP/s"))
        parts.append(table(["GFLOP/s at so many tokens", *(f"{t:.0f}" for t in tokens)], cells, words=1))
        parts.append(f"<p>Memory: {escape(', '.join(memory))}.</p>")
    return "".join(parts)


def _plain(record: Record) -> str:
    """Every row, every value that is a number, a text or a spread."""
    rows = [{key: _cell(value) for key, value in row.items()} for row in record["rows"]]
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if any(row.get(key) for row in rows)]
    return table(keys, [[row.get(key, "") or "" for key in keys] for row in rows], words=1)


def _cell(value: object) -> str | None:
    if isinstance(value, Mapping):
        return show(value["median"]) if "median" in value else show(value["share"]) if "share" in value else None
    if isinstance(value, float):
        return show(value)
    return None if value is None or isinstance(value, list) else str(value)


def _eight(record: Record) -> str:
    """Where the time of answers goes; what every part took, and what it is held to."""
    shown = {row["part"]: row["seconds_of"] for row in record["rows"] if "seconds_of" in row}
    notes = {row["part"]: f"{show(row['answer_seconds'])} s" for row in record["rows"] if row["part"] in shown}
    head = ["part", "peak GB", "minutes", "processor minutes", "bundle GB", "loads in s", "answers in s", "held to"]
    keys = ("peak_gb", "minutes", "processor_minutes", "bundle_gb", "load_seconds", "answer_seconds")
    cells = []
    for row in record["rows"]:
        held = (f"{key} < {one['at_most']:g}: {'met' if one['met'] else 'missed'}" for key, one in row["targets"].items())
        cells.append([row["part"], *(show(row[key]) if key in row else "" for key in keys), ", ".join(held)])
    plot = f"<h3>Answers, seconds by part</h3>{stacked(shown, 's', notes)}" if shown else ""
    return plot + table(head, cells, words=1)


SECTIONS: Mapping[str, Callable[[Record], str]] = {
    "ceiling": _ceiling,
    "peers": _peers,
    "latency": _latency,
    "frontier": _frontier,
    "presets": _presets,
    "eight": _eight,
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first `words` columns are words and the others numbers; wide ones scroll."""

    def line(cells: Sequence[str], tag: str) -> str:
        made = (f"<{tag}{'' if n < words else ' class=n'}>{escape(cell)}</{tag}>" for n, cell in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'
