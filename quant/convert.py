"""From a checkpoint, or a bundle in half or full precision, to a quantized bundle: what is asked for is checked first, codes
are found layer by layer where the method needs that, then the bundle is written as every export is.

It ties the parts together. What a method needs of memory: rtn, clip and rotate pass each tensor through in pieces (a
rotated matrix whole); smooth and gptq hold one layer and the states of the calibration rows.
"""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mmada_lite
from mmada_lite.bundle import MANIFEST, Bundle, BundleWriter
from mmada_lite.errors import Error
from mmada_lite.export.bundle import Checkpoint, graph_plans, group_sizes, open_checkpoint, write_bundle
from mmada_lite.export.checkpoint import Tensors, TensorSource
from mmada_lite.export.formats import FORMATS, format_named
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.precision import specs_for
from mmada_lite.memory_plan import PRECISIONS
from mmada_lite.quant.methods import Method, method_named
from mmada_lite.quant.prompts import Prompt
from mmada_lite.quant.sources import Prepared
from mmada_lite.quant.transforms import Folded, folds_of
from mmada_lite.quant.work_folder import WorkFolder

Report = Callable[[str], None]
_MARGIN = 16 << 20  # bytes of disk beside what is counted
_FINER = 64  # the largest block of a text head: what it gives is read out


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted. format: a preset (int8, int4, ...) or a format, see `forms_named`; method: see `method_named`; store:
    (group, format) in place of those. Of the calibration: prompts of each task, steps kept of each, seen ("masked" or
    "unmasked"), seed; record_with: a bundle of the same model that decodes the prompts, where the checkpoint itself does
    not fit in memory. work: the folder of the conversion in progress (default: beside the output)."""

    format: str = "int4"
    method: str = "rtn"
    target: str = "cpu"
    store: tuple[tuple[str, str], ...] = ()
    prompts: int = 32
    steps: int = 3
    seen: str = "masked"
    seed: int = 0
    record_with: Path | None = None
    work: Path | None = None


def quantize_model(
    source: str | Path,
    output: str | Path,
    request: Request,
    *,
    given: list[Prompt] | None = None,
    force: bool = False,
    report: Report = lambda line: None,
) -> Path:
    """Write the bundle `output`, quantized as asked; returns its path. `given` are prompts to calibrate on.

    A conversion that is killed leaves a work folder, and the same call goes on from there; no bundle is there before it is
    whole. Raises Error when something asked for is unknown or impossible, when weights hold what is no number, when the
    source is damaged, or when the disk is too small.
    """
    source, output, method = Path(source), Path(output), method_named(request.method)
    forms = forms_named(request.format, request.target, dict(request.store))
    _refuse_useless(method, forms)
    checkpoint = open_source(source)
    if (source / MANIFEST).is_file() and checkpoint.codec:
        forms["codec"] = _codec_form(source, forms["codec"], "codec" in dict(request.store))
    size = sum(group_sizes(graph_plans(checkpoint), forms).values())
    # A conversion in progress holds the codes too, before the bundle is there. Leaving without `finish` removes nothing else.
    with BundleWriter(output, force=force, needed=size * (2 if method.calibrated else 1) + _MARGIN):
        pass
    folded = Folded(checkpoint.tensors, checkpoint.config, folds_of(method, checkpoint.config, request.seed))
    if not method.calibrated:
        return _written(checkpoint, folded if method.rotate else checkpoint.tensors, method, None, forms, output, force, report)
    from mmada_lite.quant.calibration import Calibration, prompts_asked
    from mmada_lite.quant.layer_pipeline import find_codes

    calibration = Calibration(request.prompts, request.steps)  # this and the prompts are refused before there is a work folder
    prompts_asked(given, calibration, pictures=bool(checkpoint.image))
    place = request.work or output.absolute().with_name(f".{output.name}.quantizing")
    work = WorkFolder(place, _key(source, checkpoint, request, given))
    find_codes(checkpoint, folded, method, forms, work, request, given, report)
    said = f"{method.name}, {request.seen} rows, {request.prompts} prompts of each task, seed {request.seed}"
    written = _written(checkpoint, folded, method, work, forms, output, force, report, said)
    work.remove()
    return written


def open_source(source: Path) -> Checkpoint:
    """A checkpoint folder, or a bundle that is not quantized. Raises Error that names what is wrong with it."""
    if (source / MANIFEST).is_file():
        from mmada_lite.quant.sources import open_bundle

        return open_bundle(source)
    return open_checkpoint(source)


def forms_named(name: str, target: str, store: dict[str, str]) -> dict[str, WeightSpec]:
    """Group -> form. `name` is a preset of `export.recipe`, or a format: then the backbone and the heads are stored so, a
    text head in blocks of 64 at most, and the rest as the preset of its family. Raises Error that names the nearest."""
    if name in PRECISIONS:
        return specs_for(name, target, store)
    if name not in FORMATS:
        near = difflib.get_close_matches(name, [*PRECISIONS, *FORMATS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(dict.fromkeys([*PRECISIONS, *FORMATS]))}"
        raise Error(f"no format is called {name!r}; {hint}")
    form = format_named(name)
    changes = {"backbone": name, "text_head": replace(form, block=min(form.block or _FINER, _FINER)).name}
    if form.family == "int8":
        changes = dict.fromkeys(("backbone", "text_head", "image_head"), name)
    return specs_for(form.family, target, changes | store)


def _refuse_useless(method: Method, forms: dict[str, WeightSpec]) -> None:
    if method != Method() and all(forms[group].format.floating for group in ("backbone", "text_head", "image_head")):
        raise Error(f"there is nothing to round in {forms['backbone'].format.name}; use --method rtn, or mmada-lite export")


def _codec_form(source: Path, asked: WeightSpec, explicitly: bool) -> WeightSpec:
    """The image tokenizer of a bundle is taken over as it is."""
    stored = Bundle.open(source).quantization["codec"].format
    if explicitly and stored != asked.format.name:
        raise Error(f"{source}: its codec is {stored} and is taken over as it is; drop codec={asked.format.name}")
    return WeightSpec(format_named(stored), asked.target)


def _written(
    checkpoint: Checkpoint,
    tensors: Tensors,
    method: Method,
    work: WorkFolder | None,
    forms: dict[str, WeightSpec],
    output: Path,
    force: bool,
    report: Report,
    said: str = "",
) -> Path:
    first = checkpoint.vocabulary.image_code_offset
    heads = [Prepared(tensors, method, work, head, begin) for head, begin in (("text_head", 0), ("image_head", first))]
    checkpoint = replace(checkpoint, tensors=heads[0], image_tensors=heads[1])
    return write_bundle(
        *(checkpoint, forms, output),
        force=force,
        progress=lambda done, total, name: report(f"{100 * done // total:3d}% written  {name}"),
        method=None if method == Method() else said or method.name,
    )


def _key(source: Path, checkpoint: Checkpoint, request: Request, given: list[Prompt] | None) -> dict[str, object]:
    """All that the codes depend on."""
    files = checkpoint.tensors.files if isinstance(checkpoint.tensors, TensorSource) else sorted(source.iterdir())
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    asked = {
        name: getattr(request, name) for name in ("format", "method", "target", "store", "prompts", "steps", "seen", "seed")
    }
    recorder = None
    if request.record_with:
        recorder = hashlib.sha256((Bundle.open(request.record_with).path / MANIFEST).read_bytes()).hexdigest()
    prompts = None if given is None else [[prompt.task, prompt.text] for prompt in given]
    made = {"version": mmada_lite.__version__, "origin": checkpoint.origin, "files": stats, "recorder": recorder}
    return made | {"request": asked, "prompts": prompts}
