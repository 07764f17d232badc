"""What documents take from code and records: `python tests/made.py` writes it, and a test compares it with what stands there.

Between the markers `<!-- made: NAME -->` and `<!-- end -->` of a page: tables of speeds, of the small model's exam and of
parity, from the records in bench/results, the steps of .ci/run, and the tables of manual_tables. Beside them docs/house.svg,
docs/bundle.schema.json, and the card in the packaged bundle.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import manual_tables
from house import house
from import_graph import ROOT

from mmada_lite.bench import record
from mmada_lite.export import bundle_schema

DOCS, RESULTS = ROOT / "docs", ROOT / "bench" / "results"
BUNDLE = ROOT / "mmada_lite" / "models" / "emoji"
CARD = "model_card.md"
MACHINES = ("AVX2", "VNNI", "AMX", "GPU")
STYLES = ("train", "validation", "test")
WORK = ("text", "understanding", "drawing")
PRESETS = ("balanced", "fast")  # of random weights, which are never sure: no measure of a preset
PATHS = r" (-o|--work) \S+"  # of a command: where its files lie
Cells = tuple[str, ...]


def machine_of(content: Mapping[str, Any]) -> str:
    """Which of the kinds of machine a record was made on, by the best instructions for int8 that it has."""
    hardware = content.get("hardware", {})
    extensions = set(hardware.get("extensions", ()))
    if content.get("cards") or hardware.get("cards"):
        return "GPU"
    if "amx_int8" in extensions:
        return "AMX"
    return "VNNI" if extensions & {"avx512_vnni", "avx_vnni"} else "AVX2"


class Timed(NamedTuple):
    """A decode that a record timed: of which model and task, how, in seconds, times as fast as torch, in gigabytes."""

    model: str
    task: str
    how: str
    seconds: float
    times: float | None = None
    memory: float | None = None


def speeds(content: Mapping[str, Any]) -> Iterable[Timed]:
    """Every decode that a record of `bench peers` timed."""
    reference = next((row["contestant"] for row in content["rows"] if row.get("kind") == "reference"), "")
    for row in content["rows"]:
        if content["bench"] == "peers" and row.get("task") in WORK and not row["contestant"].endswith(PRESETS):
            times = row["times"].get(reference, {}).get("median")
            how = row["contestant"].removeprefix("ours int8 ")
            yield Timed(content["shape"].upper(), row["task"], how, row["seconds"]["median"], times)
        elif content["bench"] == "latency" and "contestant" in row:  # a card, measured whole
            times = row["times"].get("torch bf16", {}).get("median")
            memory = row["peak_bytes"] and row["peak_bytes"] / 1e9
            task = f"{row['task']}, {row['steps']} steps"
            yield Timed(content["shape"].upper(), task, row["contestant"], row["seconds"]["median"], times, memory)
        elif "picture" in row:
            for key, task in (("picture", "drawing"), ("answer", "understanding")):
                how = row["contestant"].replace("reference", "torch bf16").removeprefix("cuda ")
                times, found = row.get("times_reference", {}).get(key), row[key]
                task = f"{task}, {found['steps']} steps"
                yield Timed(content["shape"].upper(), task, how, found["median_s"], times, row["peak_bytes"] / 1e9)


def said(each: Timed) -> str:
    """dual 7.54 (12x), with the memory where it is known."""
    more = [f"{short(each.times, 2)}x"] if each.times and not each.how.startswith("torch") else []
    more += [f"{each.memory:.1f} GB"] if each.memory else []
    return f"{each.how} {short(each.seconds)}" + (f" ({', '.join(more)})" if more else "")


def short(value: float, digits: int = 3) -> str:
    """1710 -> 1,710; 0.01379 -> 0.0138."""
    return f"{float(f'{value:.{digits}g}'):,.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"


def table(header: Cells, rows: Iterable[Cells]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def results() -> str:
    """One table of every decode that was timed, a machine after the other, and the command of each run below it."""
    runs = {
        path.stem + f" {number}" * (number > 0): run
        for path in sorted(RESULTS.glob("*.json"))
        for number, run in enumerate(record.runs_of(record.load(path)))
    }
    rows: dict[tuple[str, str, str], dict[str, str]] = {}  # machine, model, task -> how -> what is said; the longest run first
    names: dict[tuple[str, str, str], dict[str, None]] = {}  # the runs of a row
    for name, run in sorted(runs.items(), key=lambda item: (-item[1].get("rounds", 0), item[0])):
        for each in speeds(run):
            key = (machine_of(run), each.model, each.task)
            if rows.setdefault(key, {}).setdefault(each.how, said(each)) == said(each):
                names.setdefault(key, {})[name] = None
    cells: list[Cells] = []
    for machine in MACHINES:
        found = sorted(key for key in rows if key[0] == machine)
        cells += [(*key, ", ".join(rows[key].values()), _links(names[key])) for key in found]
        cells += [] if found else [(machine, "S", "all", "`mmada-lite bench peers --shape s`", "no record")]
    listed = [name for name in runs if any(name in found for found in names.values())]
    commands = [f"# {name}: {processor(runs[name])}\n{re.sub(PATHS, '', runs[name]['command'])}" for name in listed]
    heads = ("machine", "model", "task", "how, in seconds (times torch)", "record")
    return "\n".join([table(heads, cells), "", "```", *commands, "```"])


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](../bench/results/{name.split()[0]}.json)" for name in names)


def processor(content: Mapping[str, Any]) -> str:
    cards = content.get("cards") or content.get("hardware", {}).get("cards")
    if cards:
        return str(cards[0]["name"] if isinstance(cards[0], dict) else cards[0])
    hardware = content["hardware"]
    return f"{hardware['cores']} cores of {hardware['processor']}, {machine_of(content)}"


def examined() -> list[Mapping[str, Any]]:
    """What was asked of the packaged model, task by task."""
    return [row for row in record.load(RESULTS / "quality.json")["rows"] if row["model"] == "train/shipped/emoji"]


PARTS_OF_A_MEASURE = (  # of the exam: kinds of turns and of texts, directions, backgrounds
    r"(first|second)_(sum|difference|fact|what|position|count|over_first_).*|new_thing_.+|both_(plain|on_colour).*"
    r"|(fact|sum|look|drawing)_(lower|sentence|upper).*|(sentence|upper)_(raw|runtime)|is_(yes|no)_.*|background_after.*"
    r"|codebook_used|second_behind_.*|thought_exact_.*|thought_names_both|referring|lower"
)


def exam() -> str:
    """How good the small model is: the measures of its record, with 95% intervals, by the style of the icons. Colours of
    backgrounds, which are all right, are left to the page, parts of a measure to the record, `holes` to their own table."""
    rows: dict[str, dict[str, str]] = {}
    for row in (row for row in examined() if row["task"] not in ASKED_WITH_HOLES):
        for name, each in row["report"].items():
            if "low" not in each or re.fullmatch(PARTS_OF_A_MEASURE, name):
                continue
            measure, _, style = name.rpartition("_")
            if style not in STYLES:
                measure, style = name, STYLES[0]
            scale, digits, unit = (100.0, 1, "%") if "share" in each else (1.0, 2, f" {each.get('unit', 'dB')}")
            to = " to " if unit == " points" else "-"
            middle, low, high = (f"{each.get(key, each.get('mean')) * scale:.{digits}f}" for key in ("share", "low", "high"))
            if measure == "background" and each["share"] == 1:
                continue
            words = (measure if measure == row["task"] else f"{row['task']}: {measure}").replace("_", " ")
            rows.setdefault(words, {})[style] = f"{middle}{unit} ({low}{to}{high})"
    styles = [style for style in STYLES if any(style in found for found in rows.values())]
    return table(("measure", *styles), ((words, *(found.get(style, "") for style in styles)) for words, found in rows.items()))


ASKED_WITH_HOLES = ("filling", "choosing")  # tasks of the exam
WAYS = {"whole": "whole", "hole": "hole", "holes": "hole", "any_length": "any length", "begun": "begun", "choice": "choice"}


def holes() -> str:
    """How well the small model fills holes and chooses: the measures of its record, with 95% intervals, by what is given."""
    rows: dict[str, dict[str, str]] = {}
    reports = [row["report"] for row in examined() if row["task"] in ASKED_WITH_HOLES]
    for name, each in (pair for report in reports for pair in report.items()):
        way = next((way for way in WAYS if re.search(rf"_{way}(_|$)", name)), "any_length")
        low, high = math.floor(100 * each["low"]), math.ceil(100 * each["high"])  # no bound is rounded towards the share
        measure = re.sub(rf"(_thing)?_{way}(_of_[0-9]+)?", "", name).replace("_", " ")
        rows.setdefault(measure, {})[WAYS[way]] = f"{100 * each['share']:.0f}% ({low}-{high})"
    heads = tuple(dict.fromkeys(WAYS.values()))
    return table(("measure", *heads), ((words, *(found.get(way, "") for way in heads)) for words, found in rows.items()))


SECTIONS = {
    "llm": "forward passes of the transformer",
    "text": "texts, step by step",
    "mmu": "answers about pictures",
    "cache": "texts with the caches of Fast-dLLM",
    "t2i": "pictures, step by step",
    "vq": "the image tokenizer",
    "image": "resizing and rounding of pictures",
    "prompting": "prompts as rows of ids",
    "loss": "losses of stages one and two",
    "rl": "the objective of UniGRPO",
}


def parity() -> str:
    """What was replayed of the published code, and how near each section came."""
    content = record.load(RESULTS / "parity.json")
    rows: list[Cells] = []
    for section, words in SECTIONS.items():
        found = [row for row in content["rows"] if row["section"] == section]
        worst = max(row["largest_difference"] for row in found)
        rows.append(
            (f"`{section}`", words, str(sum(row["comparisons"] for row in found)), f"{worst:.1e}" if worst else "equal")
        )
    said = content["closing_line"]
    assert sum(int(cells[2]) for cells in rows) == said["compared"], "a section of parity.json has no words here"
    rows.append(("all", f"{said['passed']} pass", str(said["compared"]), ""))
    return table(("section", "what is replayed", "comparisons", "largest difference"), rows)


def steps() -> str:
    """What .ci/run does, step by step, with those of its commands that can be given alone."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    rows = []
    for title, body in re.findall(r'^say "([^"]+)"\n(.*?)(?=^say "|\Z)', script, re.DOTALL | re.MULTILINE):
        commands = re.findall(r"^\$python (-m (?!pip)[^>#|&\n$]+?) *$", body, re.MULTILINE)
        rows.append((title, "<br>".join(f"`.venv/bin/python {command}`" for command in commands)))
    return table(("step", "alone"), rows)


