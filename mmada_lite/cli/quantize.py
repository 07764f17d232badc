"""The verb that makes a bundle smaller: a request out of arguments, progress to a terminal, the bundle's name out."""

import argparse
from pathlib import Path

from mmada_lite.cli import terminal
from mmada_lite.cli.export import formats_of
from mmada_lite.cli.workshop import needs


def quantize(arguments: argparse.Namespace) -> int:
    """Quantize a checkpoint, or a bundle of half or full precision."""
    with needs("quant"):
        from mmada_lite.quant.convert import Request, quantize_model
        from mmada_lite.quant.prompts import from_file
    request = Request(
        format=arguments.format,
        method=arguments.method,
        target=arguments.target or "cpu",
        store=tuple(sorted(formats_of(arguments.store).items())),
        prompts=arguments.prompt_count,
        seen=arguments.calibration,
        seed=arguments.seed,
        record_with=_path(arguments.record_with),
        work=_path(arguments.work),
    )
    given = from_file(Path(arguments.prompts)) if arguments.prompts else None
    with needs("quant"), terminal.Progress(quiet=arguments.json) as progress:
        written = quantize_model(
            arguments.source, arguments.output, request, given=given, force=arguments.force, report=progress.show
        )
    if arguments.json:
        size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
        said = {"format": request.format, "method": request.method, "target": request.target}
        print(terminal.json_line({"result": str(written), "bytes": size, **said}))
    else:
        print(written)
    return 0


def _path(given: str | None) -> Path | None:
    return Path(given) if given else None
