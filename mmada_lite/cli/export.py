"""The verb export: turn a checkpoint into a bundle, build engines for a bundle, or both."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.cli import options, terminal
from mmada_lite.cli.extras import needs
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.ort import nvidia

if TYPE_CHECKING:
    from mmada_lite.export.lowering import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a folder with config.json and safetensors weights; with --engine, a bundle too",
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", help="the folder to write (not for engines of a bundle)")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "int8", "int8-7bit", "int4"],
        default="fp16",
        help="how weights are stored (default: fp16)",
    )
    options.add_target(parser)
    parser.add_argument("--engine", choices=["rtx"], help="also build TensorRT-RTX engines, into BUNDLE/engines; needs no GPU")
    parser.add_argument("--compute-capability", metavar="X.Y", help="of the card that engines are for (default: the card here)")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="build engines for this alone: prefill, block or picture; may be repeated (default: one engine for all)",
    )
    options.add_force(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle, then its engines."""
    from mmada_lite.bundle import MANIFEST

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
    folder = Path(arguments.checkpoint) if ready else _write_bundle(arguments)
    if engines:
        _build_engines(arguments, folder)
    about = {} if ready else {"precision": arguments.precision, "target": _target(arguments)}
    terminal.print_folder(folder, about, as_json=arguments.json)
    return 0


def _write_bundle(arguments: argparse.Namespace) -> Path:
    with needs("export"):
        from mmada_lite.export.bundle import export_checkpoint
    with needs("export"), terminal.Progress(quiet=arguments.json) as progress:
        return export_checkpoint(
            arguments.checkpoint,
            arguments.output,
            precision=arguments.precision,
            target=_target(arguments),
            formats=options.formats_of(arguments.store),
            force=arguments.force,
            progress=lambda done, total, name: progress.show(_progress_line(done, total, name)),
        )


def _target(arguments: argparse.Namespace) -> "Target":
    default: Target = "tensorrt" if arguments.engine else "cpu"
    return arguments.target or default


def _engines_can_be_built() -> None:
    """Raise Error before the long work, and not after it."""
    from mmada_lite.export import rtx_builder

    if (lacking := rtx_builder.missing()) is not None:
        raise Error(lacking)


def _build_engines(arguments: argparse.Namespace, folder: Path) -> None:
    with needs("export"):
        from mmada_lite.bundle import Bundle
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


def _progress_line(done: int, total: int, name: str) -> str:
    return f"{100 * done // total:3d}% {size_in_words(done)} of {size_in_words(total)}  {name}"
