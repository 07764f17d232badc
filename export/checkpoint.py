"""What a published checkpoint must look like: the configurations and the name and shape of every tensor they imply.

Options of the reference that change its arithmetic and that we do not build are refused by name. This file computes nothing
and knows neither torch nor ONNX. The image tokenizer's half is `codec_vq`, reading and writing the bytes is
`safetensors_io`; what others need of both is re-exported here, so that this is the one name to import from.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from mmada_lite.errors import Error
from mmada_lite.export.codec_vq import Tower, VQConfig, require_numbers
from mmada_lite.export.safetensors_io import Tensors, TensorSource, read_json, save_tensors

__all__ = ["TensorSource", "Tensors", "Tower", "TransformerConfig", "VQConfig", "read_json", "save_tensors"]

SIDECAR = "mmada_lite.json"  # beside the weights: a model's name and its default settings
# Option of the reference -> the values that mean what we compute; the first is written by to_json. None: not set.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (None, False),
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_scaling": (None,),
    "scale_logits": (False,),
    "tie_word_embeddings": (False,),
    "w_clip_vit": (False,),
    "weight_tying": (False,),
}
# Absent, these would mean something else in the reference than what we compute.
_MUST_BE_SAID = ("activation_type", "block_type", "layer_norm_type", "rope")
_NOT_WRITTEN = ("clip_qkv", "rope_scaling")
# Keys of the reference that do not change a forward pass; written so that its own loader accepts our folders.
_INERT: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "architectures": ["MMadaModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm_with_affine": True,
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "gradient_checkpointing": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "llm_model_path": "",
    "mlp_ratio": 4,
    "model_type": "mmada",
    "num_new_special_tokens": 0,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "torch_dtype": "float32",
    "use_cache": False,
}


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The transformer's shape. vocab_size counts the rows of the embedding: text, gap and image codes together."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    mask_token_id: int
    eos_token_id: int
    max_sequence_length: int
    codebook_size: int
    llm_vocab_size: int
    num_vq_tokens: int

    def __post_init__(self) -> None:
        require_numbers(self, "config.json", may_be_zero=("mask_token_id", "eos_token_id"))
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise Error(f"config.json: d_model {self.d_model} does not split into {self.n_heads} (n_heads) heads of even size")
        if self.n_heads % self.n_kv_heads:
            raise Error(f"config.json: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if max(self.mask_token_id, self.eos_token_id) >= self.vocab_size:
            raise Error(f"config.json: mask_token_id or eos_token_id is not below the vocabulary size {self.vocab_size}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        return cls.from_json(read_json(Path(folder) / "config.json"))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From the reference's config.json. Raises Error for an option that we do not build or a key that is absent."""
        _refuse_unsupported(content)
        d_model, n_heads = _need(content, "d_model"), _need(content, "n_heads")
        mlp_ratio = _first(content, "mlp_ratio", default=4)
        rows = _first(content, "embedding_size", "vocab_size")
        return cls(
            d_model=d_model,
            n_layers=_need(content, "n_layers"),
            n_heads=n_heads,
            n_kv_heads=_first(content, "n_kv_heads", default=n_heads),
            mlp_hidden_size=_first(content, "mlp_hidden_size", default=mlp_ratio * d_model),
            vocab_size=rows,
            rope_theta=_need(content, "rope_theta"),
            rms_norm_eps=_first(content, "rms_norm_eps", default=1e-5),
            mask_token_id=_need(content, "mask_token_id"),
            eos_token_id=_need(content, "eos_token_id"),
            max_sequence_length=_need(content, "max_sequence_length"),
            codebook_size=_first(content, "codebook_size", default=8192),
            llm_vocab_size=_first(content, "llm_vocab_size", default=rows),
            num_vq_tokens=_first(content, "num_vq_tokens", default=1024),
        )

    def to_json(self) -> dict[str, Any]:
        """Every key that the reference's config.json holds."""
        options = {key: values[0] for key, values in _SUPPORTED.items() if key not in _NOT_WRITTEN}
        rows = {"embedding_size": self.vocab_size, "new_vocab_size": self.vocab_size}
        return _INERT | options | rows | {"pad_token_id": self.eos_token_id} | asdict(self)

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor; matrices are (out, in)."""
        d, kv, mlp = self.d_model, self.n_kv_heads * self.head_dim, self.mlp_hidden_size
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (d,),
            "q_proj": (d, d),
            "k_proj": (kv, d),
            "v_proj": (kv, d),
            "attn_out": (d, d),
            "ff_norm": (d,),
            "ff_proj": (mlp, d),
            "up_proj": (mlp, d),
            "ff_out": (d, mlp),
        }
        root, table = "model.transformer", (self.vocab_size, d)
        blocks = {f"{root}.blocks.{n}.{name}.weight": block[name] for n in range(self.n_layers) for name in block}
        return {f"{root}.wte.weight": table, **blocks, f"{root}.ln_f.weight": (d,), f"{root}.ff_out.weight": table}


def _refuse_unsupported(content: Mapping[str, Any]) -> None:
    for key in _MUST_BE_SAID:
        _need(content, key)
    for key, values in _SUPPORTED.items():
        given = content.get(key, values[0])
        if given not in values:
            raise Error(f"config.json: {key} = {given!r} is not supported; mmada_lite builds models with {key} = {values[0]!r}")


def _need(content: Mapping[str, Any], key: str) -> Any:
    if content.get(key) is None:
        raise Error(f"config.json: {key} is missing; take the config.json that was published with these weights")
    return content[key]


def _first(content: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    """The first key that is set; the default, or an Error about the last key when there is none."""
    for key in keys:
        if content.get(key) is not None:
            return content[key]
    return default if default is not None else _need(content, keys[-1])
