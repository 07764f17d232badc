"""How the numbers of a matrix are stored: formats as values, rounding to nearest, and the way back. Pure numpy, on any
chunk of rows.

A matrix here is a checkpoint's (N, K): N output columns of a Linear, one a row, K inputs along it. A block is some
consecutive inputs of one column that share a scale; the last block of a column may be shorter than the others. It
knows nothing of ONNX, of files, or of which layer a matrix belongs to; how codes lie in bytes is `packing`.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error

Family = Literal["fp32", "fp16", "int8", "int4"]
_BITS: dict[Family, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
BLOCKS = (32, 64, 128)
SMALLEST_SCALE = {"float16": np.float32(2.0**-24), "float32": np.finfo(np.float32).smallest_normal}


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix.

    block: inputs that share a scale; None, one scale for a whole column. symmetric: code 0 means 0; else every block has
    a zero point. int8 by columns is the format whose activations may be quantized too (dynamically, per token); every
    other one stores weights only. Raises Error for a combination that is no format of ours.
    """

    family: Family
    block: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        allowed: dict[Family, tuple[int | None, ...]] = {"int8": (None, *BLOCKS), "int4": BLOCKS}
        right = self.family in _BITS and self.block in allowed.get(self.family, (None,))
        if not right or not (self.symmetric or self.family == "int4"):
            raise Error(f"{self!r} is no format; use one of {', '.join(FORMATS)}")

    @property
    def name(self) -> str:
        block = f"-b{self.block}" if self.block else ""
        return f"{self.family}{block}{'' if self.symmetric else '-asym'}"

    @property
    def bits(self) -> int:
        return _BITS[self.family]

    @property
    def floating(self) -> bool:
        return self.family in ("fp32", "fp16")

    @property
    def dtype(self) -> str:
        """numpy's name of one number: of a floating format the weight, of an integer one the code."""
        return {"fp32": "float32", "fp16": "float16"}.get(self.family, "int8")

    @property
    def scale_dtype(self) -> str:
        """Scales of int4 are stored in half precision: at 8B that is 0.1 GB less, and 2^-11 of a step of 1/15 is nothing."""
        return "float16" if self.family == "int4" else "float32"

    @property
    def range(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def blocks(self, inputs: int) -> int:
        """Blocks in a column of `inputs` weights, the short last one counted."""
        return -(-inputs // self.block) if self.block else 1


FORMATS: dict[str, Format] = {}
for _made in (
    Format("fp32"),
    Format("fp16"),
    Format("int8"),
    *(Format("int8", block) for block in BLOCKS),
    *(Format("int4", block, symmetric) for symmetric in (True, False) for block in BLOCKS),
):
    FORMATS[_made.name] = _made


def format_named(name: str) -> Format:
    """The format called `name`. Raises Error that names the nearest one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(FORMATS)}"
        raise Error(f"no format is called {name!r}; {hint}")
    return FORMATS[name]


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows of a matrix as integers: weight = (code - zero) * scale.

    Codes and zeros are signed about the middle of the range, -8..7 or -128..127, whether the format is symmetric or not.
    """

    format: Format
    codes: NDArray[np.int8]  # [n, K]
    scales: NDArray[np.float32]  # [n, blocks], above zero, each exact in format.scale_dtype
    zeros: NDArray[np.int8] | None  # [n, blocks]; None: symmetric


def quantize(rows: np.ndarray, form: Format, name: str) -> Quantized:
    """Round rows [n, K] of the tensor `name` to the nearest codes; no weight is off by more than half its block's scale.

    The scale is the smallest for which that holds (symmetric), or maps the block's range, zero included, onto all codes
    (asymmetric). A block of zeros gets scale 1. Raises Error naming the tensor when it holds NaN or infinite numbers,
    or numbers too large for the scales' type.
    """
    require_finite(rows, name)
    return encode(rows, form, *fit(rows, form, name))


def fit(rows: np.ndarray, form: Format, name: str, shrink: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.int8] | None]:
    """Scales and zero points [n, blocks] that cover `shrink` of each block's range; what lies beyond is cut off."""
    assert not form.floating, f"{form.name} holds no codes"
    blocks = _blocked(np.asarray(rows, np.float32), form)  # [n, blocks, block]
    high, low = np.maximum(blocks.max(-1), 0), np.minimum(blocks.min(-1), 0)  # [n, blocks]
    if shrink != 1:
        high, low = high * np.float32(shrink), low * np.float32(shrink)
    lowest, highest = form.range
    if form.symmetric:
        wanted = np.maximum(high / np.float32(highest + 0.5), low / np.float32(lowest - 0.5))
        return _stored_scales(wanted, form, name), None
    count = np.float32(highest - lowest)
    scales = _stored_scales(high / count - low / count, form, name)
    return scales, np.clip(np.rint(lowest - low / scales), lowest, highest).astype(np.int8)


def encode(rows: np.ndarray, form: Format, scales: NDArray[np.float32], zeros: NDArray[np.int8] | None = None) -> Quantized:
    """Rows [n, K] as the codes nearest to them under given scales and zero points [n, blocks]."""
    steps = _blocked(np.asarray(rows, np.float32), form) / scales[..., None]
    np.rint(steps, out=steps)
    if zeros is not None:
        steps += zeros[..., None]
    codes = np.clip(steps, *form.range, out=steps).astype(np.int8).reshape(rows.shape[0], -1)
    return Quantized(form, codes[:, : rows.shape[1]], scales, zeros)


def dequantize(held: Quantized) -> NDArray[np.float32]:
    """The weights [n, K] that the codes stand for."""
    blocks = _blocked(held.codes, held.format).astype(np.float32)
    if held.zeros is not None:
        blocks -= held.zeros[..., None]
    whole: NDArray[np.float32] = (blocks * held.scales[..., None]).reshape(held.codes.shape[0], -1)
    return whole[:, : held.codes.shape[1]]


def rounded(values: np.ndarray, form: Format, name: str) -> np.ndarray:
    """Values as a floating format stores them. Raises Error naming the tensor when it holds NaN, infinite numbers, or
    numbers beyond half precision."""
    assert form.floating, f"{form.name} is not a floating format"
    require_finite(values, name)
    with np.errstate(over="ignore"):
        stored = values.astype(form.dtype, copy=False)
    if form.family == "fp16" and not np.isfinite(stored).all():
        raise Error(f"{name} holds numbers beyond half precision; export it with --precision fp32")
    return stored


def require_finite(values: np.ndarray, name: str) -> None:
    """Raise an Error naming the tensor when it holds NaN or infinite numbers."""
    if not np.isfinite(values).all():
        what = "NaN" if np.isnan(values).any() else "infinite numbers"
        raise Error(f"{name} holds {what}: the training diverged or the file is damaged; use another checkpoint")


def _blocked(values: np.ndarray, form: Format) -> np.ndarray:
    """[n, K] -> [n, blocks, block], zeros behind a short last block."""
    rows, inputs = values.shape
    missing = form.blocks(inputs) * (form.block or inputs) - inputs
    padded = np.pad(values, ((0, 0), (0, missing))) if missing else values
    return padded.reshape(rows, form.blocks(inputs), -1)


def _stored_scales(scales: np.ndarray, form: Format, name: str) -> NDArray[np.float32]:
    """Scales as they are stored, rounded up so that no code is cut off; 1 for a block of zeros."""
    least = SMALLEST_SCALE[form.scale_dtype]
    wanted = np.where(scales > 0, np.maximum(scales, least), np.float32(1))
    with np.errstate(over="ignore"):
        stored = wanted.astype(form.scale_dtype)
        stored = np.where(stored < wanted, np.nextafter(stored, np.array(np.inf, stored.dtype)), stored)
    if not np.isfinite(stored).all():
        raise Error(f"{name} holds numbers too large for {form.name}; export it with --precision fp32")
    return stored.astype(np.float32)


Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]


