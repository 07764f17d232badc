"""llama.cpp in the benchmark of peers: the random model as the GGUF file that it reads, and its forward over a whole row.

llama.cpp knows LLaDA, which has MMaDA's transformer: no causal mask, all rows at every step, no cache. What its own
llama-diffusion-cli asks at a step is asked here: every row's logits over the whole vocabulary. The package `gguf`, llama.cpp's
own, writes the file and rounds the matrices.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmada_lite.bench import third_party
from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.synthetic import RandomTensors, Size, config_of

KINDS = ("q8_0", "q4_0")  # blocks of 32 weights with one scale, eight or four bits
_ROOT = "model.transformer"
_MATRICES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "attn_out": "attn_output",
    "ff_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "ff_out": "ffn_down",
}
_NORMS = {"attn_norm": "attn_norm", "ff_norm": "ffn_norm"}
Logits = Callable[[Tensor, Tensor | None], Tensor]


def needed() -> None:
    """Raises Error with the line that installs what is absent."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        third_party.need(module, package)


def cached_file(size: Size, name: str, kind: str, work: Path) -> Path:
    """The random model of a size in the folder `work`: there, or made now, whole or not at all."""
    path = work / f"{name.lower()}-{kind}.gguf"
    if not path.is_file():
        partial = path.with_name(f"{path.name}.partial")
        work.mkdir(parents=True, exist_ok=True)
        write(config_of(size), partial, kind)
        partial.replace(path)
    return path


def write(config: TransformerConfig, path: Path, kind: str) -> None:
    """Random weights in a GGUF file; norms stay in float32. Queries and keys have their channels in turn (0, half, 1, half +
    1, ...), which is how llama.cpp's rotary embedding reads them."""
    import gguf

    stored = gguf.GGMLQuantizationType[kind.upper()]
    source = RandomTensors(config.expected_tensors())
    writer = gguf.GGUFWriter(path, "llada", use_temp_file=True)
    writer.add_context_length(config.max_sequence_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.mlp_hidden_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_causal_attention(False)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, tensor: str, heads: int = 0) -> None:
        values = np.asarray(source.read(f"{_ROOT}.{tensor}.weight"), np.float32)
        if heads:
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, stored), raw_dtype=stored)

    def norm(name: str, tensor: str) -> None:
        writer.add_tensor(f"{name}.weight", np.asarray(source.read(f"{_ROOT}.{tensor}.weight"), np.float32))

    matrix("token_embd", "wte")
    matrix("output", "ff_out")
    norm("output_norm", "ln_f")
    for layer in range(config.n_layers):
        for ours, theirs in _MATRICES.items():
            heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(ours, 0)
            matrix(f"blk.{layer}.{theirs}", f"blocks.{layer}.{ours}", heads)
        for ours, theirs in _NORMS.items():
            norm(f"blk.{layer}.{theirs}", f"blocks.{layer}.{ours}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits_of(path: Path, longest: int, threads: int) -> Logits:
    """A forward over one row [1, L] of at most `longest` tokens -> logits [1, L, V]. The model stays open with it."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise Error(f"llama.cpp cannot open {path}; this version of it may not know LLaDA")
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = longest
    wanted.n_threads = wanted.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, wanted)
    if not context:
        raise Error(f"llama.cpp gives no context of {longest} tokens for {path}")
    columns = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(longest, 0, 1)

    def logits(tokens: Tensor, kept: Tensor | None) -> Tensor:
        (row,) = tokens.tolist()
        _fill(batch, row)
        if llama_cpp.llama_decode(context, batch):
            raise Error(f"llama.cpp failed on a row of {len(row)} tokens")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(1, len(row), columns))
        return torch.from_numpy(logits)

    logits.keeps = quiet  # type: ignore[attr-defined]  # a callback of C lives as long as what calls it
    return logits


def _fill(batch: Any, row: list[int]) -> None:
    """One sequence, its logits wanted at every position."""
    batch.n_tokens = len(row)
    for position, token in enumerate(row):
        batch.token[position], batch.pos[position], batch.n_seq_id[position] = token, position, 1
        batch.seq_id[position][0], batch.logits[position] = 0, 1
