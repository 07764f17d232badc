"""`mmada-lite bench frontier`: quality against latency over ways of decoding, on the small model.

    mmada-lite bench frontier train/shipped/emoji

Answers and pictures each have a table of policies (`policies`). Quality is the share right in the tasks of `bench quality`,
latency that of one decoding at a time, all policies in turns. Marks those that no other beats in both. It knows no settings.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmada_lite.bench import record
from mmada_lite.bench.quality import measures, policies
from mmada_lite.bench.quality.evaluate import add_exam_options, open_exam
from mmada_lite.bench.quality.policies import Policy
from mmada_lite.bench.quality.tasks import EvalContext
from mmada_lite.errors import Error

TEXT_TASKS = ("arithmetic", "what", "scenes")
UNITS = {"text": "tokens/s", "image": "codes/s"}


def sweep(exam: EvalContext, kind: str, ways: Sequence[Policy], prompts: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each policy: its latency, its quality by task and on the whole, and whether it is on the frontier."""
    subject = exam.subject
    if kind == "text":
        asked = measures.prompts(exam, prompts)
        runs = {way.name: measures.answering(subject, asked, way.text(subject.text)) for way in ways}
    else:
        asked = measures.captions(exam, prompts)
        runs = {way.name: measures.drawing(subject, asked, way.image(subject.image)) for way in ways}
    say(f"{kind}: {len(ways)} policies, {prompts} prompts in turns")
    timed = measures.alternate(runs, prompts, rounds)
    rows = []
    for number, way in enumerate(ways, 1):
        say(f"{kind}: {number} of {len(ways)}: {way.name}")
        found = measures.quality(exam, way, TEXT_TASKS if kind == "text" else measures.PICTURES)
        share = sum(each["share"] for each in found.values()) / len(found)
        changes = dict(way.of_text if kind == "text" else way.of_image)
        times = measures.times(timed[ways[0].name], timed[way.name])
        row = {"kind": kind, "policy": way.name, "changes": changes, **measures.latency(timed[way.name])}
        rows.append(row | {"times": times, "quality": found, "share": share})
    best = measures.pareto([(row["seconds"]["median"], row["share"]) for row in rows])
    return [row | {"frontier": is_best} for row, is_best in zip(rows, best, strict=True)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Fastest first; a star where no other policy is both as fast and as good."""
    blocks = []
    for kind, unit in UNITS.items():
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["seconds"]["median"])
        if mine:
            tasks = list(mine[0]["quality"])
            head = ["", kind, "ms", unit, "x first", "model calls", "right %", *tasks]
            lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
            for row in mine:
                shares = [f"{100 * row['quality'][task]['share']:.1f}" for task in tasks]
                cells = ["*" if row["frontier"] else "", row["policy"], f"{1000 * row['seconds']['median']:.1f}"]
                cells += [f"{row['tokens_per_s']:.1f}", f"{row['times']['median']:.2f}", f"{row['forwards']:.1f}"]
                lines.append("| " + " | ".join([*cells, f"{100 * row['share']:.1f}", *shares]) + " |")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share that is right against milliseconds, a panel for answers and one for pictures. Raises Error without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise Error('the plot needs matplotlib; pip install "mmada-lite[bench]"') from None
    kinds = [kind for kind in UNITS if any(row["kind"] == kind for row in rows)]
    figure = Figure(figsize=(8 * len(kinds), 5.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["seconds"]["median"])
        points = [(1000 * row["seconds"]["median"], 100 * row["share"], row) for row in mine]
        axes.step(*zip(*((x, y) for x, y, row in points if row["frontier"]), strict=True), where="post", color="tab:orange")
        for x, y, row in points:
            axes.plot(x, y, "o", color="tab:orange" if row["frontier"] else "tab:blue")
            if row["frontier"]:
                axes.annotate(row["policy"], (x, y), fontsize=6, xytext=(3, -8), textcoords="offset points")
        axes.set(title=kind, xscale="log", xlabel="ms, one at a time", ylabel="right, %")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def chosen(words: Sequence[str], kind: str) -> tuple[list[Policy], list[str]]:
    """The policies of a kind that the runtime knows, the unchanged one first; of those, what --policies names."""
    known, passed = policies.grid(policies.TEXT if kind == "text" else policies.IMAGE, kind)
    first, *rest = known
    return [first, *(way for way in rest if not words or any(word in way.name for word in words))], passed


def measure(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    exam, rows, passed = open_exam(options, options.subject), list[dict[str, Any]](), list[str]()
    for kind in options.kinds:
        ways, unknown = chosen(options.policies, kind)
        ways, invalid = measures.valid(ways, exam.subject)
        passed += [*unknown, *invalid]
        rows += sweep(exam, kind, ways, options.prompts, options.rounds)
        record.save(content(rows, passed, options, exam, argv), options.output)  # a killed run leaves what it has
    return content(rows, passed, options, exam, argv)


def content(
    rows: Sequence[Mapping[str, Any]],
    passed: Sequence[str],
    options: argparse.Namespace,
    exam: EvalContext,
    argv: Sequence[str],
) -> dict[str, Any]:
    base = {"text": str(exam.subject.text), "image": str(exam.subject.image)}
    about = {"subject": exam.subject.name, "count": options.count, "prompts": options.prompts, "rounds": options.rounds}
    return record.record("frontier", argv, rows, base=base, passed_over=list(passed), **about)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmada-lite bench frontier", description=__doc__.splitlines()[0])
    parser.add_argument("subject", type=Path, help="a bundle or a checkpoint of the small model")
    add_exam_options(parser, 100)
    parser.add_argument("--kinds", nargs="+", choices=list(UNITS), default=list(UNITS), help="text, image or both (default)")
    parser.add_argument("--policies", nargs="+", default=[], metavar="WORD", help="only those with one of these in their name")
    parser.add_argument("--prompts", type=int, default=8, help="that latency is measured on (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is decoded for it (default 3)")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file (default: bench/results/frontier.json of a checkout)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it with matplotlib")
    return parser


def run_measure(
    argv: Sequence[str] | None,
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, Sequence[str]], dict[str, Any]],
    table: Callable[[Sequence[Mapping[str, Any]]], str],
    keep: Callable[[dict[str, Any], argparse.Namespace], object],
) -> int:
    """Measure, keep what was found, print the table and a JSON line. 0, or 2 after a fault of the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(words)
    try:
        if min(options.prompts, options.rounds) < 1:
            raise Error("--prompts and --rounds are whole numbers of at least 1")
        found = measure(options, words)
        keep(found, options)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    print(table(found["rows"]))
    for line in found["passed_over"]:
        print(f"passed over: {line}")
    print(json.dumps(found))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables and a JSON line. 0, or 2 after a fault of the user."""

    def keep(found: dict[str, Any], options: argparse.Namespace) -> None:
        if options.plot:
            plot(found["rows"], options.plot)

    return run_measure(argv, build_parser(), measure, table, keep)


if __name__ == "__main__":
    sys.exit(main())
