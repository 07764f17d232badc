"""Weights in floats of eight bits: their codes, graphs and engines, and who is refused them."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmada_lite
from mmada_lite.bundle import FP8_WEIGHTS, MANIFEST, Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.export import jetson, rtx_builder
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import TensorSource, TransformerConfig
from mmada_lite.export.formats import dequantize, format_named, narrow_float8, quantize
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import WeightSpec, linear, linear_bytes
from mmada_lite.export.synthetic import SIZES, RandomTensors, write_bundle
from mmada_lite.export.weights import Weight
from mmada_lite.ort import devices, engines, loader, nvidia
from mmada_lite.ort.nvidia import Card
from mmada_lite.ort.session import Device, open_session

EMOJI = Path(__file__).parents[2] / "train" / "shipped" / "emoji"
FP8 = format_named("fp8")
CPU = Device("cpu", "a test")
lacking = rtx_builder.missing()
real = pytest.mark.skipif(lacking is not None, reason=lacking or "")


@pytest.fixture(scope="module")
def floats(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("fp8") / "bundle", precision="fp8", target="tensorrt")


def test_every_code_is_onnx_s_own_and_rounding_is_to_nearest_even() -> None:
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(narrow_float8(values), codes)
    ordered = np.sort(values)
    random = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) * np.float32(30)
    between = (ordered[1:] + ordered[:-1]) / 2  # ties
    for given in (between, np.nextafter(between, np.float32(np.inf)), np.nextafter(between, -np.float32(np.inf)), random):
        np.testing.assert_array_equal(narrow_float8(given), given.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    np.testing.assert_array_equal(narrow_float8(np.array([449.0, -1e9])), [0x7E, 0xFE])  # cut off, and never NaN


def test_a_column_s_largest_weight_is_the_largest_code_and_the_rest_are_near() -> None:
    weights = np.random.default_rng(1).standard_normal((6, 500)).astype(np.float32) * np.float32(0.03)
    weights[2], weights[3] = 0, weights[3] * np.float32(1e-5)
    made = quantize(weights, FP8, "w")
    back = dequantize(made)
    assert (made.scales == made.scales.astype(np.float16)).all()
    for row in (0, 1, 4, 5):
        largest = np.abs(weights[row]).argmax()
        assert made.codes.view(np.uint8)[row, largest] & 0x7F in (0x7D, 0x7E)  # scales are rounded up to half precision
        assert (np.abs(back - weights)[row] <= np.abs(weights)[row] / 16 + made.scales[row] * 2.0**-10).all()
    assert not back[2].any()
    assert np.abs(back - weights)[3].max() <= 2.0**-24  # as small as scales can be


def test_int8_in_blocks_of_128_is_nearer() -> None:
    """The figures of docs/lab/benchmarks.md: rms errors over the weights' own, in int8, int8-b128, int8-b32 and fp8."""
    source, config = TensorSource.open(EMOJI), TransformerConfig.load(EMOJI)
    names = [name for name, shape in config.expected_tensors().items() if len(shape) == 2 and "wte" not in name]
    matrices = {
        "backbone": [source.read(name) for name in names if "blocks" in name],
        "text_head": [source.read(name) for name in names if "blocks" not in name],
        "normal": [np.random.default_rng(0).standard_normal((256, 4096)).astype(np.float32)],
    }
    for name, wanted in (
        ("backbone", (0.0071, 0.0065, 0.0057, 0.0260)),
        ("text_head", (0.0262, 0.0155, 0.0112, 0.0139)),
        ("normal", (0.0086, 0.0065, 0.0056, 0.0265)),
    ):
        errors = [relative_error(matrices[name], form) for form in ("int8", "int8-b128", "int8-b32", "fp8")]
        np.testing.assert_allclose(errors, wanted, atol=6e-5)
        assert (errors[1] < errors[3]) == (name != "text_head")


def relative_error(matrices: list[np.ndarray], form: str) -> float:
    off = kept = 0.0
    for matrix in matrices:
        weights = matrix.astype(np.float64)
        off += float(np.square(dequantize(quantize(matrix, format_named(form), "w")) - weights).sum())
        kept += float(np.square(weights).sum())
    return float(np.sqrt(off / kept))


@pytest.mark.parametrize("shape", [(64, 96), (33, 40)])
def test_a_product_is_that_of_the_rounded_weights(shape: tuple[int, int], tmp_path: Path) -> None:
    """On onnxruntime's CPU provider, which reads the same codes; the error is what three bits of mantissa leave."""
    source = RandomTensors({"w": shape})
    session = open_session(product(shape, tmp_path), CPU, 1)
    x = np.random.default_rng(2).standard_normal((5, shape[1])).astype(np.float16)
    (made,) = session.run(["y"], {"x": x})
    weights = source.read("w")
    rounded = x.astype(np.float32) @ dequantize(quantize(weights, FP8, "w")).T
    np.testing.assert_allclose(made, rounded, atol=2e-3 * np.abs(rounded).max())
    whole = x.astype(np.float32) @ weights.T
    assert 0.005 < np.sqrt(np.square(made - whole).mean() / np.square(whole).mean()) < 0.05


