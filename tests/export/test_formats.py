"""Formats: rounding is as near as it says, packing loses nothing, every lowering multiplies by what the codes stand for."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmada_lite.errors import Error
from mmada_lite.export import lowering
from mmada_lite.export.formats import (
    FORMATS,
    SMALLEST_SCALE,
    Format,
    dequantize,
    format_named,
    pack_blocks,
    pack_pairs,
    pack_zeros,
    quantize,
    rounded,
    unpack_blocks,
)
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import TARGETS, WeightSpec
from mmada_lite.export.weights import Weight
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session

INTEGERS = {name: fmt for name, fmt in FORMATS.items() if fmt.whole}
integers = st.sampled_from(sorted(INTEGERS)).map(format_named)


@st.composite
def matrices(draw: st.DrawFn, rows: int = 6, inputs: int = 300) -> np.ndarray:
    """Matrices (N, K) of all magnitudes, with zeros, all-zero and one-sided columns, and outliers."""
    shape = draw(st.integers(1, rows)), draw(st.integers(1, inputs))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 4, (shape[0], 1))
    kind = draw(st.sampled_from(["plain", "zeros", "positive", "outlier", "sparse"]))
    if kind == "zeros":
        values[rng.integers(shape[0])] = 0
    if kind == "positive":
        values = np.abs(values) + 1
    if kind == "outlier":
        values[rng.integers(shape[0]), rng.integers(shape[1])] = 1e4
    if kind == "sparse":
        values *= rng.random(shape) < 0.1
    return values.astype(np.float32)


def spread(blocks: np.ndarray, fmt: Format, inputs: int) -> np.ndarray:
    """One number a block [n, blocks] -> one a weight [n, K]."""
    return np.repeat(blocks, fmt.block or inputs, axis=1)[:, :inputs]


@given(matrices(), integers)
@settings(max_examples=150, deadline=None)
def test_no_weight_is_off_by_more_than_half_a_step(values: np.ndarray, fmt: Format) -> None:
    quantized = quantize(values, fmt, "w")
    assert quantized.codes.shape == values.shape
    assert quantized.scales.shape == (values.shape[0], fmt.blocks(values.shape[1]))
    lowest, highest = -(1 << fmt.bits - 1), (1 << fmt.bits - 1) - 1
    assert quantized.codes.min() >= lowest
    assert quantized.codes.max() <= highest
    assert (quantized.scales > 0).all()
    np.testing.assert_array_equal(quantized.scales, quantized.scales.astype(fmt.scale_dtype).astype(np.float32))
    # Of an asymmetric block the zero point is rounded too, so that one end may move by half a step more.
    bound = (0.5 if fmt.symmetric else 1.0) * spread(quantized.scales, fmt, values.shape[1])
    off = np.abs(dequantize(quantized).astype(np.float64) - values)
    assert (off <= bound * (1 + 1e-4)).all()
    assert (dequantize(quantized)[values == 0] == 0).all()


@given(matrices(), integers, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_any_chunk_of_rows_gives_the_same(values: np.ndarray, fmt: Format, step: int) -> None:
    at_once = quantize(values, fmt, "w")
    parts = [quantize(values[begin : begin + step], fmt, "w") for begin in range(0, len(values), step)]
    np.testing.assert_array_equal(np.concatenate([part.codes for part in parts]), at_once.codes)
    np.testing.assert_array_equal(np.concatenate([part.scales for part in parts]), at_once.scales)


def of_pairs(packed: np.ndarray) -> np.ndarray:
    """Bytes [m, K] -> the four-bit codes [2m, K] that `pack_pairs` was given."""
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).reshape(-1, packed.shape[1])
    return np.where(both < 8, both, both.astype(np.int16) - 16).astype(np.int8)


@given(matrices(), integers)
@settings(max_examples=100, deadline=None)
def test_packing_loses_nothing(values: np.ndarray, fmt: Format) -> None:
    quantized = quantize(values, fmt, "w")
    inputs, block = values.shape[1], fmt.block or 128
    packed = pack_blocks(quantized.codes, fmt, block)
    assert packed.shape == (len(values), -(-inputs // block), block * fmt.bits // 8)
    np.testing.assert_array_equal(unpack_blocks(packed, fmt, inputs), quantized.codes)
    if quantized.zeros is not None:
        count = quantized.zeros.shape[1]
        zeros = pack_zeros(quantized.zeros, fmt)
        assert zeros.shape == (len(values), -(-count * fmt.bits // 8))
        np.testing.assert_array_equal(unpack_blocks(zeros, fmt, count), quantized.zeros)
    if fmt.bits == 4 and len(values) % 2 == 0:
        np.testing.assert_array_equal(of_pairs(pack_pairs(quantized.codes)), quantized.codes)


def test_every_code_survives_packing() -> None:
    four = np.tile(np.arange(-8, 8, dtype=np.int8), (2, 2))
    eight = np.arange(-128, 128, dtype=np.int8)[None]
    np.testing.assert_array_equal(of_pairs(pack_pairs(four)), four)
    np.testing.assert_array_equal(unpack_blocks(pack_blocks(four, FORMATS["int4-b32"], 32), FORMATS["int4-b32"], 32), four)
    np.testing.assert_array_equal(unpack_blocks(pack_blocks(eight, FORMATS["int8"], 128), FORMATS["int8"], 256), eight)
    np.testing.assert_array_equal(pack_pairs(np.array([[1], [-2]], np.int8)), [[0xE1]])
    np.testing.assert_array_equal(pack_blocks(np.array([[-8, 7]], np.int8), FORMATS["int4-b32"], 2), [[[0xF0]]])


def test_more_bits_and_smaller_blocks_are_nearer() -> None:
    values = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)

    def error(name: str) -> float:
        return float(np.square(dequantize(quantize(values, FORMATS[name], "w")) - values).mean())

    for finer, coarser in [
        ("int4-b32", "int4-b64"),
        ("int4-b64", "int4-b128"),
        ("int4-b128-asym", "int4-b128"),
        ("int8-b32", "int8-b128"),
        ("int8", "int4-b32-asym"),
    ]:
        assert error(finer) < error(coarser), f"{finer} against {coarser}"
    plain = np.abs(values.reshape(64, 4, 128)).max(-1, keepdims=True) / 7  # the usual scale, which leaves a code unused
    usual = np.square(np.rint(values.reshape(64, 4, 128) / plain) * plain - values.reshape(64, 4, 128)).mean()
    assert error("int4-b128") < 0.85 * usual


@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_a_column_of_zeros_stays_zero(name: str) -> None:
    quantized = quantize(np.zeros((3, 70), np.float32), FORMATS[name], "w")
    assert (quantized.scales == 1).all()
    assert (dequantize(quantized) == 0).all()


@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_the_smallest_numbers_do_not_divide_by_zero(name: str) -> None:
    fmt = FORMATS[name]
    values = np.array([[1e-45, -1e-45, 0, 3e-42]], np.float32)
    assert np.abs(dequantize(quantize(values, fmt, "w")) - values).max() <= SMALLEST_SCALE[fmt.scale_dtype]


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_what_is_no_number_is_named(name: str, bad: float, word: str) -> None:
    values = np.ones((4, 40), np.float32)
    values[2, 39] = bad
    with pytest.raises(Error, match=f"blocks.3.q_proj.weight holds {word}"):
        (rounded if FORMATS[name].floating else quantize)(values, FORMATS[name], "blocks.3.q_proj.weight")


def test_what_a_format_cannot_hold_is_named() -> None:
    with pytest.raises(Error, match="w holds 1e\\+06, and 65504 is the most"):
        rounded(np.array([[1e6]], np.float32), FORMATS["fp16"], "w")
    for name in ("int4-b32", "int8"):
        with pytest.raises(Error, match="w holds 3e\\+38, and 65504 is the most that can be stored; use another checkpoint"):
            quantize(np.array([[1.0, -3e38]], np.float32), FORMATS[name], "w")
    with pytest.raises(Error, match="w holds 1e\\+38, and 1e\\+09 is the most"):
        rounded(np.array([[1e38]], np.float32), FORMATS["fp32"], "w")


def test_names_of_formats() -> None:
    assert all(format_named(name).name == name for name in FORMATS)
    with pytest.raises(Error, match=r"no format is called 'int4-b30'; did you mean 'int4-b32'\?"):
        format_named("int4-b30")
    with pytest.raises(Error, match="no format is called 'nf9'; use one of fp32, fp16, bf16, int8"):
        format_named("nf9")
    for wrong in (("int4", None), ("int4", 48), ("fp16", 32), ("int8", None, False), ("int2", 32)):
        with pytest.raises(Error, match="is no format; use one of"):
            Format(*wrong)  # type: ignore[arg-type]


class Source:
    """One tensor under any name."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values.shape

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.values if rows is None else self.values[rows]


