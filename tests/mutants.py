"""Which small changes of the code do the tests not see? Mutants by the operators of mutmut 3, for a file or for a sample.

    python tests/mutants.py OUT.jsonl --files mmada_lite/decoding/*.py --tests tests/decoding

OUT gets a line of JSON for each mutant: what it changes, and whether it lived, was killed and by which test, was endless, or is
reached by no test; `loaded` is changed when a module is loaded, which needs `--anew`, and `wording` needs
`--wordings`. What OUT holds already is not run again. How a mutant is run stands in mutant_runs.py.

A part of no suite: it needs `mutmut==3.8.1` and `coverage` beside what the tests need. Set OMP_NUM_THREADS=1, since threads of
a library do not outlive a fork."""

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import hypothesis
import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutant_runs import Anew, Forked, Mutant

arguments, sys.argv = sys.argv[1:], sys.argv[:1]  # mutmut reads the command line when it is imported
from mutmut.mutation.file_mutation import IgnoredCode, MutationVisitor, _walk, mutation_operators  # noqa: E402


def mutants(file: str) -> Iterator[Mutant]:
    """All of a file, in mutmut's order."""
    source = Path(file).read_text(encoding="utf-8")
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()), None)
    module = wrapper.visit(visitor)
    places = wrapper.resolve(PositionProvider)
    raised = {id(node) for statement in _walk(module) if isinstance(statement, cst.Raise) for node in _walk(statement)}
    for number, change in enumerate(visitor.mutations):
        old, outer = change.original_node, change.contained_by_top_level_function
        inside = isinstance(outer, cst.FunctionDef)
        if inside:  # defaults and decorators are run when the module is
            head = (outer.params, *outer.decorators)
            inside = id(old) not in {id(node) for part in head for node in _walk(part)}
        words = isinstance(old, cst.SimpleString)
        wording = words and (id(old) in raised or " " in old.value or "XX" not in change.mutated_node.value)
        place = places.get(old)
        lines = range(place.start.line, place.end.line + 1) if place else range(0)
        code = _spliced(source, place, module.code_for_node(change.mutated_node)) if place else ""
        try:
            compile(code or "?", file, "exec")
        except SyntaxError:  # the slow way, for the few nodes whose place is not the whole of them
            code = module.deep_replace(old, change.mutated_node).code
        yield Mutant(file, number, lines, places[outer].start.line if inside else 0, wording, source, code)


def _spliced(source: str, place: object, new: str) -> str:
    start, end = place.start, place.end  # type: ignore[attr-defined]
    rows = source.splitlines(keepends=True)
    before = "".join(rows[: start.line - 1]) + rows[start.line - 1][: start.column]
    return before + new + rows[end.line - 1][end.column :] + "".join(rows[end.line :])


def run(options: argparse.Namespace, runner: Forked | Anew) -> None:
    every = (mutant for file in options.files for mutant in mutants(file))
    todo: Iterable[Mutant] = (mutant for mutant in every if mutant.wording or not options.wordings)
    if options.sample:
        inside = [mutant for mutant in todo if options.wordings or (mutant.function and not mutant.wording)]
        chosen = random.Random(options.seed).sample(inside, options.sample)
        todo = sorted(chosen, key=lambda mutant: (options.files.index(mutant.file), mutant.number))
    if options.only:
        earlier = map(json.loads, options.only.read_text(encoding="utf-8").splitlines())
        wanted = {(record["file"], record["number"]) for record in earlier if record["result"] in options.results}
        todo = (mutant for mutant in todo if (mutant.file, mutant.number) in wanted)
    with options.out.open("a+", encoding="utf-8") as out:
        out.seek(0)
        done = {(record["file"], record["number"]) for record in map(json.loads, out)}
        results: Counter[str] = Counter()
        for mutant in todo:
            if (mutant.file, mutant.number) not in done:
                skipped = mutant.wording and not options.wordings
                record = {"result": "wording"} if skipped else runner.try_one(mutant)
                results[record["result"]] += 1
                about = {"file": mutant.file, "number": mutant.number, "shown": mutant.shown()}
                out.write(json.dumps(about | record) + "\n")
                out.flush()
    print(dict(results))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--files", nargs="+", required=True)
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--deselect", nargs="*", default=[], help="tests by name, as pytest takes them")
    parser.add_argument("--mark", default="not manual and not fuzz and not slow and not gpu")
    parser.add_argument("--sample", type=int, help="so many of what functions do (or of wordings), drawn by --seed")
    parser.add_argument("--seed", type=int, default=32)
    parser.add_argument("--wordings", action="store_true", help="run mutants of wordings, and no others")
    parser.add_argument("--seconds", type=float, default=2.5, help="tests for a mutant at most; one test at least")
    parser.add_argument("--slowest", type=float, default=3.0, help="a test that takes longer is left out")
    parser.add_argument("--only", type=Path, help="those mutants that this OUT of an earlier run has with --results")
    parser.add_argument("--results", nargs="+", default=["lived", "unreached"])
    parser.add_argument("--anew", action="store_true", help="import the mutated file; all tests then, until one fails")
    options = parser.parse_args(arguments)
    hypothesis.settings.register_profile(
        "mutants",
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # an example that fails need not be made small
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")
    pytest_options = [
        *options.tests,
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "-m",
        options.mark,
        *(f"--deselect={n}" for n in options.deselect),
    ]
    kind = Anew if options.anew else Forked
    return kind(options, pytest_options).start(lambda runner: run(options, runner))


if __name__ == "__main__":
    os._exit(main())  # threads of a library may wait for ever for what a fork had
