"""Changes of a checkpoint that leave what it computes as it is and make it easier to round: a rotation of the residual
stream and of the heads' values (as in QuaRot, arXiv 2404.00456), and factors that channels trade with the weights that
read them (SmoothQuant, arXiv 2211.10438). Both disappear into the weights.

RMSNorm without its scale commutes with a rotation, so norms hand their scales to the matrices behind them.
`TransformedTensors` is a view of a checkpoint: the same names and shapes, other numbers. Pure numpy; it knows no torch and
no format.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.formats import require_finite
from mmada_lite.quant.methods import Method

Floats = NDArray[np.float32]
ROOT = "model.transformer"
OUTPUT_MATRIX = f"{ROOT}.ff_out.weight"  # the heads', one row a token of the vocabulary
# Where factors are traded: the site -> the matrices that read it. What writes it is the norm before, or v_proj, or up_proj.
SITES: dict[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj"),
    "value": ("attn_out",),
    "feedforward": ("ff_proj", "up_proj"),
    "product": ("ff_out",),
}
_SITE_OF = {matrix: site for site, matrices in SITES.items() for matrix in matrices}
_NORM_BEFORE = {"attention": "attn_norm", "feedforward": "ff_norm"}


def rotation(size: int, seed: int) -> Floats:
    """A rotation [size, size] that spreads every channel over all: Hadamard's matrix for the power of two in the size, a
    random one for the odd rest, random signs."""
    rng = np.random.default_rng([seed, size])
    power = size & -size
    spread = np.ones((1, 1))
    while len(spread) < power:
        spread = np.block([[spread, spread], [spread, -spread]]) / math.sqrt(2)
    odd, _ = np.linalg.qr(rng.standard_normal((size // power, size // power)))
    signs = rng.choice([-1.0, 1.0], size)
    return (signs[:, None] * np.kron(odd, spread)).astype(np.float32)


def smoothing(activations: Floats, weights: Floats, alpha: float) -> Floats:
    """Factors [K] that inputs are divided by and the columns of weights multiplied: activations^alpha / weights^(1 - alpha),
    with the geometric mean taken out. activations, weights [K]: the largest magnitudes there. A silent channel: 1."""
    live = (activations > 0) & (weights > 0)
    if not live.any():
        return np.ones_like(activations)
    logs = np.zeros_like(activations, np.float64)
    logs[live] = alpha * np.log(activations[live].astype(np.float64)) - (1 - alpha) * np.log(weights[live].astype(np.float64))
    logs[live] -= logs[live].mean()
    return np.exp(np.clip(logs, -12, 12)).astype(np.float32)


@dataclass(slots=True)
class Transforms:
    """What is folded in. residual [D, D] and heads [Hd, Hd]: rotations of the residual stream and of the heads' values;
    factors: of smoothing, (layer, site) -> [K]."""

    residual: Floats | None = None
    heads: Floats | None = None
    factors: dict[tuple[int, str], Floats] = field(default_factory=dict)


def transforms_for(method: Method, config: TransformerConfig, seed: int) -> Transforms:
    """The rotations of a method; factors are found layer by layer."""
    if not method.rotate:
        return Transforms()
    return Transforms(rotation(config.d_model, seed), rotation(config.head_dim, seed))


class TransformedTensors:
    """A checkpoint's tensors with the transforms folded into them; `read` gives rows as `TensorSource.read` does.

    Matrices whose outputs are mixed are read whole (one at a time is kept); of the others only the rows that are asked for.
    Raises Error, naming the tensor, when one holds what is no number.
    """

    def __init__(self, source: Tensors, config: TransformerConfig, transforms: Transforms) -> None:
        self.source, self.config, self.transforms = source, config, transforms
        self._kept: tuple[str, Floats] | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        layer, part = layer_and_part(name)
        if len(self.shape(name)) == 1:
            return self._norm(name, layer, part)[rows or slice(None)]
        mix = self._outputs(layer, part)
        if mix is None:
            return self._inputs(self._original(name, rows), layer, part)
        if self._kept is None or self._kept[0] != name:
            self._kept = None
            self._kept = name, mix(self._inputs(self._original(name, None), layer, part))
        return self._kept[1][rows or slice(None)]

    def forget(self) -> None:
        """Drop the matrix that is kept, and all that hung on factors that were just set."""
        self._kept = None

    def _original(self, name: str, rows: slice | None) -> Floats:
        values = np.asarray(self.source.read(name, rows), np.float32)
        require_finite(values, name)
        return values

    def _norm(self, name: str, layer: int | None, part: str) -> Floats:
        scale: np.ndarray = self._original(name, None)
        if self.transforms.residual is not None:
            scale = np.ones_like(scale)
        for site, norm in _NORM_BEFORE.items():
            if norm == part and layer is not None and (factors := self.transforms.factors.get((layer, site))) is not None:
                scale = np.divide(scale, factors).astype(np.float32)
        return scale

    def _inputs(self, matrix: np.ndarray, layer: int | None, part: str) -> np.ndarray:
        """What is folded in on the side of the inputs, [n, K] -> [n, K]."""
        residual, site = self.transforms.residual, None if layer is None else _SITE_OF.get(part)
        if part == "wte":
            return matrix if residual is None else matrix @ residual
        if residual is not None and (layer is None or site in _NORM_BEFORE):
            norm = "ln_f" if layer is None else f"blocks.{layer}.{_NORM_BEFORE[str(site)]}"
            matrix = (matrix * self._original(f"{ROOT}.{norm}.weight", None)) @ residual
        if site == "value" and self.transforms.heads is not None:
            size = self.config.head_dim
            matrix = (matrix.reshape(len(matrix), -1, size) @ self.transforms.heads).reshape(len(matrix), -1)
        factors = None if layer is None or site is None else self.transforms.factors.get((layer, site))
        return matrix if factors is None else matrix * factors

    def _outputs(self, layer: int | None, part: str) -> Callable[[Floats], Floats] | None:
        """What is folded in on the side of the outputs, [N, K] -> [N, K]; None: nothing that mixes them."""
        transforms = self.transforms
        if layer is None:
            return None
        if part in ("attn_out", "ff_out"):
            residual = transforms.residual
            return None if residual is None else lambda matrix: residual.T @ matrix
        factors = transforms.factors.get((layer, {"v_proj": "value", "up_proj": "product"}.get(part, "")))
        heads = transforms.heads if part == "v_proj" else None
        if factors is None and heads is None:
            return None
        if part == "v_proj" and factors is not None:
            factors = by_key_head(factors, self.config)[:, 0].reshape(-1)
        return lambda matrix: _divided(_rotated(matrix, heads), factors)


def by_key_head(channels: Floats, config: TransformerConfig) -> Floats:
    """Numbers of attn_out's inputs [D] by the key head that feeds them: [Hkv, heads that share it, Hd]."""
    return channels.reshape(config.n_kv_heads, -1, config.head_dim)


def layer_and_part(name: str) -> tuple[int | None, str]:
    """`model.transformer.blocks.3.q_proj.weight` -> (3, "q_proj"); `model.transformer.wte.weight` -> (None, "wte")."""
    path = name.removeprefix(f"{ROOT}.").removesuffix(".weight").split(".")
    return (int(path[1]), path[2]) if path[0] == "blocks" else (None, path[0])


def _rotated(matrix: Floats, heads: Floats | None) -> Floats:
    if heads is None:
        return matrix
    return (heads.T @ matrix.reshape(-1, len(heads), matrix.shape[1])).reshape(matrix.shape)


def _divided(matrix: Floats, factors: Floats | None) -> Floats:
    return matrix if factors is None else matrix / factors[:, None]
