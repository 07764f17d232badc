"""The verb export: turn a checkpoint into a bundle, build engines for a bundle, or both."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.cli import options, terminal
from mmada_lite.cli.extras import needs
from mmada_lite.contracts import ATTENTION_FORMS
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words

if TYPE_CHECKING:
    from mmada_lite.export.lowering import Target
    from mmada_lite.export.precision import Precision

_OF_A_BUNDLE = ("output", "target", "precision", "store", "cache_precision", "attention", "packed")  # what says how one is
FOR_WEB: "Precision" = "int8"  # the fastest of whole rows in WebAssembly, and half of fp16 to fetch (docs/browser.md)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a folder with config.json and safetensors weights; with --engine, a bundle too",
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", help="the folder to write (not for engines of a bundle)")
    parser.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16", "int8", "int8-7bit", "fp8", "int4"],
        help=f"how weights are stored (default: fp16; {FOR_WEB} with --target web)",
    )
    options.add_target(parser, also=("web",))
    options.add_cache_precision(parser, "how a CPU keeps keys and values; fp16 takes half of their memory")
    parser.add_argument(
        "--attention",
        choices=ATTENTION_FORMS,
        help="for cuda: by which operators it attends (default: the fastest on the card here, measured once; "
        f"else {ATTENTION_FORMS[0]})",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="for cuda: lay codes out for its kernels now and not at every start; nothing else runs it",
    )
    parser.add_argument("--engine", choices=["rtx"], help="also build TensorRT-RTX engines, into BUNDLE/engines; needs no GPU")
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="of the card that engines are for; may be repeated (default: one engine for all cards)",
    )
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
    if ready and any(getattr(arguments, name) for name in _OF_A_BUNDLE):
        rest = "-o, --target, --precision, --store, --cache-precision, --attention and --packed"
        raise Error(f"{arguments.checkpoint} is a bundle: its engines go into it; leave out {rest}")
    if arguments.attention and arguments.target != "cuda":
        raise Error("--attention is about cards by CUDA; add --target cuda")
    if not ready and arguments.output is None:
        raise Error("the following arguments are required: -o/--output, the folder of the bundle")
    if arguments.target == "web" and engines:
        raise Error("--target web is for browsers, which have no engines; leave --engine out")
    if arguments.target == "web" and arguments.precision == "bf16":
        raise Error("--precision bf16 was tried in no browser; use fp16, which is as large, or leave it out for int8")
    if arguments.target == "web" and arguments.cache_precision == "fp16":
        raise Error("--cache-precision fp16 is for programs, and a browser keeps keys and values in fp32; leave it out")
    if engines:
        _engines_can_be_built(arguments)
    folder = Path(arguments.checkpoint) if ready else _write_bundle(arguments)
    if engines:
        _build_engines(arguments, folder)
    about = {} if ready else {"precision": _precision(arguments), "target": _target(arguments)}
    terminal.print_folder(folder, about, as_json=arguments.json)
    if not ready:
        _say_where_slow(arguments, folder)
    return 0


def _write_bundle(arguments: argparse.Namespace) -> Path:
    with needs("export"):
        from mmada_lite.export.bundle import export_checkpoint
    with needs("export"), terminal.Progress(quiet=arguments.json) as progress:
        return export_checkpoint(
            arguments.checkpoint,
            arguments.output,
            precision=_precision(arguments),
            target=_target(arguments),
            formats=options.formats_of(arguments.store),
            cache_precision=arguments.cache_precision,
            attention=_attention(arguments),
            packed=arguments.packed,
            force=arguments.force,
            progress=lambda done, total, name: progress.show(_progress_line(done, total, name)),
        )


def _target(arguments: argparse.Namespace) -> "Target":
    """What graphs are written for: a browser runs those of a CPU."""
    default: Target = "tensorrt" if arguments.engine else "cpu"
    return "cpu" if arguments.target == "web" else arguments.target or default


def _precision(arguments: argparse.Namespace) -> "Precision":
    return arguments.precision or (FOR_WEB if arguments.target == "web" else "fp16")


def _attention(arguments: argparse.Namespace) -> str:
    """As was asked for; else the fastest on the card here, which is measured where nothing is kept of it."""
    if arguments.attention or arguments.target != "cuda":
        return arguments.attention or ATTENTION_FORMS[0]
    from mmada_lite.ort import attention_forms, devices

    times = attention_forms.kept()
    if times is None:
        if devices.fault("cuda") is not None:
            return ATTENTION_FORMS[0]
        times, left_out = attention_forms.measure()
        attention_forms.keep(times)
        for form, why in left_out.items():
            terminal.note(f"mmada-lite: attention by {form} is left out: {why}")
    return attention_forms.order(times)[0] if times else ATTENTION_FORMS[0]


def _say_where_slow(arguments: argparse.Namespace, folder: Path) -> None:
    """A note where another form of no more memory is clearly faster: in a browser as docs/browser.md has it, else as it was
    measured on this machine."""
    from mmada_lite.bundle import Bundle
    from mmada_lite.cli import speeds

    if arguments.target != "web":
        speeds.say_form(folder, may_measure=True)
    elif in_blocks := [group for group, stored in Bundle.open(folder).quantization.items() if stored.block]:
        terminal.note(f"mmada-lite: a browser unpacks weights in blocks at every run ({', '.join(in_blocks)}); "
                      f"--precision {FOR_WEB} is faster there")  # fmt: skip


def _engines_can_be_built(arguments: argparse.Namespace) -> None:
    """Raise Error before the long work, and not after it."""
    from mmada_lite.export import rtx_builder
    from mmada_lite.ort.engines import require_profiles

    if arguments.target not in (None, "tensorrt"):
        raise Error(f"engines are of graphs for tensorrt, and not for {arguments.target}; leave --target out, or --engine")
    require_profiles(arguments.profile)
    if (lacking := rtx_builder.missing()) is not None:
        raise Error(lacking)
    fp8 = arguments.precision == "fp8" or "fp8" in options.formats_of(arguments.store).values()
    for capability in arguments.compute_capability:
        rtx_builder.require_known(capability, fp8=fp8)


def _build_engines(arguments: argparse.Namespace, folder: Path) -> None:
    with needs("export"):
        from mmada_lite.bundle import Bundle
        from mmada_lite.export.engines import build_engines
        from mmada_lite.ort.engines import NAMES, TOGETHER
    with terminal.Progress(quiet=arguments.json) as progress:
        build_engines(
            Bundle.open(folder),
            TOGETHER.join(dict.fromkeys(arguments.compute_capability)),
            profiles=arguments.profile or NAMES,
            say=terminal.note,
            show=progress.show,
        )


def _progress_line(done: int, total: int, name: str) -> str:
    return f"{100 * done // total:3d}% {size_in_words(done)} of {size_in_words(total)}  {name}"
