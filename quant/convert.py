"""From a checkpoint, or a bundle in half or full precision, to a quantized bundle. `quantize_model` is the whole way: the
request is checked, the source opened, its weights transformed, rows to calibrate on recorded and layer after layer rounded
where the method needs that, and then the bundle is written as every export is.

It calls the other modules of this folder, and none of them calls back. What a method needs of memory: rtn, clip and rotate
pass each tensor through in pieces (a rotated matrix whole); smooth, gptq and gptaq hold one layer and the states of the
calibration rows, and they alone need torch.
"""

import difflib
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import mmada_lite
from mmada_lite.bundle import MANIFEST, Bundle, BundleWriter
from mmada_lite.errors import Error
from mmada_lite.export.bundle import Checkpoint, graph_plans, group_sizes, write_bundle
from mmada_lite.export.checkpoint import Tensors, TensorSource
from mmada_lite.export.formats import FORMATS, format_named
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.precision import specs_for, with_caches
from mmada_lite.memory_plan import PRECISIONS
from mmada_lite.quant.calibration import Calibration, Sample, collect, prompts_by_task, samples_of, to_arrays
from mmada_lite.quant.methods import Method, method_named
from mmada_lite.quant.prompts import Prompt
from mmada_lite.quant.sources import QuantizedTensors, check_weights, is_bundle, open_calibration_model, open_source
from mmada_lite.quant.transforms import TransformedTensors, transforms_for
from mmada_lite.quant.work_folder import WorkFolder

Report = Callable[[str], None]  # one line of progress
_MARGIN = 16 << 20  # bytes of disk beside what is counted
_TEXT_HEAD_BLOCK = 64  # the largest block of a text head: its logits are read out


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted. format: a precision (int8, int4, ...) or a format, see `specs_named`; method: see `method_named`; store:
    (group, format) in place of those. Of the calibration: prompts of each task, steps kept of each, seen ("masked" or
    "unmasked"), seed; record_with: a bundle of the same model that decodes the prompts, where the checkpoint itself does
    not fit in memory. work: the folder of the conversion in progress (default: beside the output). cache_precision: of keys and
    values, see `with_caches`."""

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
    cache_precision: str | None = None

    def calibration(self) -> Calibration:
        """Raises Error when it asks for nothing or for too much."""
        return Calibration(self.prompts, self.steps, self.seen, self.seed)  # type: ignore[arg-type]


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
    complete. Raises Error when something asked for is unknown or impossible, when weights hold what is no number, when the
    source is damaged, or when the disk is too small.
    """
    source, output, method = Path(source), Path(output), method_named(request.method)
    specs = with_caches(specs_named(request.format, request.target, dict(request.store)), request.cache_precision)
    _refuse_nothing_to_round(method, specs)

    checkpoint = open_source(source)
    if is_bundle(source) and checkpoint.codec:
        specs["codec"] = _spec_of_adopted_codec(source, specs["codec"], explicitly="codec" in dict(request.store))
    _check_output(output, checkpoint, specs, method, force)

    transforms = transforms_for(method, checkpoint.config, request.seed)
    transformed = TransformedTensors(checkpoint.tensors, checkpoint.config, transforms)

    with ExitStack() as held:
        work = None
        if method.calibrated:
            from mmada_lite.quant.layer_pipeline import LayerPipeline  # refused without torch before there is a work folder

            work = held.enter_context(_work_folder(source, output, checkpoint, request, given))
            samples = _samples(work, checkpoint, request.calibration(), request.record_with, given, report)
            LayerPipeline(transformed, method, specs, checkpoint.image_rows, work, samples, report).run()
        tensors = transformed if method.layerwise else checkpoint.tensors
        written = write_bundle(
            *(_with_codes(checkpoint, tensors, method, work), specs, output),
            force=force,
            progress=lambda done, total, name: report(f"{100 * done // total:3d}% written  {name}"),
            method=_description(method, request),
        )
        if work is not None:
            work.remove()
    return written


