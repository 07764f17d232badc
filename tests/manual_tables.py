"""The tables of settings, presets, quantization and the walk-through: from the code, from the records in bench/results, and
from the recorded ids of the packaged model.

It knows what stands in a table; `made` writes it into its page.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import training_tables

from mmada_lite.bundle import Bundle
from mmada_lite.decoding.rows import chat_ids
from mmada_lite.decoding.setting_fields import Setting, settings_of, spelled
from mmada_lite.decoding.settings import PRESETS, ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
from mmada_lite.memory_plan import PRECISIONS
from mmada_lite.vocabulary import Tokenizer

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(?<=<!-- made: )(\w+-\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, with an empty line on either side, as every renderer wants it."""
    return "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n\n"


def settings(cls: type[object]) -> str:
    """A line a setting, as the code declares it. Its option is its name with dashes."""
    return table(("setting", "default", "range", "what it does", "from"), map(_setting_row, settings_of(cls)))


def _setting_row(setting: Setting) -> Sequence[str]:
    return f"`{setting.name}`", setting.default_in_words, setting.range.replace("<", "&lt;"), setting.help, setting.source


def presets() -> str:
    """What each speed changes, of texts and then of pictures. The first, exact, changes nothing."""
    changed = {speed: changes for speed, changes in PRESETS.items() if any(changes)}
    rows = [
        [f"{kind}: `{spelled(name)}`", *(_said(changes[part].get(name, "-"), name) for changes in changed.values())]
        for part, kind in enumerate(("text", "picture"))
        for name in dict.fromkeys(name for changes in changed.values() for name in changes[part])
    ]
    return table(("option", *(f"`{speed}`" for speed in changed)), rows)


def _said(value: object, name: str) -> str:
    if name == "steps" and isinstance(value, float):
        return f"{value:g} of the bundle's"
    return "yes" if value is True else "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def precisions() -> str:
    """What each precision stores each group of tensors as."""
    groups = list(PRECISIONS["fp32"])
    rows = [[f"`{name}`", *(formats[group] for group in groups)] for name, formats in PRECISIONS.items()]
    return table(("precision", *groups), rows)


def speeds() -> str:
    """Each speed against the published loop in torch, and what it gets right."""
    rows: dict[str, dict[str, Any]] = {}
    for row in _record("presets")["rows"]:
        rows.setdefault(row["policy"], {})[row["kind"]] = row
    heads = ("speed", "answers", "calls", "sums", "names", "scenes", "pictures", "drawn")
    return table(heads, (_speed_row(speed, rows[speed]["text"], rows[speed]["image"]) for speed in PRESETS))


def _speed_row(speed: str, text: Mapping[str, Any], image: Mapping[str, Any]) -> Sequence[str]:
    right = [f"{100 * text['quality'][task]['share']:.1f}" for task in ("arithmetic", "what", "scenes")]
    drawn = f"{100 * image['quality']['drawing']['share']:.1f}"
    ratios = [f"{row['times_reference']['median']:.2g}" for row in (text, image)]
    return f"`{speed}`", ratios[0], f"{text['model_calls']:.2g}", *right, ratios[1], drawn


def losses() -> str:
    """What int8 and int4 lose in the tasks, in points with 95% intervals."""
    record = _record("against")
    reports = {row["task"]: row["report"] for row in record["rows"] if row["model"] == "fp32"}
    rows = []
    for task, metric, words in LOSSES:
        changes = (record["losses"][bundle][task][metric] for bundle in ("int8", "int4"))
        shown = [f"{each['change']:.1f} ({each['low']:.1f} to {each['high']:.1f})" for each in changes]
        rows.append([words, f"{100 * reports[task][metric]['share']:.1f}", *shown, f"{reports[task][metric]['total']:,}"])
    return table(("task", "fp32 %", "int8", "int4", "cases"), rows)


LOSSES = (
    ("what", "what_validation", "what is this"),
    ("scenes", "count_train", "counting"),
    ("drawing", "concept", "drawing"),
    ("thinking", "agree", "drawing after a thought"),
    ("editing", "extend_same", "extending"),
)


