"""All layers of a checkpoint in turn, one of them in memory at a time: codes go into a work folder as they are found, and a
conversion that was killed goes on with the layer after the last finished one, to the same result.

Units of the work folder: `samples`, `states-N` (what layer N reads), `layer-N` and the heads (codes and factors). It knows
the order of things; how a layer is rounded is `layers`, what a unit is on the disk `work`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mmada_lite.bundle import read_settings
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import Checkpoint, defaults_of
from mmada_lite.export.formats import require_finite
from mmada_lite.export.lowering import Weight, WeightSpec
from mmada_lite.files import size_in_words
from mmada_lite.memory_plan import memory_available
from mmada_lite.model import load
from mmada_lite.quant.block_rounding import Batch, HeadRead, Layer, aligned, embedded, load_block, round_head
from mmada_lite.quant.calibration import Calibration, Reader, Sample, collect, grouped_by_length
from mmada_lite.quant.convert import Request
from mmada_lite.quant.methods import Method
from mmada_lite.quant.prompts import Prompt
from mmada_lite.quant.sources import packed
from mmada_lite.quant.transforms import ROOT, SITES, Folded
from mmada_lite.quant.work_folder import WorkFolder
from mmada_lite.vocabulary import Tokenizer

Report = Callable[[str], None]  # one line of progress
_FIELDS = ("tokens", "weight", "predicted")  # of a Sample
_HEAD = f"{ROOT}.ff_out.weight"


def prepare_layers(
    source: Folded,
    method: Method,
    forms: Mapping[str, WeightSpec],
    codes: slice,
    work: WorkFolder,
    collect: Callable[[], list[Sample]],
    report: Report,
) -> None:
    """Bring the work folder to its end: codes of every layer and head. codes: the rows of the output matrix that are
    picture codes. `collect` gives the rows to calibrate on, if they are not there yet."""
    batches = _batches(_samples(work, collect, report))
    for layer in range(source.config.n_layers):
        if work.has(f"layer-{layer}"):
            _recall(work, source, layer)
            if work.has(f"states-{layer + 1}") or work.has(f"layer-{layer + 1}"):
                continue
        report(f"layer {layer + 1} of {source.config.n_layers}")
        states, aims = _states(work, source, method, batches, layer)
        _advance(source, method, forms["backbone"], layer, states, aims, batches, work)
        _save_states(work, states, aims, layer + 1)
        work.drop(f"states-{layer}")
    if method.compensates:
        _heads(source, method, forms, codes, batches, work, report)


def _heads(
    source: Folded,
    method: Method,
    forms: Mapping[str, WeightSpec],
    codes: slice,
    batches: list[Batch],
    work: WorkFolder,
    report: Report,
) -> None:
    """Each head for the tasks that read it. One that no task reads is left to be rounded alone."""
    rows = {"text_head": slice(0, source.shape(_HEAD)[0]), "image_head": codes}
    for head, tasks in (("text_head", ("ask", "chat")), ("image_head", ("paint",))):
        if forms[head].format.floating or work.has(head):
            continue
        states, aims = _states(work, source, method, batches, source.config.n_layers)
        every = [HeadRead(batch, states[i], aims[i] if aims else None) for i, batch in enumerate(batches)]
        read = [each for each in every if each.batch.task in tasks]
        if read:
            report(head.replace("_", " "))
            work.save(head, packed("ff_out", round_head(source, read, rows[head], forms[head])))


def _advance(
    source: Folded,
    method: Method,
    form: WeightSpec,
    layer: int,
    states: list[torch.Tensor],
    aims: list[torch.Tensor] | None,
    batches: Sequence[Batch],
    work: WorkFolder,
) -> None:
    """Round one layer and save it; states and aims become those of the next one."""
    name, config = f"{ROOT}.blocks.{layer}", source.config
    done = work.has(f"layer-{layer}")
    factors: dict[str, np.ndarray] = {}
    if method.smooth and not done and not form.format.floating:
        factors = Layer(load_block(source, config, layer), config, method, form, name).factors(states, batches)
        source.folds.factors.update({(layer, site): values for site, values in factors.items()})
        source.forget()
    found = Layer(load_block(source, config, layer), config, method, form, name).advance(states, batches, aims)
    source.forget()
    if not done:
        arrays = {f"factors.{site}": values for site, values in factors.items()}
        for matrix, held in found.items():
            arrays |= packed(matrix, held)
        work.save(f"layer-{layer}", arrays)


def _recall(work: WorkFolder, source: Folded, layer: int) -> None:
    """The factors of a finished layer, folded in again."""
    arrays = work.load(f"layer-{layer}")
    for site in SITES:
        if f"factors.{site}" in arrays:
            source.folds.factors[layer, site] = np.array(arrays[f"factors.{site}"])


def _samples(work: WorkFolder, collect: Callable[[], list[Sample]], report: Report) -> list[Sample]:
    """The rows to calibrate on, end to end in one unit: collected once."""
    if not work.has("samples"):
        report("decoding prompts to calibrate on")
        found = collect()
        joined = {name: np.concatenate([getattr(sample, name) for sample in found]) for name in _FIELDS}
        ends = np.cumsum([len(sample.tokens) for sample in found])
        work.save("samples", joined | {"ends": ends, "tasks": np.array([sample.task for sample in found])})
    arrays = work.load("samples")
    parts = [np.split(np.array(arrays[name]), arrays["ends"][:-1]) for name in _FIELDS]
    return [Sample(str(task), *row) for task, *row in zip(arrays["tasks"], *parts, strict=True)]  # type: ignore[arg-type]


def _batches(samples: Sequence[Sample]) -> list[Batch]:
    return [Batch.of(group) for group in grouped_by_length(samples)]


def _states(
    work: WorkFolder, source: Folded, method: Method, batches: Sequence[Batch], layer: int
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """What the layer reads, and with gptaq what it would read if none before it were rounded."""
    if layer == 0:
        states = embedded(source, batches)
        return states, list(states) if method.rounding == "gptaq" else None
    arrays = work.load(f"states-{layer}")
    held = [aligned(np.asarray(arrays[name])) for name in sorted(arrays)]
    return held[: len(batches)], held[len(batches) :] or None


def _save_states(work: WorkFolder, states: Sequence[torch.Tensor], aims: Sequence[torch.Tensor] | None, layer: int) -> None:
    """The states of all batches, then their aims."""
    work.save(f"states-{layer}", {f"{number:05d}": x.numpy() for number, x in enumerate([*states, *(aims or ())])})


def find_codes(
    checkpoint: Checkpoint,
    folded: Folded,
    method: Method,
    forms: dict[str, WeightSpec],
    work: WorkFolder,
    request: Request,
    given: list[Prompt] | None,
    report: Report,
) -> None:
    """Fill the work folder with the codes of every layer and head, from where it stands."""
    if not work.has("samples"):
        _check_weights(checkpoint, report)
    from mmada_lite.quant.layer_pipeline import prepare_layers

    calibration = Calibration(request.prompts, request.steps, request.seen, request.seed)  # type: ignore[arg-type]
    first = checkpoint.vocabulary.image_code_offset
    codes = slice(first, first + checkpoint.vocabulary.codebook_size)

    def samples() -> list[Sample]:
        reader = reader_of(checkpoint, codes, request.record_with)
        return collect(reader, calibration, given, lambda done, total: report(f"prompt {done} of {total}"))

    prepare_layers(folded, method, forms, codes, work, samples, report)


def reader_of(checkpoint: Checkpoint, codes: slice, record_with: Path | None) -> Reader:
    """A denoiser with what it takes to give it prompts. Raises Error when the checkpoint lacks its tokenizer, or is too
    large for the memory and no bundle stands in."""
    config, defaults = checkpoint.config, defaults_of(checkpoint)
    return Reader(
        denoiser=_bundle_denoiser(checkpoint, record_with) if record_with else _torch_denoiser(checkpoint, codes),
        tokenizer=Tokenizer.from_file(checkpoint.folder / "tokenizer.json"),
        vocabulary=checkpoint.vocabulary,
        codes=config.num_vq_tokens if checkpoint.image else 0,
        longest=config.max_sequence_length,
        text=read_settings(TextSettings, defaults["text"], "defaults.text"),
        image=read_settings(ImageSettings, defaults["image"], "defaults.image"),
    )


def _torch_denoiser(checkpoint: Checkpoint, codes: slice) -> Denoiser:
    import torch

    from mmada_lite.train.denoiser import TorchDenoiser
    from mmada_lite.train.model import MMaDA, load_state

    needed = 4 * sum(int(np.prod(shape)) for shape in checkpoint.config.expected_tensors().values())
    available = memory_available()
    if available is not None and needed > 0.8 * available:
        raise Error(
            f"to decode the prompts the checkpoint takes {size_in_words(needed)} of memory and {size_in_words(available)} "
            "are free; first quantize it with --method rtn, then add --record-with and that bundle"
        )
    with torch.device("meta"):
        model = MMaDA(checkpoint.config)
    load_state(model, checkpoint.tensors, torch.float32)
    return TorchDenoiser(model.eval(), codes)


def _bundle_denoiser(checkpoint: Checkpoint, path: Path) -> Denoiser:
    model = load(path)
    shape, config = model.bundle.architecture, checkpoint.config
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size")
    for name in names:
        if getattr(shape, name) != getattr(config, name):
            raise Error(f"{path} is of another model: its {name} is {getattr(shape, name)}, not {getattr(config, name)}")
    return model.denoiser


def _check_weights(checkpoint: Checkpoint, report: Report) -> None:
    """Read everything once, so that a bad weight of the last layer is not found at the end of a long conversion."""
    for name in checkpoint.config.expected_tensors():
        report(f"checking {name}")
        for chunk in Weight(checkpoint.tensors, name).chunks():
            require_finite(chunk, name)
