"""`mmada-lite bench latency --tasks advice`: whether what `mmada-lite doctor` measures on this machine orders forms and threads
as whole decodes do.

The decodes are texts of a model of four layers of size S in every form that doctor measures, whole rows of 96 tokens and blocks
of 32 over a cache, then the fastest form on every number of threads; where the small model's checkpoint is at hand, the same of
it. Orders agree where no two names stand the other way round whose times differ by more than a tenth in both. Numbers of
threads are compared alike.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mmada_lite
from mmada_lite.bench.record import Row, say
from mmada_lite.bench.speed.latency_cases import Bench
from mmada_lite.bench.speed.latency_runs import OpenModel
from mmada_lite.bench.timed import run_module
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.synthetic import SIZES, write_bundle
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.measured import forms_here, thread_counts

LAYERS, WORDS, CODES = 4, 4096, 1024  # of the model: heads are small, since their form is not in question
PROMPT, ANSWER, STEPS = 64, 32, 8
NEAR = 1.1
SHIPPED = Path(mmada_lite.__file__).parents[1] / "train" / "shipped" / "emoji"
STORED: Mapping[str, tuple[str, Mapping[str, str]]] = {  # form -> precision, and what is stored in another format
    "fp32": ("fp32", {}),
    "int8": ("int8", {}),
    "int8-7bit": ("int8-7bit", {}),
    "int8-b128": ("int8", {"backbone": "int8-b128", "text_head": "int8-b128"}),
    "int4-b128": ("int4", {}),
}


def rows(rounds: int) -> Iterator[Row]:
    """The rows of each decode, and for each model one that compares its orders with doctor's."""
    doctor = run_module("mmada_lite", "doctor", "--measure", "--json")["printed"]["speed"]
    with tempfile.TemporaryDirectory() as scratch:
        makers = {"s": _random} | ({"emoji": _shipped} if SHIPPED.is_dir() else {})
        for model, make in makers.items():
            yield from _compared(model, make, Path(scratch), doctor, rounds)


def _compared(
    model: str, make: Callable[[str, Path], Bundle], scratch: Path, doctor: Mapping[str, Any], rounds: int
) -> Iterator[Row]:
    cores, measured = usable_cores(), list[Row]()
    bundles = {form: make(form, scratch / f"{model}-{form}") for form in forms_here()}
    asked = [(form, cores) for form in forms_here()]
    asked += [(doctor["order"][0], threads) for threads in thread_counts(cores) if threads != cores]
    for form, threads in asked:
        say(f"{model} in {form} on {threads} threads")
        opened = OpenModel.open(bundles[form], "cpu", form, threads, None)
        measured += opened.measured(_cases(bundles[form]), rounds)
    yield from measured
    by_form = {form: _seconds(measured, precision=form, threads=cores) for form in forms_here()}
    by_threads = {n: _seconds(measured, precision=doctor["order"][0], threads=n) for n in thread_counts(cores)}
    told = {form: list(times.values()) for form, times in doctor["forms"].items() if form in by_form}
    told_threads = {int(count): list(times.values()) for count, times in doctor["threads"].items()}
    yield {
        "task": "advice",
        "model": model,
        "forms": {"doctor": order(told), "latency": order(by_form), "agree": agree(told, by_form)},
        "threads": {"doctor": order(told_threads), "latency": order(by_threads), "agree": agree(told_threads, by_threads)},
        "quiet": doctor["quiet"],
    }


def relative(times: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
    """Name -> how many times as long as the fastest it takes: the geometric mean over what was timed."""
    fastest = [min(column) for column in zip(*times.values(), strict=True)]
    return {
        name: math.exp(sum(math.log(each / least) for each, least in zip(row, fastest, strict=True)) / len(fastest))
        for name, row in times.items()
    }


def order(times: Mapping[Any, Sequence[float]]) -> list[Any]:
    """The names, fastest first."""
    ratios = relative(times)
    return sorted(ratios, key=lambda name: ratios[name])


def agree(one: Mapping[Any, Sequence[float]], other: Mapping[Any, Sequence[float]]) -> bool:
    """Whether no two names stand the other way round, but for times that are nearly the same."""
    a, b = relative(one), relative(other)
    return not any(a[x] * NEAR < a[y] and b[y] * NEAR < b[x] for x in a for y in a)


def in_words(row: Row) -> str:
    """The row that compares, for a table."""
    said = []
    for what in ("forms", "threads"):
        found = row[what]
        doctor, latency = (", ".join(map(str, found[side])) for side in ("doctor", "latency"))
        said.append(f"{what}: doctor {doctor}; latency {latency}: {'they agree' if found['agree'] else 'THEY DIFFER'}")
    return f"{row['model']}; " + "; ".join(said) + ("" if row["quiet"] else "; other programs were at work")


def _seconds(measured: Sequence[Row], **where: object) -> list[float]:
    return [row["seconds"]["low"] for row in measured if all(row[name] == value for name, value in where.items())]


def _cases(bundle: Bundle) -> list[Any]:
    text = TextSettings(answer_length=ANSWER, block_length=ANSWER, steps=STEPS)
    return [Bench.of(bundle).text(PROMPT, text.replace(cache=cache)) for cache in ("none", "dual")]


def _random(form: str, folder: Path) -> Bundle:
    whole = SIZES["s"]
    architecture = replace(whole.architecture, n_layers=LAYERS, vocab_size=WORDS + CODES)
    precision, changes = STORED[form]
    return write_bundle(replace(whole, architecture=architecture, codes=CODES), folder, precision, "cpu", changes)


def _shipped(form: str, folder: Path) -> Bundle:
    precision, changes = STORED[form]
    return Bundle.open(export_checkpoint(SHIPPED, folder, precision=precision, formats=changes))  # type: ignore[arg-type]