def methods() -> str:
    """Formats and methods, ours and others', by bits a weight: how near they stay to fp32."""
    rows = []
    for row in sorted(_record("quantization")["rows"], key=lambda row: (-row["bits"], row["divergence"][0])):
        if row["name"] in METHODS:
            middle, low, high = (f"{each:.4f}" for each in row["divergence"])
            cells = f"{row['bits']:.1f}", f"{100 * row['agreement'][0]:.1f}", f"{middle} ({low}-{high})"
            rows.append([row["name"], *cells, f"{1000 * row['seconds']:.1f}"])
    return table(("format and method", "bits", "agreement", "divergence", "ms"), rows)


METHODS = (
    *("int8 rtn", "int8 rotate+gptq", "int4-b32-asym rtn", "int4-b32-asym rotate+gptaq"),
    *("bitsandbytes int8", "bitsandbytes nf4", "onnxruntime hqq b32"),
)


def walkthrough() -> str:
    """The path of a model of the published size: memory, the plan of it, and time."""
    found = {row["part"]: row for row in _record("8b")["rows"]}
    rows = []
    for part, words in WALKTHROUGH:
        row = found[part]
        planned, size = row.get("planned_gb"), row.get("bundle_gb")
        took = f"{row['minutes']:.1f} min" if size else f"{row[next(key for key in row if key.endswith('_seconds'))]:.0f} s"
        cells = (f"{row['peak_gb']:.2f}", f"{planned:.2f}" if planned else "", f"{size:.2f}" if size else "", took)
        rows.append([words, *cells])
    return table(("part", "peak, GB", "planned, GB", "bundle, GB", "time"), rows)


WALKTHROUGH = (
    ("int4", "convert to int4"),
    ("int8", "convert to int8"),
    ("load", "load int4"),
    ("answer", "int4, 1 step, no cache"),
    ("int4-answer", "int4, 16 steps, `dual`"),
    ("int8-answer", "int8, 16 steps, `dual`"),
    ("drawing", "int4, 1 guided drawing step"),
)


def rows(question: str = "7 - 2") -> str:
    """Two rows of ids that a host can check itself with: a question's, and the recorded answer of the packaged model."""
    bundle = Bundle.open(ROOT / "mmada_lite" / "models" / "emoji")
    assert bundle.tokenizer_path is not None
    tokenizer, special = Tokenizer.from_file(bundle.tokenizer_path), bundle.vocabulary.special
    asked = chat_ids(tokenizer, bundle.vocabulary, [{"role": "user", "content": question}])
    _, *lines = (ROOT / "tests" / "runtime" / "recorded" / "shipped_ids.jsonl").read_text(encoding="utf-8").splitlines()
    (answer,) = (run["ids"] for run in map(json.loads, lines) if (run["speed"], run["case"]) == ("exact", f"text, {question}"))
    said = (" ".join(map(str, ids)) for ids in (asked, answer[: answer.index(special.eos) + 1]))
    words = f'chat row of "{question}"', "its answer, up to `eos`"
    return table(("", ""), zip(words, (f"{next(said)}, then the answer's masks", next(said)), strict=True))


def _record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


TABLES: Mapping[str, Callable[[], str]] = {
    "text-settings": lambda: settings(TextSettings),
    "text-acceleration": lambda: settings(TextAcceleration),
    "image-settings": lambda: settings(ImageSettings),
    "image-acceleration": lambda: settings(ImageAcceleration),
    "speed-presets": presets,
    "speed-results": speeds,
    "quantization-precisions": precisions,
    "quantization-losses": losses,
    "quantization-methods": methods,
    "checkpoint-walkthrough": walkthrough,
    "bundle-rows": rows,
    "training-law": lambda: table(training_tables.HEADS, training_tables.law()),
}


def made(page: str) -> str:
    """A page with its tables made anew. Raises KeyError for a name that no table has."""
    return MARKED.sub(lambda found: found[1] + found[2] + TABLES[found[1]](), page)
