"""The transformer in torch: the reference for parity, calibration and training, under the reference's parameter names.

It knows nothing of prompts, losses, sampling or ONNX. Attention is bidirectional and needs no mask; `bias` exists for
parity with the reference's padded batches only. Axis letters: B rows, W window, Q queried positions, P past, H heads,
D head size.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmada_lite.export.checkpoint import Tensors, TensorSource, TransformerConfig, save_tensors

KeyValue = tuple[Tensor, Tensor]  # rotated keys and values, each [B, Hkv, length, D]


class Output(NamedTuple):
    """What one forward gives. `states` (asked for by keep_states) is the input of each block, then the normed output."""

    hidden: Tensor  # [B, Q, d_model] after the final norm
    present: list[KeyValue]  # of the window, one per layer
    states: list[Tensor]  # n_layers + 1 of [B, W, d_model], or empty


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed: Tensor = self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return normed


def rotation(positions: Tensor, head_dim: int, theta: float) -> KeyValue:
    """Cosine and sine [B, 1, W, D/2] in float32 of positions [B, W]; the frequency of pair i is theta^(-2i/D)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[:, None, :, None].float() * (1.0 / theta**exponent)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, H, W, D], half-split: element i is paired with element i + D/2. Computed in float32, returned as x came."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention, all [B, H, length, D], scaled by 1/sqrt(D); bias is added to the scores."""
    if bias is None and q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # Training on a CPU: the fused backward is 2 to 6 times slower than plain products at 64 to 256 positions (measured).
        scores: Tensor = (q * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        return scores.softmax(-1) @ values
    return F.scaled_dot_product_attention(q, keys, values, None if bias is None else bias.to(q.dtype))


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """Of x [B or 1, W, D] the positions `rows` [B, Q]: [B, Q, D]."""
    return x.expand(len(rows), -1, -1).gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, mlp = config.d_model, config.mlp_hidden_size
        self.head_dim = config.head_dim
        self.repeats = config.n_heads // config.n_kv_heads
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(d, config.n_kv_heads * config.head_dim, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_proj = nn.Linear(d, mlp, bias=False)
        self.up_proj = nn.Linear(d, mlp, bias=False)
        self.ff_out = nn.Linear(mlp, d, bias=False)

    def forward(
        self, x: Tensor, angles: KeyValue, past: KeyValue | None, bias: Tensor | None, rows: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:  # x: [B, W, d_model]; of the positions `rows` [B, Q], where given, all [B, Q, d_model]
        normed = self.attn_norm(x)
        k, v = self.heads(self.k_proj(normed)), self.heads(self.v_proj(normed))
        k = rotate(k, *angles)
        if rows is not None:
            x, normed = pick(x, rows), pick(normed, rows)
            angles = (pick(angles[0][:, 0], rows)[:, None], pick(angles[1][:, 0], rows)[:, None])
            bias = None if bias is None else pick(bias[:, 0], rows)[:, None]
        q = rotate(self.heads(self.q_proj(normed)), *angles)
        keys, values = (k, v) if past is None else (torch.cat((past[0], k), 2), torch.cat((past[1], v), 2))
        if self.repeats > 1:  # each key head serves a run of consecutive query heads
            keys, values = keys.repeat_interleave(self.repeats, 1), values.repeat_interleave(self.repeats, 1)
        x = x + self.attn_out(attend(q, keys, values, bias).transpose(1, 2).flatten(2))
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed)), (k, v)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)  # [B, W, H*D] -> [B, H, W, D]