ROUNDING = {"float32": 1e-6, "float16": 2e-3}  # of a product, as a share of what its terms add up to without their signs


def multiplied(values: np.ndarray, x: np.ndarray, spec: WeightSpec, folder: Path) -> np.ndarray:
    """x [..., K] times the transpose of values (N, K), lowered and run; the bytes written are those that were promised."""
    sizes: list[int] = []
    with WeightFile(folder / "w.bin", lambda name, size: sizes.append(size)) as weights:
        graph = Graph("linear", weights)
        given = lowering.narrow(graph, graph.input("x", "float32", ("B", "M", "K")), spec)
        if spec.computed == "float32":
            lowering.linear(graph, given, Weight(Source(values), "w"), spec, to="y")
        else:
            lowering.widen(graph, lowering.linear(graph, given, Weight(Source(values), "w"), spec), spec, to="y")
        graph.output("y", "float32", ("B", "M", "N"))
        graph.save(folder / "g.onnx")
    assert sum(sizes) == lowering.linear_bytes(values.shape, spec)
    onnx.checker.check_model(str(folder / "g.onnx"), full_check=True)
    product: np.ndarray = open_session(folder / "g.onnx", choose_device("cpu"), 1).run(None, {"x": x})[0]
    return product


def lowered(shape: tuple[int, int]) -> list[WeightSpec]:
    """Every spec that a matrix of this shape can take."""
    specs = []
    for spec in (WeightSpec(FORMATS[name], target) for name in INTEGERS for target in TARGETS):
        try:
            lowering.check_linear(shape, spec)
        except Error:
            continue
        specs.append(spec)
    return specs


