"""Conversions that look at what the layers read: makes sure that all weights are numbers, opens a denoiser to decode the
prompts with, and has the layers rounded.

It knows where a denoiser comes from (the checkpoint in torch, or a bundle) and what that costs; how rows are caught is
`calibration`, how layers are rounded `layerwise`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmada_lite.atomic import size_in_words
from mmada_lite.bundle import read_settings
from mmada_lite.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.export.bundle import Checkpoint, defaults_of
from mmada_lite.export.lowering import Form, Weight
from mmada_lite.model import load
from mmada_lite.quant.calibration import Calibration, Reader, Sample, collect
from mmada_lite.quant.convert import Request
from mmada_lite.quant.folding import Folded
from mmada_lite.quant.formats import require_finite
from mmada_lite.quant.prompts import Prompt
from mmada_lite.quant.search import Method
from mmada_lite.quant.work import Work
from mmada_lite.settings import ImageSettings, TextSettings
from mmada_lite.vocabulary import Tokenizer

Report = Callable[[str], None]


def find_codes(
    checkpoint: Checkpoint,
    folded: Folded,
    method: Method,
    forms: dict[str, Form],
    work: Work,
    request: Request,
    given: list[Prompt] | None,
    report: Report,
) -> None:
    """Fill the work folder with the codes of every layer and head, from where it stands."""
    if not work.has("samples"):
        _check_weights(checkpoint, report)
    from mmada_lite.quant.layerwise import prepare_layers

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
    from mmada_lite.verbs.info import memory_available

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
