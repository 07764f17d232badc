"""How the numbers of a matrix are stored: formats as values, rounding to nearest and the way back, and how codes lie in bytes.
Pure numpy, on any chunk of a matrix.

A matrix here is a checkpoint's (N, K): N outputs of a Linear, which the formats call columns, with K inputs each. A block is
some consecutive inputs of one column that share a scale; the last block of a column may be shorter than the others. Four-bit
codes are packed as onnxruntime and ONNX want them: two in a byte, the earlier in the low half, MatMulNBits' counted from zero
along the inputs of a column and TensorRT's INT4 in two's complement across outputs. It knows nothing of graphs, of files, or
of which layer a matrix belongs to.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Family = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4"]
_BITS: dict[Family, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}
BLOCKS = (32, 64, 128)
LARGEST = 65504.0  # of a weight in half precision; so of codes, whose products would overflow, and of norms and biases
LARGEST_WHOLE = 1e9  # of a matrix in float32, so that a product of two stays in it
LARGEST_FLOAT8 = 448.0
SMALLEST_SCALE = {"float16": np.float32(2.0**-24), "float32": np.finfo(np.float32).smallest_normal}


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a matrix.

    block: inputs that share a scale; None, one scale for a whole column. symmetric: code 0 means 0; else every block has
    a zero point. int8 by columns is the format whose activations may be quantized too (dynamically, per token); every
    other one stores weights only. The codes of fp8 are floats of eight bits (E4M3FN), with a scale a column. narrow: its codes
    stay within 63, so that two products of them and of uint8 activations fit 16 bits. Raises Error for a combination that is
    no format of ours.
    """

    family: Family
    block: int | None = None
    symmetric: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        allowed: dict[Family, tuple[int | None, ...]] = {"int8": (None, *BLOCKS), "int4": BLOCKS}
        right = self.family in _BITS and self.block in allowed.get(self.family, (None,))
        columns = self.family == "int8" and self.block is None
        if not right or not (self.symmetric or self.family == "int4") or (self.narrow and not columns):
            raise Error(f"{self!r} is no format; use one of {', '.join(FORMATS)}")

    @property
    def name(self) -> str:
        block = f"-b{self.block}" if self.block else ""
        return f"{self.family}{block}{'' if self.symmetric else '-asym'}{'-7bit' if self.narrow else ''}"

    @property
    def bits(self) -> int:
        """Of a stored weight or code."""
        return _BITS[self.family]

    @property
    def floating(self) -> bool:
        return self.family in ("fp32", "fp16", "bf16")

    @property
    def whole(self) -> bool:
        """Whether codes are whole numbers, which methods other than to nearest choose too."""
        return self.family in ("int8", "int4")

    @property
    def dtype(self) -> str:
        """numpy's name of one number: of a floating format the weight (of bf16 its bits, which numpy has no type for), of an
        integer one the code."""
        return {"fp32": "float32", "fp16": "float16", "bf16": "uint16"}.get(self.family, "int8")

    @property
    def onnx_type(self) -> str:
        """ONNX's name of it."""
        return {"bf16": "bfloat16", "fp8": "float8e4m3fn"}.get(self.family, self.dtype)

    @property
    def scale_dtype(self) -> str:
        """Scales of int4 are stored in half precision: at 8B that is 0.1 GB less, and 2^-11 of a step of 1/15 is nothing. Those
        of fp8 are multiplied in it."""
        return "float16" if self.family in ("int4", "fp8") else "float32"

    @property
    def range(self) -> tuple[int, int]:
        """The lowest and the highest code of integers."""
        if self.narrow:
            return -63, 63
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def blocks(self, inputs: int) -> int:
        """Blocks in a column of `inputs` weights, the short last one counted."""
        return -(-inputs // self.block) if self.block else 1


_ALL = (
    *(Format("fp32"), Format("fp16"), Format("bf16"), Format("int8"), Format("int8", narrow=True), Format("fp8")),
    *(Format("int8", block) for block in BLOCKS),
    *(Format("int4", block, symmetric) for symmetric in (True, False) for block in BLOCKS),
)
FORMATS: Mapping[str, Format] = MappingProxyType({fmt.name: fmt for fmt in _ALL})


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

    Codes and zeros are signed about the middle of the range, -8..7 or -128..127, whether the format is symmetric or not. Of fp8
    they are the bits of what is multiplied by the scale.
    """

    format: Format
    codes: NDArray[np.int8]  # [n, K]
    scales: NDArray[np.float32]  # [n, blocks], above zero, each exact in format.scale_dtype
    zeros: NDArray[np.int8] | None  # [n, blocks]; None: symmetric

    @classmethod
    def joined(cls, parts: "Sequence[Quantized]") -> "Quantized":
        """One matrix of consecutive chunks of the same format."""
        codes, scales = np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts])
        zeros = [part.zeros for part in parts if part.zeros is not None]
        return cls(parts[0].format, codes, scales, np.concatenate(zeros) if zeros else None)


def quantize(weights: np.ndarray, fmt: Format, name: str) -> Quantized:
    """Round weights [n, K] of the tensor `name` to the nearest codes; none is off by more than half its block's scale.

    The scale is the smallest for which that holds (symmetric), or maps the block's range, zero included, onto all codes
    (asymmetric). In fp8 it makes a column's largest weight `LARGEST_FLOAT8`, and a code is off by 1/16 of itself at most. A
    block of zeros gets scale 1. Raises Error naming the tensor when it holds NaN or infinite numbers, or numbers too large
    for the scales' type.
    """
    require_finite(weights, name)
    return encode(weights, fmt, *fit(weights, fmt, name))


def fit(
    weights: np.ndarray, fmt: Format, name: str, clip_ratio: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.int8] | None]:
    """Scales and zero points [n, blocks] that cover `clip_ratio` of each block's range; what lies beyond is cut off."""
    assert not fmt.floating, f"{fmt.name} holds no codes"
    blocks = _blocked(np.asarray(weights, np.float32), fmt)  # [n, blocks, block]
    high, low = np.maximum(blocks.max(-1), 0), np.minimum(blocks.min(-1), 0)  # [n, blocks]
    if clip_ratio != 1:
        high, low = high * np.float32(clip_ratio), low * np.float32(clip_ratio)
    if fmt.family == "fp8":
        return _stored_scales(np.maximum(high, -low) / np.float32(LARGEST_FLOAT8), fmt, name), None
    lowest, highest = fmt.range
    if fmt.symmetric:
        wanted = np.maximum(high / np.float32(highest + 0.5), low / np.float32(lowest - 0.5))
        return _stored_scales(wanted, fmt, name), None
    count = np.float32(highest - lowest)
    scales = _stored_scales(high / count - low / count, fmt, name)
    return scales, np.clip(np.rint(lowest - low / scales), lowest, highest).astype(np.int8)


def encode(weights: np.ndarray, fmt: Format, scales: NDArray[np.float32], zeros: NDArray[np.int8] | None = None) -> Quantized:
    """Weights [n, K] as the codes nearest to them under given scales and zero points [n, blocks]."""
    steps = _blocked(np.asarray(weights, np.float32), fmt) / scales[..., None]
    if fmt.family == "fp8":
        return Quantized(fmt, narrow_float8(steps).view(np.int8).reshape(weights.shape), scales, None)
    np.rint(steps, out=steps)
    if zeros is not None:
        steps += zeros[..., None]
    codes = np.clip(steps, *fmt.range, out=steps).astype(np.int8).reshape(weights.shape[0], -1)
    return Quantized(fmt, codes[:, : weights.shape[1]], scales, zeros)


def dequantize(quantized: Quantized) -> NDArray[np.float32]:
    """The weights [n, K] that the codes stand for."""
    outputs, inputs = quantized.codes.shape
    if quantized.format.family == "fp8":
        return _FLOAT8[quantized.codes.view(np.uint8)] * quantized.scales
    blocks = _blocked(quantized.codes, quantized.format).astype(np.float32)
    if quantized.zeros is not None:
        blocks -= quantized.zeros[..., None]
    weights: NDArray[np.float32] = (blocks * quantized.scales[..., None]).reshape(outputs, -1)
    return weights[:, :inputs]


def rounded(values: np.ndarray, fmt: Format, name: str) -> np.ndarray:
    """Values as a floating format stores them, bf16 as its bits. Raises Error naming the tensor when it holds NaN, infinite
    numbers, or numbers beyond half precision."""
    assert fmt.floating, f"{fmt.name} is not a floating format"
    require_finite(values, name, LARGEST if fmt.family == "fp16" else LARGEST_WHOLE)
    if fmt.family == "bf16":
        return narrow_bfloat16(values)
    return values.astype(fmt.dtype, copy=False)


def narrow_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16, rounded to nearest even; a NaN keeps its sign and becomes quiet."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40), rounded)


def narrow_float8(values: np.ndarray) -> Bytes:
    """float32 -> the bits of E4M3FN: a sign, four bits of exponent about 7, three of mantissa. Rounded to nearest even; what
    lies beyond `LARGEST_FLOAT8` becomes it. There may be no NaN."""
    sizes = np.abs(np.ascontiguousarray(values, np.float32))
    bits = sizes.view(np.uint32)
    normal = ((bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - np.uint32(120 << 3)
    small = np.rint(sizes * np.float32(512)).astype(np.uint32)  # in steps of 2^-9, which end where exponents begin
    codes: Bytes = np.minimum(np.where(sizes < np.float32(2.0**-6), small, normal), np.uint32(126)).astype(np.uint8)
    codes |= np.signbit(values).astype(np.uint8) << np.uint8(7)
    return codes


def _float8() -> NDArray[np.float32]:
    """What each of the 256 codes of E4M3FN stands for."""
    exponents, parts = np.divmod(np.arange(128), 8)
    sizes = np.where(exponents > 0, (8 + parts) * 2.0 ** (exponents - 10), parts * 2.0**-9)
    sizes[127] = np.nan
    return np.concatenate([sizes, -sizes]).astype(np.float32)


_FLOAT8 = _float8()


def require_finite(values: np.ndarray, name: str, largest: float = LARGEST) -> None:
    """Raise an Error naming the tensor when it holds NaN, infinite numbers, or larger ones than those that a format holds."""
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())  # both NaN where one number is
    if not np.isfinite([low, high]).all():
        what = "NaN" if np.isnan(low) else "infinite numbers"
        raise Error(f"{name} holds {what}: the training diverged or the file is damaged; use another checkpoint")
    if (most := max(high, -low)) > largest:
        hint = "use another checkpoint" if most > LARGEST_WHOLE else "--precision fp32 may hold a matrix of it"
        raise Error(f"{name} holds {most:.3g}, and {largest:g} is the most that can be stored; {hint}")


def _blocked(values: np.ndarray, fmt: Format) -> np.ndarray:
    """[n, K] -> [n, blocks, block], zeros behind a short last block."""
    outputs, inputs = values.shape
    missing = fmt.blocks(inputs) * (fmt.block or inputs) - inputs
    padded = np.pad(values, ((0, 0), (0, missing))) if missing else values
    return padded.reshape(outputs, fmt.blocks(inputs), -1)


def _stored_scales(scales: np.ndarray, fmt: Format, name: str) -> NDArray[np.float32]:
    """Scales as they are stored, rounded up so that no code is cut off; 1 for a block of zeros."""
    least = SMALLEST_SCALE[fmt.scale_dtype]
    wanted = np.where(scales > 0, np.maximum(scales, least), np.float32(1))
    with np.errstate(over="ignore"):
        stored = wanted.astype(fmt.scale_dtype)
        stored = np.where(stored < wanted, np.nextafter(stored, np.array(np.inf, stored.dtype)), stored)
    if not np.isfinite(stored).all():
        raise Error(f"{name} holds numbers too large for {fmt.name}; export it with --precision fp32")
    return stored.astype(np.float32)


def pack_blocks(codes: Codes, fmt: Format, block: int) -> Bytes:
    """Codes [n, K] -> bytes [n, blocks, block * bits / 8]; a short last block is filled with code 0."""
    outputs, inputs = codes.shape
    count = -(-inputs // block)
    unsigned = _unsigned(np.pad(codes, ((0, 0), (0, count * block - inputs))), fmt.bits)
    return _pack_bits(unsigned, fmt.bits).reshape(outputs, count, -1)


def unpack_blocks(packed: Bytes, fmt: Format, inputs: int) -> Codes:
    """Bytes [n, blocks, bytes] -> codes [n, inputs]; of zero points too, whose bytes are [n, bytes]."""
    flat = _unpack_bits(packed.reshape(packed.shape[0], -1), fmt.bits)
    return _signed(flat, fmt.bits)[:, :inputs]


def pack_zeros(zeros: Codes, fmt: Format) -> Bytes:
    """Zero points [n, blocks] -> bytes [n, ceil(blocks * bits / 8)]; a missing last one is 0."""
    odd = zeros.shape[1] * fmt.bits % 8 != 0
    return _pack_bits(_unsigned(np.pad(zeros, ((0, 0), (0, int(odd)))), fmt.bits), fmt.bits)


def pack_pairs(codes: Codes) -> Bytes:
    """Four-bit codes [2m, K] -> bytes [m, K], whose transpose is ONNX INT4 [K, 2m]."""
    bits = codes.view(np.uint8) & np.uint8(15)
    return bits[0::2] | (bits[1::2] << np.uint8(4))


def _unsigned(codes: Codes, bits: int) -> Bytes:
    return (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)


def _signed(unsigned: Bytes, bits: int) -> Codes:
    return (unsigned.astype(np.int16) - (1 << bits - 1)).astype(np.int8)


def _pack_bits(unsigned: Bytes, bits: int) -> Bytes:
    """Numbers [n, m] of `bits` bits -> bytes [n, m * bits / 8]."""
    return unsigned if bits == 8 else unsigned[:, 0::2] | (unsigned[:, 1::2] << np.uint8(4))


def _unpack_bits(packed: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return packed
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(packed.shape[0], -1)
