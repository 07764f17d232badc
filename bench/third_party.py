"""What others make of the same model, run here by us: bitsandbytes and torch's own dynamic int8 on the torch model,
onnxruntime's own quantizers, optimum's dynamic int8 and OpenVINO on our graphs in fp32. What is not installed says how to
install it.

Each gives a denoiser and the bytes of what it stores for the transformer's matrices. Versions are those installed.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head
from mmada_lite.errors import Error
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import threads_of
from mmada_lite.ort.session import onnxruntime_package, open_session

if TYPE_CHECKING:
    from torch import nn

    from mmada_lite.train.model import MMaDA

_GRAPHS = ("backbone", "text_head", "image_head")


@dataclass(frozen=True, slots=True)
class ThirdParty:
    """A model that someone else rounded: bytes of backbone and heads as it stores them."""

    denoiser: Denoiser
    bytes: int


def candidates(checkpoint: Path, bundle: Path, scratch: Path, threads: int) -> Mapping[str, Callable[[], ThirdParty]]:
    """Name -> maker; bundle: the checkpoint exported in fp32 for the CPU. A maker raises Error where something is not
    installed. Two of onnxruntime's, rtn and k_quant, want an even number of blocks a column, and fail without."""
    makers = {f"bitsandbytes {kind}": partial(bitsandbytes, checkpoint, bundle, kind) for kind in ("int8", "nf4")}
    for algorithm, block in product(("rtn", "hqq", "k_quant", "default"), (32, 64, 128)):
        own = scratch / f"ort-{algorithm}-{block}"
        makers[f"onnxruntime {algorithm} b{block}"] = partial(nbits, bundle, own, algorithm, block, threads)
    return makers | {"optimum dynamic int8": partial(optimum, bundle, scratch / "optimum", threads)}


def bitsandbytes(checkpoint: Path, bundle: Path, kind: str) -> ThirdParty:
    """Every Linear of the torch model, the head too, in LLM.int8() or NF4 (blocks of 64, absmax in float32)."""
    need("bitsandbytes")
    import torch
    from torch import nn

    from mmada_lite.train.denoiser import TorchDenoiser
    from mmada_lite.train.model import MMaDA

    model, vocabulary = MMaDA.load(checkpoint), Bundle.open(bundle).vocabulary
    first = vocabulary.image_code_offset
    size = quantize_blocks(model, kind)
    head = model.transformer.ff_out
    codes = slice(first, first + vocabulary.codebook_size)
    part = nn.Linear(head.in_features, vocabulary.codebook_size, bias=False)
    part.weight = nn.Parameter(head.weight.data[codes].clone())
    heads = {"text": quantized_linear(head, kind), "image": quantized_linear(part, kind)}
    size += _stored(head.weight.shape, kind) + _stored(part.weight.shape, kind)

    class Quantized(TorchDenoiser):
        def _logits(self, head: Head, hidden: Floats, mix: Floats) -> torch.Tensor:
            states = torch.einsum("nr,rqd->nqd", self._tensor(mix), self._tensor(hidden))
            return heads[head](states).float()  # type: ignore[no-any-return]

    return ThirdParty(Quantized(model.eval(), codes), size)


def quantize_blocks(model: "MMaDA", kind: str) -> int:
    """Put bitsandbytes' layers in place of every Linear of the model's blocks; returns the bytes that they store."""
    from torch import nn

    size = 0
    for block in model.transformer.blocks:
        for name, linear in list(block.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(block, name, quantized_linear(linear, kind))
                size += _stored(linear.weight.shape, kind)
    return size


def quantized_linear(linear: "nn.Linear", kind: str) -> "nn.Module":
    """One Linear as bitsandbytes stores and multiplies it, in eval(): in train() its int8 would round weights alone, and not
    activations as LLM.int8() does. kind: int8 or nf4."""
    import bitsandbytes as bnb
    import torch

    made: nn.Module
    weight = linear.weight.data
    if kind == "int8":
        made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=6.0)
        made.weight = bnb.nn.Int8Params(weight.to(torch.float16), requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.LinearNF4(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    return made.to("cpu").eval()


def _stored(shape: Any, kind: str) -> int:
    """int8 with a float32 scale a column; nf4 with a float32 scale for 64 weights."""
    count = int(np.prod(tuple(shape)))
    return count + 4 * int(shape[0]) if kind == "int8" else count // 2 + 4 * (-(-count // 64))


def nbits(bundle: Path, scratch: Path, algorithm: str, block: int, threads: int) -> ThirdParty:
    """onnxruntime.quantization's MatMulNBits quantizer, 4 bits, symmetric where it lets us choose. It is given a file, and so a
    copy of its own: it rewrites the model that it is given, and a second one on the same object would do nothing."""
    need("onnx_ir", "onnx-ir")
    onnxruntime_package()  # with its telemetry off
    from onnxruntime.quantization import matmul_nbits_quantizer as own

    configs = {
        "rtn": lambda: own.RTNWeightOnlyQuantConfig(),
        "k_quant": lambda: own.KQuantWeightOnlyQuantConfig(),
        "hqq": lambda: own.HQQWeightOnlyQuantConfig(block_size=block),
        "default": lambda: own.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4),
    }

    def convert(source: Path, target: Path) -> None:
        quantizer = own.MatMulNBitsQuantizer(str(source), block_size=block, accuracy_level=4, algo_config=configs[algorithm]())
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=False)

    return _converted(bundle, scratch, convert, threads)


