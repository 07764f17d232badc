"""Quality against latency over ways of decoding, on the small model: `bench quality --frontier` over the tables of `policies`,
`--presets` over the named speeds, with a checkpoint beside the published loops in torch.

Quality is the share right in the tasks of `bench quality`, latency that of one decoding at a time, all in turns. Marks those
that no other beats in both. It knows rows and tables; how one way is measured is `measures`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmada_lite.bench import policies
from mmada_lite.bench.policies import Policy
from mmada_lite.bench.quality import measures
from mmada_lite.bench.quality.measures import Published
from mmada_lite.bench.quality.tasks import EvalContext
from mmada_lite.bench.record import Row, Run
from mmada_lite.errors import Error

UNITS = {"text": "tokens/s", "image": "codes/s"}


def ways_of(kind: str, mode: str, patterns: Sequence[str]) -> list[Policy]:
    """The presets, or the policies of a table, of which `patterns` picks those with one of them in their name. The first, which
    changes nothing, stays."""
    if mode == "presets":
        return policies.presets()
    first, *rest = policies.grid(policies.TEXT if kind == "text" else policies.IMAGE, kind)
    return [first, *(way for way in rest if not patterns or any(pattern in way.name for pattern in patterns))]


def rows(
    context: EvalContext, run: Run, kind: str, ways: Sequence[Policy], prompts: int, rounds: int, published: Published | None
) -> list[Row]:
    """A row for each way of decoding: its latency, its quality by task and on the whole, points against the first way, whether
    it is on the frontier; and where the published loop takes part one for it, without a quality."""
    timed = run.do(f"{kind}: {len(ways)} ways in turns", lambda: _timed(context, kind, ways, prompts, rounds, published))
    by_name = {row["policy"]: row for row in timed}
    examined, exact = list[Row](), dict[str, Any]()
    for way in ways:
        (row,) = run.do(f"{kind}: {way.name}", partial(_examined, context, way, kind))
        quality = row["quality"]
        exact = exact or quality
        points = {task: 100 * (task_report["share"] - exact[task]["share"]) for task, task_report in quality.items()}
        share = sum(task_report["share"] for task_report in quality.values()) / len(quality)
        changes = dict(way.of_text if kind == "text" else way.of_image)
        examined.append({**by_name[way.name], "changes": changes, "quality": quality, "points": points, "share": share})
    best = measures.pareto([(row["seconds"]["median"], row["share"]) for row in examined])
    marked = [{**row, "frontier": is_best} for row, is_best in zip(examined, best, strict=True)]
    return marked + [row for row in timed if published is not None and row["policy"] == published.name]


def _examined(context: EvalContext, way: Policy, kind: str) -> list[Row]:
    return [{"quality": measures.quality(context, way, kind)}]


def _timed(
    context: EvalContext, kind: str, ways: Sequence[Policy], count: int, rounds: int, published: Published | None
) -> list[Row]:
    model, asked = context.model, measures.prompts(context, kind, count)
    settings = {way.name: way.text(model.text) if kind == "text" else way.image(model.image) for way in ways}
    runs = {name: measures.decoding(model, asked, chosen) for name, chosen in settings.items()}
    if published is not None:
        runs[published.name] = published.decoding(model, asked, kind)
    turns, first = measures.alternate(runs, count, rounds), ways[0].name
    rows: list[Row] = []
    for name, own in turns.items():
        row: Row = {"kind": kind, "policy": name, **measures.latency(own), "times": measures.times(turns[first], own)}
        if published is not None:
            row["times_reference"] = measures.times(turns[published.name], own)
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Fastest first; a star where no other way is both as fast and as good; each task with what it loses or gains in points."""
    blocks = []
    for kind, unit in UNITS.items():
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["seconds"]["median"])
        if not mine:
            continue
        tasks = list(next(row for row in mine if "quality" in row)["quality"])
        against = next((row["policy"] for row in mine if "quality" not in row), "torch")
        head = ["", kind, "ms", unit, "x first", f"x {against}", "model calls", "right %", *(f"{task} %" for task in tasks)]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in mine:
            reference = f"{row['times_reference']['median']:.1f}" if "times_reference" in row else ""
            cells = ["*" if row.get("frontier") else "", row["policy"], f"{1000 * row['seconds']['median']:.1f}"]
            cells += [f"{row['tokens_per_s']:.1f}", f"{row['times']['median']:.2f}", reference, f"{row['model_calls']:.1f}"]
            cells.append(f"{100 * row['share']:.1f}" if "share" in row else "")
            quality = row.get("quality", {})
            cells += [f"{100 * quality[t]['share']:.1f} ({row['points'][t]:+.1f})" if quality else "" for t in tasks]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share that is right against milliseconds, a panel for answers and one for pictures. Raises Error without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise Error('the plot needs matplotlib; pip install "mmada-lite[bench]"') from None
    examined = [row for row in rows if "share" in row]
    kinds = [kind for kind in UNITS if any(row["kind"] == kind for row in examined)]
    figure = Figure(figsize=(8 * len(kinds), 5.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        mine = sorted((row for row in examined if row["kind"] == kind), key=lambda row: row["seconds"]["median"])
        points = [(1000 * row["seconds"]["median"], 100 * row["share"], row) for row in mine]
        axes.step(*zip(*((x, y) for x, y, row in points if row["frontier"]), strict=True), where="post", color="tab:orange")
        for x, y, row in points:
            axes.plot(x, y, "o", color="tab:orange" if row["frontier"] else "tab:blue")
            if row["frontier"]:
                axes.annotate(row["policy"], (x, y), fontsize=6, xytext=(3, -8), textcoords="offset points")
        axes.set(title=kind, xscale="log", xlabel="ms, one at a time", ylabel="right, %")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
