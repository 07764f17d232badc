"""The verb quantize: turn a checkpoint, or a bundle of half or full precision, into a smaller bundle."""

import argparse
from pathlib import Path

from mmada_lite.cli import options, terminal
from mmada_lite.cli.extras import needs
from mmada_lite.errors import Error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint's folder, or a bundle of fp16 or fp32")
    parser.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="the folder to write")
    parser.add_argument(
        "--format", default="int4", metavar="NAME", help="int4, int8, or one format such as int4-b32-asym (default: int4)"
    )
    parser.add_argument(
        "--method",
        default="gptq",
        metavar="NAME",
        help="rtn, clip, gptq or gptaq, with smooth+ or rotate+ before it (default: gptq)",
    )
    options.add_target(parser)
    options.add_cache_precision(parser, "how a CPU keeps keys and values; fp16 takes half of their memory")
    parser.add_argument("--prompts", metavar="FILE", help="calibrate on these: a JSON object with task and text a line")
    parser.add_argument(
        "--prompt-count", type=options.whole, default=32, metavar="N", help="prompts of each task (default: 32)"
    )
    parser.add_argument(
        "--calibration", choices=["masked", "unmasked"], default="masked", help="rows as decoding meets them, or finished ones"
    )
    parser.add_argument("--record-with", metavar="BUNDLE", help="decode the prompts with this bundle of the same model")
    parser.add_argument("--work", metavar="FOLDER", help="where a killed conversion goes on (default: beside the bundle)")
    options.add_seed(parser)
    options.add_force(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Quantize."""
    from mmada_lite.cli.speeds import say_form

    if arguments.seed < 0:
        raise Error(f"--seed is {arguments.seed}; use 0 or more")
    with needs("quant"):
        from mmada_lite.quant.convert import Request, quantize_model
        from mmada_lite.quant.prompts import from_file
    request = Request(
        format=arguments.format,
        method=arguments.method,
        target=arguments.target or "cpu",
        store=tuple(sorted(options.formats_of(arguments.store).items())),
        prompts=arguments.prompt_count,
        seen=arguments.calibration,
        seed=arguments.seed,
        record_with=_path(arguments.record_with),
        work=_path(arguments.work),
        cache_precision=arguments.cache_precision,
    )
    given = from_file(Path(arguments.prompts)) if arguments.prompts else None
    with needs("quant"), terminal.Progress(quiet=arguments.json) as progress:
        folder = quantize_model(
            arguments.source, arguments.output, request, given=given, force=arguments.force, report=progress.show
        )
    about = {"format": request.format, "method": request.method, "target": request.target}
    terminal.print_folder(folder, about, as_json=arguments.json)
    say_form(folder, may_measure=False)
    return 0


def _path(given: str | None) -> Path | None:
    return Path(given) if given else None
