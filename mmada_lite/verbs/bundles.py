"""The verbs about bundles rather than about their answers: export and check."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.atomic import size_in_words
from mmada_lite.errors import Error
from mmada_lite.verbs import terminal
from mmada_lite.verbs.workshop import needs

if TYPE_CHECKING:
    from mmada_lite.export.check import Checked


def export(arguments: argparse.Namespace) -> int:
    """Turn a checkpoint into a bundle."""
    with needs("export"):
        from mmada_lite.export.bundle import export_checkpoint
    with needs("export"), terminal.Progress(quiet=arguments.json) as progress:
        written = export_checkpoint(
            arguments.checkpoint,
            arguments.output,
            precision=arguments.precision,
            target=arguments.target,
            formats=formats_of(arguments.store),
            force=arguments.force,
            progress=lambda done, total, name: progress.show(_portion(done, total, name)),
        )
    if arguments.json:
        size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
        said = {"precision": arguments.precision, "target": arguments.target}
        print(terminal.json_line({"result": str(written), "bytes": size, **said}))
    else:
        print(written)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Replay recorded cases. Returns 1 when any falls short."""
    with needs("export"):
        from mmada_lite.export.check import ENGINES, as_json, check_folder
    engines = ENGINES if arguments.engine is None else (arguments.engine,)
    results: list[Checked] = []
    with needs("train"):
        for result in check_folder(Path(arguments.folder), engines):
            results.append(result)
            if not arguments.json:
                print(_line(result), flush=True)
    summary = as_json(results)
    print(terminal.json_line(summary))
    return 1 if summary["failed"] or not results else 0


def formats_of(changes: list[str]) -> dict[str, str]:
    """`text_head=int8` and so on, as a mapping."""
    for change in changes:
        if "=" not in change:
            raise Error(f"--store {change}: write GROUP=FORMAT, for example --store text_head=int8")
    return {group: name for group, _, name in (change.partition("=") for change in changes)}


def _portion(done: int, total: int, name: str) -> str:
    return f"{100 * done // total:3d}% {size_in_words(done)} of {size_in_words(total)}  {name}"


def _line(checked: "Checked") -> str:
    """`ok    cache/mha_dual_steps [onnx] ids: 0 (at most 0)`."""
    found = checked.comparison
    verdict = "ok   " if found.passed else "FALLS SHORT"
    return f"{verdict} {found.name} [{checked.engine}] {found.what}: {found.difference:.3g} (at most {found.allowed:.3g})"
