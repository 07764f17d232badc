"""The verbs about bundles rather than about their answers: export and check."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.bundle import MANIFEST, Bundle
from mmada_lite.cli import terminal
from mmada_lite.cli.workshop import needs
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.ort import nvidia

if TYPE_CHECKING:
    from mmada_lite.bench.parity.check import Checked
    from mmada_lite.export.lowering import Target


def export(arguments: argparse.Namespace) -> int:
    """Turn a checkpoint into a bundle, build engines for a bundle, or both."""
    engines = arguments.engine is not None
    ready = engines and (Path(arguments.checkpoint) / MANIFEST).is_file()
    if not engines and (arguments.profile or arguments.compute_capability):
        raise Error("--profile and --compute-capability are about engines; add --engine rtx")
    if ready and (arguments.output or arguments.target or arguments.store):
        raise Error(f"{arguments.checkpoint} is a bundle: its engines go into it; leave out -o, --target and --store")
    if not ready and arguments.output is None:
        raise Error("the following arguments are required: -o/--output, the folder of the bundle")
    if engines:
        _engines_can_be_built()
    written = Path(arguments.checkpoint) if ready else _bundle(arguments)
    if engines:
        _engines(arguments, written)
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    said = {} if ready else {"precision": arguments.precision, "target": _target(arguments)}
    print(terminal.json_line({"result": str(written), "bytes": size, **said}) if arguments.json else written)
    return 0


def _bundle(arguments: argparse.Namespace) -> Path:
    with needs("export"):
        from mmada_lite.export.bundle import export_checkpoint
    with needs("export"), terminal.Progress(quiet=arguments.json) as progress:
        written = export_checkpoint(
            arguments.checkpoint,
            arguments.output,
            precision=arguments.precision,
            target=_target(arguments),
            formats=formats_of(arguments.store),
            force=arguments.force,
            progress=lambda done, total, name: progress.show(_portion(done, total, name)),
        )
    return written


def _target(arguments: argparse.Namespace) -> "Target":
    default: Target = "tensorrt" if arguments.engine else "cpu"
    return arguments.target or default


def _engines_can_be_built() -> None:
    """Raise Error before the long work, and not after it."""
    from mmada_lite.export import rtx_builder

    if (lacking := rtx_builder.missing()) is not None:
        raise Error(lacking)


def _engines(arguments: argparse.Namespace, folder: Path) -> None:
    with needs("export"):
        from mmada_lite.export.engines import build_engines
        from mmada_lite.ort.engines import NAMES
    with terminal.Progress(quiet=arguments.json) as progress:
        build_engines(
            Bundle.open(folder),
            arguments.compute_capability or _capability_here(),
            profiles=arguments.profile or NAMES,
            say=terminal.note,
            show=progress.show,
        )


def _capability_here() -> str:
    cards = nvidia.cards()
    if not cards:
        raise Error("there is no NVIDIA card here to ask; say --compute-capability, for example 8.9 for RTX 40 cards")
    return cards[0].compute_capability


def check(arguments: argparse.Namespace) -> int:
    """Replay recorded cases. Returns 1 when any falls short."""
    with needs("export"):
        from mmada_lite.bench.parity.check import ENGINES, as_json, check_folder
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