def pack_blocks(codes: Codes, form: Format, block: int) -> Bytes:
    """Codes [n, K] -> bytes [n, blocks, block * bits / 8]; a short last block is filled with code 0."""
    rows, inputs = codes.shape
    count = -(-inputs // block)
    counted = _from_zero(np.pad(codes, ((0, 0), (0, count * block - inputs))), form.bits)
    return _joined(counted, form.bits).reshape(rows, count, -1)


def unpack_blocks(packed: Bytes, form: Format, inputs: int) -> Codes:
    """Bytes [n, blocks, bytes] -> codes [n, inputs]."""
    flat = _apart(packed.reshape(packed.shape[0], -1), form.bits)
    return _signed(flat, form.bits)[:, :inputs]


def pack_zeros(zeros: Codes, form: Format) -> Bytes:
    """Zero points [n, blocks] -> bytes [n, ceil(blocks * bits / 8)]; a missing last one is 0."""
    odd = zeros.shape[1] * form.bits % 8 != 0
    return _joined(_from_zero(np.pad(zeros, ((0, 0), (0, int(odd)))), form.bits), form.bits)


def unpack_zeros(packed: Bytes, form: Format, blocks: int) -> Codes:
    """Bytes [n, any] -> zero points [n, blocks]."""
    return _signed(_apart(packed, form.bits), form.bits)[:, :blocks]


def pack_pairs(codes: Codes) -> Bytes:
    """Four-bit codes [2m, K] -> bytes [m, K], whose transpose is ONNX INT4 [K, 2m]."""
    bits = codes.view(np.uint8) & np.uint8(15)
    return bits[0::2] | (bits[1::2] << np.uint8(4))


def unpack_pairs(packed: Bytes) -> Codes:
    """Bytes [m, K] -> four-bit codes [2m, K]."""
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).reshape(-1, packed.shape[1])
    return ((both ^ np.uint8(8)).view(np.int8) - np.int8(8)).astype(np.int8)  # the sign bit flipped, then 8 taken away


def _from_zero(codes: Codes, bits: int) -> Bytes:
    return (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)


def _signed(counted: Bytes, bits: int) -> Codes:
    return (counted.astype(np.int16) - (1 << bits - 1)).astype(np.int8)


def _joined(counted: Bytes, bits: int) -> Bytes:
    """Numbers [n, m] of `bits` bits -> bytes [n, m * bits / 8]."""
    return counted if bits == 8 else counted[:, 0::2] | (counted[:, 1::2] << np.uint8(4))


def _apart(packed: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return packed
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(packed.shape[0], -1)
