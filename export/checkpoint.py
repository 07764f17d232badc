"""What a published checkpoint must look like: the two configurations and the name and shape of every tensor they imply.

Options of the reference that change its arithmetic and that we do not build are refused by name. This file computes nothing and
knows neither torch nor ONNX; reading and writing the bytes is `safetensors_source`, re-exported here.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from mmada_lite.errors import Error
from mmada_lite.export.safetensors_source import TensorSource, read_json, save_tensors

__all__ = ["TensorSource", "Tower", "TransformerConfig", "VQConfig", "read_json", "save_tensors"]

# Option of the reference -> the values that mean what we compute. The first is written by to_json. None is "not set" in the reference.
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
        _require_numbers(self, may_be_zero=("mask_token_id", "eos_token_id"))
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise Error(f"config.json: d_model {self.d_model} does not split into n_heads {self.n_heads} heads of an even size")
        if self.n_heads % self.n_kv_heads:
            raise Error(f"config.json: n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if max(self.mask_token_id, self.eos_token_id) >= self.vocab_size:
            raise Error(f"config.json: mask_token_id or eos_token_id lies beyond the {self.vocab_size} rows of the embedding")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        return cls.from_json(read_json(Path(folder) / "config.json"))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From the reference's config.json. Raises Error for an option that we do not build, or a key that is absent."""
        _refuse_unsupported(content)
        d_model, n_heads = _need(content, "d_model"), _need(content, "n_heads")
        rows = _first(content, "embedding_size", "vocab_size")
        return cls(
            d_model=d_model,
            n_layers=_need(content, "n_layers"),
            n_heads=n_heads,
            n_kv_heads=_first(content, "n_kv_heads", default=n_heads),
            mlp_hidden_size=_first(content, "mlp_hidden_size", default=_first(content, "mlp_ratio", default=4) * d_model),
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
        derived = {"embedding_size": self.vocab_size, "new_vocab_size": self.vocab_size, "pad_token_id": self.eos_token_id}
        return _INERT | options | derived | asdict(self)

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor; matrices are (out, in)."""
        d, kv, mlp = self.d_model, self.n_kv_heads * self.head_dim, self.mlp_hidden_size
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (d,), "q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d),
            "ff_norm": (d,), "ff_proj": (mlp, d), "up_proj": (mlp, d), "ff_out": (d, mlp),
        }
        root = "model.transformer"
        ends = {f"{root}.wte.weight": (self.vocab_size, d), f"{root}.ln_f.weight": (d,), f"{root}.ff_out.weight": (self.vocab_size, d)}
        return ends | {f"{root}.blocks.{n}.{name}.weight": shape for n in range(self.n_layers) for name, shape in block.items()}


@dataclass(frozen=True, slots=True)
class Tower:
    """One half of the image tokenizer: base channels, their multiple per level (finest first) and residual blocks per level."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.ch, *self.ch_mult, *self.num_res_blocks)
        if not self.ch_mult or len(self.ch_mult) != len(self.num_res_blocks) or not all(type(n) is int and n > 0 for n in numbers):
            raise Error("vq config.json: ch_mult and num_res_blocks must be lists of equal length, of whole numbers above zero, and so must ch")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels per level, finest first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)


# The published folder's config.json names a class and nothing else: its constructor's defaults are these.
_PUBLISHED_ENCODER = Tower(128, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4))
_PUBLISHED_DECODER = Tower(128, (1, 1, 2, 2, 4), (4, 4, 3, 4, 3))