def product(shape: tuple[int, int], folder: Path, name: str = "fp8") -> Path:
    spec = WeightSpec(format_named(name), "tensorrt")
    with WeightFile(folder / f"{name}.bin", lambda tensor, size: None) as weights:
        graph = Graph("linear", weights)
        x = graph.input("x", "float16", ("W", shape[1]))
        linear(graph, x, Weight(RandomTensors({"w": shape}), "w"), spec, to="y")
        graph.output("y", "float16", ("W", shape[0]))
        graph.save(folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


@real
@pytest.mark.parametrize("shape", [(1024, 1024), (1025, 600)])
def test_an_engine_keeps_them_packed_and_older_cards_are_refused_by_the_builder(shape: tuple[int, int], tmp_path: Path) -> None:
    graph = product(shape, tmp_path)
    profile = engines.Profile("block", {"W": (1, 8, 64)})
    engine = rtx_builder.build(graph, [profile], "8.9+12.0", lambda share: None)
    packed = linear_bytes(shape, WeightSpec(FP8, "tensorrt"))
    assert packed < memoryview(engine).nbytes < 1.1 * packed + (1 << 19)
    with pytest.raises(Error, match=r"cannot build .* for 8\.6: .*fp8"):
        rtx_builder.build(graph, [profile], "8.6", lambda share: None)


@real
def test_the_command_builds_for_the_cards_that_read_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of size tiny, whose engines are kernels before all: that weights stay packed, larger graphs show."""
    bundle = write_bundle(SIZES["tiny"], tmp_path / "b", "fp8", "tensorrt")
    for cards in ([], ["--compute-capability", "8.9", "--compute-capability", "12.0"]):
        assert main(["export", str(bundle.path), "--engine", "rtx", "--profile", "block", *cards]) == 0
    built = {record.key.compute_capability for _, record in engines.records(bundle)}
    assert built == {"8.9+12.0", rtx_builder.every_card().removeprefix("8.6+")}
    assert engines.find(bundle, "backbone", "12.0")[0] is not None
    assert engines.find(bundle, "backbone", "8.6")[0] is None
    capsys.readouterr()
    assert main(["export", str(bundle.path), "--engine", "rtx", "--compute-capability", "8.6"]) == 2
    said = capsys.readouterr().err
    assert "weights in fp8 are for compute capability 8.9, 12.0, 12.1, and not for 8.6; leave --compute-capability 8.6" in said


def test_a_bundle_says_what_it_has_and_decodes_on_a_cpu(floats: Path) -> None:
    bundle = Bundle.open(floats, verify="full")
    group = bundle.quantization["backbone"]
    assert (group.format, group.bits, group.block, group.symmetric, group.scale) == ("fp8", 8, None, True, "fp16")
    assert bundle.needs == (FP8_WEIGHTS,)
    answer = mmada_lite.load(floats, device="cpu", threads=1).chat("hello", TextSettings(answer_length=8, steps=8)).result()
    assert len(answer.ids) == 8


def test_what_bundle_json_says_of_them_must_agree(floats: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = json.loads((floats / MANIFEST).read_text())
    for changes, said in (
        ({"needs": []}, "quantization.backbone is fp8, and needs lacks 'fp8_weights'"),
        ({"target": "cuda"}, "it needs 'fp8_weights', which is for tensorrt, and target is 'cuda'"),
    ):
        (tmp_path / MANIFEST).write_text(json.dumps(content | changes))
        with pytest.raises(Error, match=said):
            Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("device", "capability", "said"),
    [
        (
            "rtx",
            "8.6",
            "which cards of compute capability 8.9 and newer read, and planted has 8.6; export it with --precision int8",
        ),
        ("cuda", "8.9", "which TensorRT-RTX alone multiplies by, and not cuda; export it with --precision int8 --target cuda"),
        ("tensorrt", "9.0", "and not tensorrt; export it with --precision int8 --target tensorrt"),
        ("rtx", "8.9", ""),
        ("rtx", "12.0", ""),
        ("cpu", "8.6", ""),
    ],
)
def test_a_card_that_does_not_read_them_is_refused(
    floats: Path, device: str, capability: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "fault", lambda name: None)
    monkeypatch.setattr(nvidia, "cards", lambda: (Card("planted", capability, 8 << 30),))
    if not said:
        assert loader.device_for(Bundle.open(floats), device).name == device
        return
    with pytest.raises(Error, match=said) as told:
        loader.device_for(Bundle.open(floats), device)
    assert "\n" not in str(told.value)


def test_bad_requests_are_one_line_and_write_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, folder = ["export", str(tiny_checkpoint)], ["-o", str(tmp_path / "x")]
    asked = [
        (["--precision", "fp8"], "fp8 cannot be written for cpu: TensorRT-RTX alone multiplies by it"),
        (["--precision", "fp8", "--target", "cuda"], "8.9 and newer; use --target tensorrt, or --precision int8"),
        (["--store", "backbone=fp8", "--target", "openvino"], "fp8 cannot be written for openvino"),
        (["--store", "embedder=fp8", "--target", "tensorrt"], "the embedder is not stored as fp8; use one of"),
    ]
    if lacking is None:
        asked += [
            ([*how, "--engine", "rtx", "--compute-capability", "8.6"], "weights in fp8 are for compute capability 8.9, 12.0")
            for how in (["--precision", "fp8"], ["--store", "text_head=fp8"])
        ]
    for words, message in asked:
        assert main([*export, *folder, *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.strip().count("\n") == 0
        assert not (tmp_path / "x").exists()
    words = ["--format", "fp8", "--method", "gptq", "--target", "tensorrt"]
    assert main(["quantize", str(tiny_checkpoint), *folder, *words]) == 2
    assert "fp8 is rounded to nearest and by no other method" in capsys.readouterr().err


def test_a_jetson_builds_none_of_them(floats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jetson.main([str(floats), "--dry-run"]) == 2
    assert "has weights in fp8, which TensorRT-RTX alone multiplies by" in capsys.readouterr().err


def test_a_plan_counts_them_as_int8_with_smaller_scales(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", "8b", "--memory", "64GB", "--device", "rtx", "--json"]) == 0
    rows = {row["precision"]: row for row in json.loads(capsys.readouterr().out)["precisions"]}
    assert 0.99 * rows["int8"]["peak"] < rows["fp8"]["peak"] < rows["int8"]["peak"]