def optimum(bundle: Path, scratch: Path, threads: int) -> ThirdParty:
    """optimum's ORTQuantizer, dynamic int8 by its setting for AVX512-VNNI, a scale per column."""
    need("optimum.onnxruntime", "optimum-onnx")
    onnxruntime_package()  # with its telemetry off
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    how = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True, operators_to_quantize=["MatMul"])

    def convert(source: Path, target: Path) -> None:
        ORTQuantizer(source).quantize(save_dir=target.parent, quantization_config=how, file_suffix="made")
        (target.parent / f"{source.stem}_made.onnx").rename(target)

    return _converted(bundle, scratch, convert, threads)


def openvino(bundle: Path, threads: int, *, int8: bool) -> Denoiser:
    """OpenVINO on our fp32 graphs as they are, in bf16 where the processor has it; int8: weights rounded by NNCF to int8, a
    scale a column, activations left alone."""
    from mmada_lite.ort import openvino as runtime

    if (what := runtime.lacking()) is not None:
        raise Error(what)
    change: Callable[[Any], Any] = lambda model: model  # noqa: E731
    if int8:
        need("nncf")
        with runtime.untracked():
            import nncf

        change = partial(nncf.compress_weights, mode=nncf.CompressWeightsMode.INT8_SYM)
    opened, how = Bundle.open(bundle), runtime.Compiling("openvino", threads, "bf16")
    sessions: dict[str, Any] = {name: runtime.Session(opened.graph_path(name), how, change) for name in _GRAPHS}
    sessions["embedder"] = open_session(opened.graph_path("embedder"), choose_device("cpu"), 1)
    shape = opened.architecture
    return OnnxDenoiser(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim)


def dynamic_int8(model: "MMaDA") -> "MMaDA":
    """Every Linear of the torch model, the head too, by torch's own quantize_dynamic, with its engine for this processor."""
    import torch
    from torch.ao.quantization import quantize_dynamic

    engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
    torch.backends.quantized.engine = engine
    made: MMaDA = quantize_dynamic(  # type: ignore[no-untyped-call]
        model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
    )
    return made


class _LogitsAlone(OnnxDenoiser):
    """Over heads that were cut down to their logits."""

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        (logits,) = self._run(f"{head}_head", ["logits"], {"hidden": hidden, "mix": mix})
        return logits  # type: ignore[no-any-return]


def _converted(bundle: Path, scratch: Path, convert: Callable[[Path, Path], None], threads: int) -> ThirdParty:
    """Sessions over the converted graphs; the embedder stays as it is. Of the heads the logits alone are converted: some of
    these quantizers do not understand the branches behind them."""
    import onnx.utils

    opened, device, size = Bundle.open(bundle), choose_device("cpu"), 0
    scratch.mkdir(parents=True, exist_ok=True)
    sessions = {"embedder": open_session(opened.graph_path("embedder"), device, threads_of("embedder", threads))}
    for name in _GRAPHS:
        source, target = scratch / f"{name}-plain.onnx", scratch / f"{name}.onnx"
        model = onnx.load(str(opened.graph_path(name)))
        cut = onnx.utils.Extractor(model).extract_model(["hidden", "mix"], ["logits"]) if name.endswith("head") else model
        onnx.save(cut, str(source))
        convert(source, target)
        size += sum(path.stat().st_size for path in scratch.glob(f"{name}.onnx*"))
        sessions[name] = open_session(target, device, threads)
    shape = opened.architecture
    return ThirdParty(_LogitsAlone(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim), size)


def need(module: str, package: str | None = None) -> None:
    """Raises Error with the line that installs it when a module is absent."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise Error(f"{module} is not installed; pip install {package or module}")
