"""The random model in llama.cpp gives what it gives in torch. Skips where llama-cpp-python is not installed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmada_lite.bench.reference import torch_logits
from mmada_lite.bench.speed import llama
from mmada_lite.bench.speed.contestants import torch_model
from mmada_lite.export.synthetic import SIZES

TINY = SIZES["tiny"]


@pytest.mark.parametrize("kind", llama.KINDS)
def test_llama_cpp_computes_the_same_model(tmp_path: Path, kind: str) -> None:
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        pytest.importorskip(module, reason=f"needs {package}: pip install -e '.[llama]'")
    path = llama.cached_file(TINY, "tiny", kind, tmp_path)
    stood = path.stat().st_mtime_ns
    logits, reference = llama.logits_of(path, 32, 1), torch_logits(torch_model(TINY, torch.float32))
    for length, seed in ((24, 0), (7, 1)):  # a shorter row after a longer one: nothing of it is left
        tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, 192, (1, length)))
        with torch.inference_mode():
            found, wanted = logits(tokens, None).clone(), reference(tokens, None)
        assert found.shape == wanted.shape
        error = float((found - wanted).norm() / wanted.norm())
        assert error < {"q8_0": 0.02, "q4_0": 0.2}[kind]
        reversed_row = logits(tokens.flip(1), None)
        assert float((reversed_row - wanted).norm() / wanted.norm()) > 2 * error  # places and all tokens count
    assert llama.cached_file(TINY, "tiny", kind, tmp_path).stat().st_mtime_ns == stood
    assert not list(tmp_path.glob("*.partial"))