@pytest.mark.parametrize("shape", [(96, 256), (64, 160), (33, 48), (2, 1)])
def test_every_lowering_multiplies_by_what_the_codes_stand_for(shape: tuple[int, int], tmp_path: Path) -> None:
    """Activations here are whole numbers up to 127 that every kernel holds exactly, so that only weights are rounded."""
    rng = np.random.default_rng(shape[1])
    values = rng.standard_normal(shape, dtype=np.float32)
    values[1] = 0
    x = rng.integers(-127, 128, (2, 5, shape[1])).astype(np.float32)
    x[..., ::32] = 127
    for spec in lowered(shape):
        stored = dequantize(quantize(values, spec.format, "w")).astype(np.float64)
        expected = x.astype(np.float64) @ stored.T
        product = multiplied(values, x, spec, tmp_path)
        scale = np.abs(x).astype(np.float64) @ np.abs(stored).T + 1e-9
        assert (np.abs(product - expected) / scale).max() < ROUNDING[spec.computed], spec
        assert (product[..., 1] == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 40))
@settings(max_examples=12, deadline=None)
def test_lowerings_of_one_quantization_agree(tmp_path_factory: pytest.TempPathFactory, seed: int, k: int, n: int) -> None:
    """With any activations the kernels differ by their rounding of activations alone: half a step of 127 a weight."""
    rng = np.random.default_rng(seed)
    values, x = rng.standard_normal((n, k), dtype=np.float32), rng.standard_normal((1, 3, k), dtype=np.float32)
    folder = tmp_path_factory.mktemp("agree")
    for name in ("int8", "int4-b32", "int4-b64-asym"):
        stored = dequantize(quantize(values, FORMATS[name], "w")).astype(np.float64)
        for spec in lowered((n, k)):
            if spec.format.name == name:
                bound = (np.abs(x).max(-1, keepdims=True) * np.abs(stored).sum(-1)) * (1 / 254 + ROUNDING[spec.computed]) + 1e-5
                assert (np.abs(multiplied(values, x, spec, folder) - x.astype(np.float64) @ stored.T) <= bound).all(), spec