PARTS: Mapping[str, Callable[[], str]] = {"results": results, "exam": exam, "holes": holes, "parity": parity, "steps": steps}


def filled(text: str) -> str:
    """A page with what stands between its markers made anew."""

    def part(match: re.Match[str]) -> str:
        return f"<!-- made: {match[1]} -->\n\n{PARTS[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- made: (\w+) -->\n.*?<!-- end -->", part, text, flags=re.DOTALL)


def described(bundle: str, card: str) -> str:
    """bundle.json with the size and sha256 of this card, and every other character as it was."""
    size, digest = len(card.encode()), hashlib.sha256(card.encode()).hexdigest()
    changed, count = re.subn(rf'("{CARD}": {{\s*"size": )\d+(,\s*"sha256": ")[0-9a-f]+', rf"\g<1>{size}\g<2>{digest}", bundle)
    assert count == 1, f"bundle.json names {CARD} {count} times"
    assert json.loads(changed)["files"][CARD] == {"size": size, "sha256": digest}
    return changed


def made() -> dict[Path, str]:
    """File -> what it must hold."""
    named = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
    pages = {path: path.read_text(encoding="utf-8") for path in named}
    files = {path: manual_tables.made(filled(text)) for path, text in pages.items() if "<!-- made: " in text}
    card = files[DOCS / CARD]
    description = BUNDLE / "bundle.json"
    files[BUNDLE / CARD] = card
    files[description] = described(description.read_text(encoding="utf-8"), card)
    files[DOCS / "house.svg"] = house()
    files[DOCS / "bundle.schema.json"] = bundle_schema.as_text()
    return files


def main() -> int:
    for path, text in made().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
