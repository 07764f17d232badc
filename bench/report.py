"""`mmada-lite bench report`: one HTML page of what the other benchmarks measured, which needs no network and no program.

    mmada-lite bench report bench/results/*.json -o report.html

First the targets, and for what is missed which part of the time is left; then every record with its plots, its table, the
command that measures it again and the machine. It knows files and the page; what is shown of a record is `sections`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template

from mmada_lite.bench import record
from mmada_lite.bench.sections import Record, section, title
from mmada_lite.bench.targets import Verdict, verdicts
from mmada_lite.errors import Error

ORDER = ("ceiling", "peers", "latency", "presets", "frontier")
_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --ink: #1a1a19; --soft: #5f5e5a; --rule: #dddbd5; --code: #f1f0ec;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1baf7a; --c3: #eda100; --c4: #e87ba4; --c5: #4a3aa7; --c6: #e34948; --c7: #8a8984;
  --good: #0a7d3c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root {
  --page: #1a1a19; --ink: #ececea; --soft: #a5a49e; --rule: #3c3b38; --code: #262624;
  --c0: #3987e5; --c1: #d95926; --c2: #199e70; --c3: #c98500; --c4: #d55181; --c5: #9085e9; --c6: #e66767; --c7: #8f8e88;
  --good: #4cc38a; --bad: #ff8a80; } }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { margin: 2.6rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem; } a { color: var(--c0); }
.about, .legend { color: var(--soft); font-size: .87rem; margin: .3rem 0; }
pre { background: var(--code); padding: .5rem .8rem; border-radius: 6px; font-size: .85rem; white-space: pre-wrap; }
.wide { overflow-x: auto; margin: .8rem 0; } table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { text-align: left; padding: .28rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
.unknown { color: var(--soft); }
.left { color: var(--soft); font-size: .82rem; }
svg { display: block; width: 100%; height: auto; margin: .3rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .whisker { stroke: var(--ink); stroke-width: 1.5; opacity: .55; }
.line { fill: none; stroke-width: 2; } .dot { stroke: var(--page); stroke-width: 2; }
.key { margin-right: 1rem; white-space: nowrap; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; vertical-align: -.05em; }
"""
_COLOURS = "".join(
    f".s{n} {{ fill: var(--c{n}); background: var(--c{n}); }} .l{n} {{ stroke: var(--c{n}); }}\n" for n in range(8)
)
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mmada-lite: benchmarks</title>
<style>$style</style>
</head>
<body>
<h1>mmada-lite: benchmarks</h1>
<p class="about">$about</p>
<nav><a href="#targets">Targets</a>$contents</nav>
<h2 id="targets">Targets</h2>
<p>$summary</p>
$targets
$sections
</body>
</html>
""")


def page(records: Sequence[Record]) -> str:
    """The whole page. Records of one benchmark follow one another, the ceiling first."""
    ranks = {name: number for number, name in enumerate(ORDER)}
    ordered = sorted(records, key=lambda each: ranks.get(each["bench"], len(ORDER)))
    found = verdicts(records)
    missed, unknown = sum(v.met is False for v in found), sum(v.met is None for v in found)
    machines = dict.fromkeys(_machine(each) for each in records)
    return _PAGE.substitute(
        style=_STYLE + _COLOURS,
        about=escape("; ".join(machines)),
        contents="".join(f' · <a href="#r{n}">{escape(title(each))}</a>' for n, each in enumerate(ordered)),
        summary=f"{len(found) - missed - unknown} met, {missed} missed, {unknown} not measured in these records.",
        targets=_targets(found),
        sections="".join(_block(n, each) for n, each in enumerate(ordered)),
    )


def _targets(found: Sequence[Verdict]) -> str:
    rows = []
    for each in found:
        name, word = {True: ("met", "met"), False: ("missed", "missed"), None: ("unknown", "not measured")}[each.met]
        said = escape(each.found if each.met is not None else "")
        left = f'<div class="left">{escape(each.left)}</div>' if each.left else ""
        cells = [escape(each.what), escape(each.wanted), said + left, f'<span class="{name}">{word}</span>']
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("target", "wanted", "found, and what is left", ""))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _block(number: int, each: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items())
    about = f"{_machine(each)}. {versions}. {each['when']}."
    quick = "<p><strong>A quick try: these numbers are not to be quoted.</strong></p>" if each.get("quick") else ""
    head = f'<h2 id="r{number}">{escape(title(each))}</h2><pre>{escape(each["command"])}</pre>'
    return f'{head}<p class="about">{escape(about)}</p>{quick}{section(each)}'


def _machine(each: Record) -> str:
    hardware = each["hardware"]
    memory = f", {hardware['memory_bytes'] / 2**30:.0f} GiB" if hardware.get("memory_bytes") else ""
    instructions = ", ".join(hardware.get("extensions", ())) or "no instructions of note"
    return f"{hardware['processor']}, {hardware['cores']} cores{memory}, {instructions}"


def write(text: str, target: Path) -> None:
    """The file, whole or not at all. Raises Error where it cannot be written."""
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as fault:
        with suppress(OSError):
            partial.unlink()
        raise Error(f"{target}: cannot be written ({fault.strerror or fault}); choose another -o") from fault


def records(files: Sequence[Path]) -> list[Record]:
    """Read them all. Among several files those that no benchmark of speed wrote are named and passed over; raises Error where
    none is left."""
    found: list[Record] = []
    for file in files:
        try:
            found.append(_readable(record.load(file), file))
        except record.NoRecord as fault:
            if file == files[-1] and not found:
                raise
            print(f"passed over: {fault}", file=sys.stderr)
    return found


def _readable(each: Record, file: Path) -> Record:
    """A record whose rows hold what the page shows of them."""
    try:
        page([each])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as fault:
        raise Error(
            f"{file}: its rows are not those of bench {each['bench']} ({type(fault).__name__}: {fault}); measure it again"
        ) from fault
    return each


def main(argv: Sequence[str] | None = None) -> int:
    """Read, write, and name the page. 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="mmada-lite bench report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="the JSON of ceiling, latency, peers and the others"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (default report.html)")
    options = parser.parse_args(argv)
    try:
        write(page(records(options.files)), options.output)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