def specs_named(name: str, target: str, store: dict[str, str]) -> dict[str, WeightSpec]:
    """Group -> how it is stored. `name` is a precision of an export, or a format: then the backbone and the heads are stored
    so, a text head in blocks of 64 at most, and the rest as in the precision of its family. Raises Error that names the
    nearest."""
    if name in PRECISIONS:
        return specs_for(name, target, store)
    if name not in FORMATS:
        near = difflib.get_close_matches(name, [*PRECISIONS, *FORMATS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(dict.fromkeys([*PRECISIONS, *FORMATS]))}"
        raise Error(f"no format is called {name!r}; {hint}")
    fmt = format_named(name)
    block = min(fmt.block or _TEXT_HEAD_BLOCK, _TEXT_HEAD_BLOCK)
    overrides = {"backbone": name, "text_head": replace(fmt, block=block).name}
    if fmt.family == "int8":
        overrides = dict.fromkeys(("backbone", "text_head", "image_head"), name)
    return specs_for(fmt.family, target, overrides | store)


def _refuse_nothing_to_round(method: Method, specs: dict[str, WeightSpec]) -> None:
    if method != Method() and all(specs[group].format.floating for group in ("backbone", "text_head", "image_head")):
        raise Error(f"there is nothing to round in {specs['backbone'].format.name}; use --method rtn, or mmada-lite export")
    if method != Method() and not all(spec.format.floating or spec.format.whole for spec in specs.values()):
        raise Error("fp8 is rounded to nearest and by no other method; use --method rtn, or mmada-lite export")


def _spec_of_adopted_codec(source: Path, asked: WeightSpec, *, explicitly: bool) -> WeightSpec:
    """The image tokenizer of a bundle is taken over as it is."""
    stored = Bundle.open(source).quantization["codec"].format
    if explicitly and stored != asked.format.name:
        raise Error(f"{source}: its codec is {stored} and is taken over as it is; drop codec={asked.format.name}")
    return replace(asked, format=format_named(stored))


def _check_output(output: Path, checkpoint: Checkpoint, specs: dict[str, WeightSpec], method: Method, force: bool) -> None:
    """Raise Error where the bundle may not be written or does not fit the disk, before the long work. A conversion in progress
    holds the codes too, before the bundle is there."""
    size = sum(group_sizes(graph_plans(checkpoint), specs).values())
    with BundleWriter(output, force=force, needed=size * (2 if method.calibrated else 1) + _MARGIN):
        pass  # left without `finish`, it removes nothing but its own folder


def _work_folder(
    source: Path, output: Path, checkpoint: Checkpoint, request: Request, given: list[Prompt] | None
) -> WorkFolder:
    """For this process alone. The request and the prompts are refused before there is one."""
    prompts_by_task(given, request.calibration(), pictures=bool(checkpoint.image))
    folder = request.work or output.absolute().with_name(f".{output.name}.quantizing")
    return WorkFolder(folder, _key(source, checkpoint, request, given))


def _samples(
    work: WorkFolder,
    checkpoint: Checkpoint,
    calibration: Calibration,
    record_with: Path | None,
    given: list[Prompt] | None,
    report: Report,
) -> list[Sample]:
    """The rows to calibrate on: those of the work folder, or recorded now."""
    if not work.has("samples"):
        check_weights(checkpoint, report)
        report("decoding prompts to calibrate on")
        model = open_calibration_model(checkpoint, record_with)
        recorded = collect(model, calibration, given, lambda done, total: report(f"prompt {done} of {total}"))
        work.save("samples", to_arrays(recorded))
    return samples_of(work.load("samples"))


def _with_codes(checkpoint: Checkpoint, tensors: Tensors, method: Method, work: WorkFolder | None) -> Checkpoint:
    """The checkpoint as the exporter reads it: with the codes of the work folder, or rounded as it is read."""
    text = QuantizedTensors(tensors, method, work, "text_head", 0)
    image = QuantizedTensors(tensors, method, work, "image_head", checkpoint.image_rows.start)
    return replace(checkpoint, tensors=text, image_tensors=image)


def _description(method: Method, request: Request) -> str | None:
    """What bundle.json says of how codes were found; nothing of rounding to nearest."""
    if method == Method():
        return None
    if not method.calibrated:
        return method.name
    return f"{method.name}, {request.seen} rows, {request.prompts} prompts of each task, seed {request.seed}"


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
    identity = {"version": mmada_lite.__version__, "origin": checkpoint.origin, "files": stats, "recorder": recorder}
    return identity | {"request": asked, "prompts": prompts}