@dataclass(frozen=True, slots=True)
class VQConfig:
    """The image tokenizer's shape. resolution is the side, in pixels, of the pictures it is meant for."""

    encoder: Tower = _PUBLISHED_ENCODER
    decoder: Tower = _PUBLISHED_DECODER
    z_channels: int = 13
    resolution: int = 512
    group_norm_groups: int = 32
    group_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _require_numbers(self)
        if len(self.encoder.ch_mult) != len(self.decoder.ch_mult):
            raise Error("vq config.json: the encoder and the decoder have different numbers of levels")
        if odd := [n for n in {*self.encoder.channels, *self.decoder.channels, self.encoder.ch} if n % self.group_norm_groups]:
            raise Error(f"vq config.json: {min(odd)} channels do not split into group_norm_groups {self.group_norm_groups}")
        if self.resolution % self.downsample_factor:
            raise Error(f"vq config.json: resolution {self.resolution} is not a multiple of the downsampling factor {self.downsample_factor}")

    @property
    def codebook_size(self) -> int:
        return int(2**self.z_channels)

    @property
    def downsample_factor(self) -> int:
        return int(2 ** (len(self.encoder.ch_mult) - 1))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        return cls.from_json(read_json(Path(folder) / "config.json"))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From vq/config.json; what it does not say takes the published model's value. Raises Error where it contradicts itself."""
        if content.get("attn_resolutions", [5]) not in ([5], []):
            raise Error(f"vq config.json: attn_resolutions {content['attn_resolutions']} is not supported; attention is in the middle only")
        if content.get("double_z", False):
            raise Error("vq config.json: double_z is not supported; it must be false")
        config = cls(
            encoder=_tower(content, "encoder", _PUBLISHED_ENCODER),
            decoder=_tower(content, "decoder", _PUBLISHED_DECODER),
            **{key: content[key] for key in ("z_channels", "resolution", "group_norm_groups", "group_norm_eps") if key in content},
        )
        for key in ("codebook_size", "downsample_factor"):
            if content.get(key, implied := getattr(config, key)) != implied:
                raise Error(f"vq config.json: {key} is {content[key]}, but the other settings imply {implied}")
        return config

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"codebook_size": self.codebook_size, "downsample_factor": self.downsample_factor, "attn_resolutions": [5]}

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor and of the two buffers of the quantizer."""
        buffers = {"quantize.embedding": (self.codebook_size, self.z_channels), "quantize.power_vals": (self.z_channels,)}
        return dict(_encoder_tensors(self.encoder, self.z_channels)) | dict(_decoder_tensors(self.decoder, self.z_channels)) | buffers


_Named = Iterator[tuple[str, tuple[int, ...]]]


def _conv(name: str, out: int, into: int, kernel: int) -> _Named:
    yield f"{name}.weight", (out, into, kernel, kernel)
    yield f"{name}.bias", (out,)


def _norm(name: str, channels: int) -> _Named:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _residual(name: str, into: int, out: int) -> _Named:
    yield from _norm(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", out, into, 3)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out, 3)
    if into != out:
        yield from _conv(f"{name}.nin_shortcut", out, into, 1)


def _middle(name: str, channels: int) -> _Named:
    yield from _residual(f"{name}.block_1", channels, channels)
    yield from _norm(f"{name}.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{part}", channels, channels, 1)
    yield from _residual(f"{name}.block_2", channels, channels)


def _encoder_tensors(tower: Tower, z: int) -> _Named:
    channels = tower.ch
    yield from _conv("encoder.conv_in", channels, 3, 3)
    for level, (out, blocks) in enumerate(zip(tower.channels, tower.num_res_blocks, strict=True)):
        for block in range(blocks):
            yield from _residual(f"encoder.down.{level}.block.{block}", channels, out)
            channels = out
        if level + 1 < len(tower.ch_mult):
            yield from _conv(f"encoder.down.{level}.downsample.conv", channels, channels, 3)
    yield from _middle("encoder.mid", channels)
    yield from _norm("encoder.norm_out", channels)
    yield from _conv("encoder.conv_out", z, channels, 3)
    yield from _conv("encoder.quant_conv", z, z, 1)


def _decoder_tensors(tower: Tower, z: int) -> _Named:
    channels = tower.channels[-1]
    yield from _conv("decoder.post_quant_conv", z, z, 1)
    yield from _conv("decoder.conv_in", channels, z, 3)
    yield from _middle("decoder.mid", channels)
    for level in reversed(range(len(tower.ch_mult))):
        for block in range(tower.num_res_blocks[level]):
            yield from _residual(f"decoder.up.{level}.block.{block}", channels, tower.channels[level])
            channels = tower.channels[level]
        if level:
            yield from _conv(f"decoder.up.{level}.upsample.conv", channels, channels, 3)
    yield from _norm("decoder.norm_out", channels)
    yield from _conv("decoder.conv_out", 3, channels, 3)


def _tower(content: Mapping[str, Any], key: str, default: Tower) -> Tower:
    if key not in content:
        return default
    try:
        return Tower(content[key]["ch"], tuple(content[key]["ch_mult"]), tuple(content[key]["num_res_blocks"]))
    except (KeyError, TypeError):
        raise Error(f"vq config.json: {key} must be an object with ch, ch_mult and num_res_blocks") from None


def _refuse_unsupported(content: Mapping[str, Any]) -> None:
    for key in _MUST_BE_SAID:
        _need(content, key)
    for key, values in _SUPPORTED.items():
        if not any(content.get(key, values[0]) is value or content.get(key, values[0]) == value for value in values):
            raise Error(f"config.json: {key} = {content[key]!r} is not supported; mmada_lite builds models with {key} = {values[0]!r}")


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


def _require_numbers(config: TransformerConfig | VQConfig, may_be_zero: tuple[str, ...] = ()) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        kind = {int: "a whole number", float: "a number"}.get(field.type)  # type: ignore[call-overload]
        if kind is None:
            continue
        right = type(value) is int or (field.type is float and type(value) is float)
        if not right or value < 0 or (value == 0 and field.name not in may_be_zero):
            raise Error(f"config.json: {field.name} must be {kind} above zero, not {value!r}")
