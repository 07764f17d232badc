"""Weights in bf16: half of fp32's bytes, and the numbers of the reference over weights that torch rounded so."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from recorded import recorded_vocabulary
from safetensors.numpy import load_file
from test_quantized_export import logits_of, reference

from mmada_lite.bench.reference import torch_logits
from mmada_lite.bundle import Bundle
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.train.model import MMaDA


@pytest.mark.parametrize("case", ["mha", "gqa"])
def test_bf16_is_the_reference_in_bf16_weights(golden: Path, case: str, tmp_path: Path) -> None:
    """In fp32, torch over matrices that torch rounded to bf16 gives the same logits; both targets do."""
    source = golden / "llm" / case
    recorded, model = load_file(source / "forward.safetensors"), MMaDA.load(source)
    kept = [(recorded["input_ids"][row : row + 1, mask.astype(bool)]) for row, mask in enumerate(recorded["attention_mask"])]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(weight.bfloat16().float())
        expected = np.concatenate([torch_logits(model)(torch.from_numpy(row), None)[0].numpy() for row in kept])
    for target in ("cpu", "openvino"):
        folder, words = tmp_path / target, recorded_vocabulary(source)
        export_checkpoint(source, folder, precision="bf16", target=target, vocabulary=words)  # type: ignore[arg-type]
        made = logits_of(folder, recorded)
        np.testing.assert_allclose(made, expected, atol=2e-4)
        assert 1e-3 < np.abs(made - reference(recorded)).max() < 1  # and they are not those of fp32


def test_bf16_takes_half_of_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "bf16"):
        bundle = Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / precision, precision=precision))  # type: ignore[arg-type]
        sizes[precision] = {name: group.bytes or 0 for name, group in bundle.quantization.items()}
        for name in bundle.graphs:
            onnx.checker.check_model(str(bundle.graph_path(name)), full_check=True)
    for name in ("embedder", "text_head", "image_head"):
        assert sizes["fp32"][name] == 2 * sizes["bf16"][name]