def test_a_token_of_zeros_gives_zeros(tmp_path: Path) -> None:
    x = np.zeros((1, 2, 64), np.float32)
    x[0, 1, 3] = 1e-20
    values = np.ones((4, 64), np.float32)
    product = multiplied(values, x, WeightSpec(FORMATS["int8"]), tmp_path)
    assert (product[0, 0] == 0).all()
    np.testing.assert_allclose(product[0, 1], 1e-20, rtol=0.02)


def test_narrow_codes_cannot_overflow_the_sums_of_two_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels without VNNI add two products in 16 bits. Such a graph is opened for them on every processor."""
    low, high = FORMATS["int8-7bit"].range
    assert 2 * 255 * max(high, -low) < 1 << 15
    monkeypatch.setattr("mmada_lite.ort.session.exact_int8", lambda: False)
    options = onnxruntime.SessionOptions.add_session_config_entry
    entries: list[str] = []
    monkeypatch.setattr(
        "onnxruntime.SessionOptions.add_session_config_entry",
        lambda self, key, value: (entries.append(key), options(self, key, value)),
    )
    values, x = np.full((64, 256), -3, np.float32), np.full((1, 5, 256), 2, np.float32)
    values[::2] *= -1
    for name, exact in (("int8-7bit", False), ("int8", True)):
        entries.clear()
        product = multiplied(values, x, WeightSpec(FORMATS[name]), tmp_path)
        np.testing.assert_allclose(product, x @ values.T, rtol=0.01)
        assert ("session.x64quantprecision" in entries) is exact


def test_activations_are_rounded_once_for_all_that_read_them(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "w.bin", lambda name, size: None) as weights:
        graph = Graph("linear", weights)
        x = graph.input("x", "float32", ("B", "K"))
        for name in ("q", "k", "v"):
            lowering.linear(graph, x, Weight(Source(np.ones((4, 8), np.float32)), name), WeightSpec(FORMATS["int8"]))
    kinds = [node.op_type for node in graph._nodes]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("QuantizeLinear")) == (3, 1)


@pytest.mark.parametrize("spec", [WeightSpec(FORMATS["int8"]), WeightSpec(FORMATS["int4-b32"]), WeightSpec(FORMATS["fp32"])])
def test_a_gated_product_leaves_the_scales_of_tokens_to_the_next(spec: WeightSpec, tmp_path: Path) -> None:
    """Rows of sizes from 1e-3 to 1e3: the two products are those of numpy up to the rounding of activations, and in int8 one
    pass over the gate's width is spared."""
    rng = np.random.default_rng(5)
    up, down = rng.standard_normal((96, 64), dtype=np.float32), rng.standard_normal((32, 96), dtype=np.float32)
    x = rng.standard_normal((1, 7, 64), dtype=np.float32) * np.logspace(-3, 3, 7, dtype=np.float32)[None, :, None]
    gate = rng.standard_normal((1, 7, 96), dtype=np.float32)
    gate[0, 2] = 0
    with WeightFile(tmp_path / "w.bin", lambda name, size: None) as weights:
        graph = Graph("gated", weights)
        given = graph.input("x", "float32", ("B", "W", 64)), graph.input("gate", "float32", ("B", "W", 96))
        gated = lowering.gated(graph, given[1], given[0], Weight(Source(up), "up"), spec)
        lowering.linear(graph, gated, Weight(Source(down), "down"), spec, to="y")
        graph.output("y", "float32", ("B", "W", 32))
        graph.save(tmp_path / "g.onnx")
    session = open_session(tmp_path / "g.onnx", choose_device("cpu"), 1)
    (product,) = session.run(["y"], {"x": x, "gate": gate})
    stored = [w if spec.format.floating else dequantize(quantize(w, spec.format, "w")) for w in (up, down)]
    wanted = (gate * (x @ stored[0].T)) @ stored[1].T
    assert (product[0, 2] == 0).all()
    errors = np.abs(product - wanted).max(-1)[0] / np.abs(wanted).max(-1).clip(1e-30)[0]
    assert errors.max() < (1e-5 if spec.format.floating else 0.05)
    kinds = [node.op_type for node in graph._nodes]
    products, passes = kinds.count("MatMulIntegerToFloat"), kinds.count("Mul")
    assert (products, passes) == {"int8": (2, 5), "int4-b32": (0, 3), "fp32": (0, 1)}[spec.format.name]


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8"])
def test_a_table_gives_its_rows(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((50, 33), dtype=np.float32)
    sizes: list[int] = []
    with WeightFile(tmp_path / "w.bin", lambda tensor, size: sizes.append(size)) as weights:
        graph = Graph("table", weights)
        tokens = graph.input("tokens", "int64", ("B", "W"))
        lowering.lookup(graph, tokens, Weight(Source(values), "w"), WeightSpec(FORMATS[name]), to="y")
        graph.output("y", "float32", ("B", "W", 33))
        graph.save(tmp_path / "g.onnx")
    assert sum(sizes) == lowering.table_bytes(values.shape, WeightSpec(FORMATS[name]))
    token_ids = np.array([[0, 49, 7], [7, 7, 1]])
    (rows,) = open_session(tmp_path / "g.onnx", choose_device("cpu"), 1).run(None, {"tokens": token_ids})
    fmt = FORMATS[name]
    expected = rounded(values, fmt, "w").astype(np.float32) if fmt.floating else dequantize(quantize(values, fmt, "w"))
    np.testing.assert_array_equal(rows, expected[token_ids])


def test_what_tensorrt_cannot_read_is_refused() -> None:
    for shape in ((4, 64), (3, 50)):
        with pytest.raises(
            Error, match=r"int4-b32-asym cannot be written for tensorrt, which reads symmetric .*; use int4-b32"
        ):
            lowering.check_linear(shape, WeightSpec(FORMATS["int4-b32-asym"], "tensorrt"))
        lowering.check_linear(shape, WeightSpec(FORMATS["int4-b32-asym"], "cpu"))


@pytest.mark.parametrize("name", ["int8-b32", "int4-b64"])
@pytest.mark.parametrize("shape", [(33, 96), (6, 200), (33, 200)])
def test_tensorrt_gets_whole_blocks_and_no_half_bytes(shape: tuple[int, int], name: str, tmp_path: Path) -> None:
    """Its parser refuses a block that is not whole; a pair of int4 may not lie across two rows."""
    values, x = np.ones(shape, np.float32), np.ones((1, 1, shape[1]), np.float32)
    multiplied(values, x, WeightSpec(FORMATS[name], "tensorrt"), tmp_path)
    graph = onnx.load(tmp_path / "g.onnx", load_external_data=False).graph
    dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    (node,) = (node for node in graph.node if node.op_type == "DequantizeLinear")
    about = {each.name: each.i for each in node.attribute}
    weights, scales = dims[node.input[0]], dims["w.scale"]
    assert weights[about["axis"]] == scales[about["axis"]] * about["block_size"] >= shape[1]
    assert weights[1 - about["axis"]] == scales[1 - about["axis"]] == shape[0]
    assert name.startswith("int8") or weights[-1] % 2 == 0


@pytest.mark.parametrize(("name", "target"), [("int8", "cpu"), ("int4-b128", "cuda"), ("int4-b128", "tensorrt")])
def test_a_matrix_is_never_held(name: str, target: lowering.Target, tmp_path: Path) -> None:
    class Hole(Source):
        def __init__(self) -> None: ...

        def shape(self, name: str) -> tuple[int, ...]:
            return 16384, 2048

        def read(self, name: str, rows: slice | None = None) -> np.ndarray:
            assert rows is not None
            return np.full((rows.stop - rows.start, 2048), 0.5, np.float32)

    tracemalloc.start()
    try:
        with WeightFile(tmp_path / "w.bin", lambda tensor, size: None) as weights:
            graph = Graph("linear", weights)
            x = graph.input("x", "float32", ("M", 2048))
            lowering.linear(graph, x, Weight(Hole(), "w"), WeightSpec(FORMATS[name], target))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "w.bin").stat().st_size > 16e6
    assert peak < 60e6  # of 134 MB as float32