class Transformer(nn.Module):
    """Nothing but the parts, under the reference's names; MMaDA runs them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = nn.Linear(config.d_model, config.vocab_size, bias=False)


class MMaDA(nn.Module):
    """Masked diffusion over text and image tokens: the logits at a position predict the token of that very position."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({"transformer": Transformer(config)})
        self.initialize()

    @property
    def transformer(self) -> Transformer:
        return cast(Transformer, self.model["transformer"])

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Normal 0.02; what is added to the residual stream is scaled down by sqrt(2 * layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = ".blocks." in name and name.endswith(("attn_out.weight", "ff_out.weight"))
                std = 0.02 / (2 * self.config.n_layers) ** 0.5 if into_residual else 0.02
                parameter.normal_(0.0, std, generator=generator)

    def forward(
        self,
        tokens: Tensor,  # int64 [B, W]
        positions: Tensor | None = None,  # int64 [B, W]; without: P, P+1, ...
        past: Sequence[KeyValue] | None = None,  # per layer, rotated keys and values [B, Hkv, P, D]
        rows: Tensor | None = None,  # int64 [B, Q], indices into the window; without: all of it
        bias: Tensor | None = None,  # [B, 1, W, P+W]: bool (false is masked) or float (added to the scores)
        keep_states: bool = False,
    ) -> Output:
        transformer = self.transformer
        if positions is None:
            start = past[0][0].shape[2] if past else 0
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
        angles = rotation(positions, self.config.head_dim, self.config.rope_theta)
        if bias is not None and bias.dtype == torch.bool:
            # Finite, so that a pad, which may attend to nothing, attends to everything (as in the reference) and is no NaN.
            lowest = torch.finfo(transformer.wte.weight.dtype).min
            bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill_(~bias, lowest)
        x = transformer.wte(tokens)  # [B, W, d_model]
        states: list[Tensor] = []
        present: list[KeyValue] = []
        for layer, block in enumerate(transformer.blocks):
            if keep_states:
                states.append(x)
            enough = rows if layer + 1 == len(transformer.blocks) and not keep_states else None  # of the last one
            x, keys_values = block(x, angles, past[layer] if past else None, bias, enough)
            present.append(keys_values)
        if keep_states:
            states.append(transformer.ln_f(x))
            x = x if rows is None else pick(x, rows)
        return Output(transformer.ln_f(x), present, states)

    def hidden_at(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Hidden states [chosen positions, d_model] of tokens [B, W], where `chosen` [B, W] is true: what a loss needs, without
        the last block of columns that hold none (of a question, all but its answer)."""
        columns = chosen.any(0).nonzero()[:, 0]
        columns = columns if len(columns) else columns.new_zeros(1)
        hidden: Tensor = self(tokens, rows=columns.expand(len(tokens), -1)).hidden[chosen[:, columns]]
        return hidden

    def logits(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        """Hidden states [..., d_model] -> logits [..., V]; `columns` computes a contiguous part of the vocabulary only."""
        weight = self.transformer.ff_out.weight
        return F.linear(hidden, weight if columns is None else weight[columns])

    @classmethod
    def load(cls, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Self:
        """From a Hugging Face folder, tensor by tensor: the memory of the model itself plus one tensor."""
        source, config = TensorSource.open(folder), TransformerConfig.load(folder)
        source.verify(config.expected_tensors())
        with torch.device("meta"):
            model = cls(config)
        load_state(model, source, dtype)
        return model

    def save(self, folder: str | os.PathLike[str], dtype: str = "float32", max_shard_size: int | None = None) -> None:
        """Write config.json and safetensors in the reference's layout. dtype: float32, float16 or bfloat16."""
        save_state(self, folder, self.config.to_json() | {"torch_dtype": dtype}, dtype, max_shard_size)


def load_state(module: nn.Module, source: Tensors, dtype: torch.dtype) -> None:
    """Give every parameter and buffer of a module (built on the meta device) its tensor; integers keep their type."""
    state = {}
    for name in module.state_dict():
        tensor = torch.from_numpy(source.read(name))
        state[name] = tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor  # aligned as torch does
    module.load_state_dict(state, assign=True)
    module.requires_grad_(True)


def save_state(
    module: nn.Module, folder: str | os.PathLike[str], config: dict, dtype: str, max_shard_size: int | None = None
) -> None:
    tensors = ((name, tensor.detach().cpu()) for name, tensor in module.state_dict().items())
    arrays = ((name, (t.float() if t.is_floating_point() else t).contiguous().numpy()) for name, t in tensors)
    save_tensors(folder, arrays, config, dtype, max_shard_size)
