"""Quantized bundles: near the reference, as small as computed, described in full, refused in one line."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bundles import in_format_1
from recorded import recorded_vocabulary
from safetensors.numpy import load_file, save_file

import mmada_lite
from mmada_lite.bundle import Bundle, WeightGroup
from mmada_lite.cli.info import memory_needed
from mmada_lite.cli.main import main
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import TensorSource, read_json, save_tensors
from mmada_lite.export.formats import FORMATS, dequantize, quantize, rounded
from mmada_lite.export.graph import ALIGNMENT
from mmada_lite.export.precision import specs_for
from mmada_lite.memory_plan import PRECISIONS
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.measured import ROWS, Speeds
from mmada_lite.ort.session import exact_int8, open_session

ONE = np.ones((1, 1), dtype=np.float32)
FINE = {"backbone": "int4-b32"}  # for tensorrt: the recorded models' width is no multiple of 128
NARROW = {"backbone": "fp16", "text_head": "int4-b32"}  # the tiny one's are 32 and 48
Logits = Callable[..., np.ndarray]


def as_written(path: Path) -> onnxruntime.InferenceSession:
    """A session that computes what the graph says. Otherwise onnxruntime turns DequantizeLinear and MatMul into its own
    MatMulNBits, which rounds activations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(path), options)


def logits_of(path: Path, recorded: Mapping[str, np.ndarray], *, fused: bool = True) -> np.ndarray:
    """Text logits [tokens, V] of a bundle for every recorded row, pads dropped."""
    bundle, cpu = Bundle.open(path), choose_device("cpu")
    paths = {name: bundle.graph_path(name) for name in bundle.graphs}
    sessions = {name: open_session(path, cpu, 1) if fused else as_written(path) for name, path in paths.items()}
    shape = bundle.architecture
    denoiser = OnnxDenoiser(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim)
    logits = []
    for row, mask in enumerate(recorded["attention_mask"]):
        tokens = recorded["input_ids"][row : row + 1, mask.astype(bool)]
        places = np.arange(tokens.shape[1])
        hidden, _ = denoiser.forward(Window(tokens, places, places[None]), keep=False)
        logits.append(denoiser.logits("text", hidden, ONE)[0])
    return np.concatenate(logits)


def reference(recorded: Mapping[str, np.ndarray]) -> np.ndarray:
    return recorded["logits_bias"][recorded["attention_mask"].astype(bool)]


@pytest.fixture(scope="session")
def logits(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    """Text logits of a recorded model exported so; each is exported once."""
    ready: dict[Any, np.ndarray] = {}

    def find(case: str, precision: str, target: str = "cpu", formats: Mapping[str, str] | None = None) -> np.ndarray:
        key = (case, precision, target, *sorted((formats or {}).items()))
        if key not in ready:
            source, folder = golden / "llm" / case, tmp_path_factory.mktemp("q") / case
            export_checkpoint(
                source,
                folder,
                precision=precision,  # type: ignore[arg-type]
                target=target,  # type: ignore[arg-type]
                formats=formats,
                vocabulary=recorded_vocabulary(source),
            )
            ready[key] = logits_of(folder, load_file(source / "forward.safetensors"))
        return ready[key]

    return find


def log_softmax(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def closeness(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """Mean cosine of logits, mean KL divergence from `expected` in nats, and the share of equal best tokens."""
    cosine = (actual * expected).sum(-1) / np.linalg.norm(actual, axis=-1) / np.linalg.norm(expected, axis=-1)
    ours, theirs = log_softmax(actual), log_softmax(expected)
    divergence = (np.exp(theirs) * (theirs - ours)).sum(-1)
    return float(cosine.mean()), float(divergence.mean()), float((actual.argmax(-1) == expected.argmax(-1)).mean())


@pytest.mark.parametrize("case", ["mha", "gqa"])
@pytest.mark.parametrize(
    ("precision", "target", "formats", "cosine", "divergence", "agreement"),
    [
        ("int8", "cpu", {}, 0.997, 0.03, 0.88),
        ("int8", "cuda", {}, 0.997, 0.03, 0.88),
        ("int8", "tensorrt", {}, 0.997, 0.03, 0.88),
        ("int4", "cpu", {}, 0.87, 1.3, 0.45),
        ("int4", "tensorrt", FINE, 0.87, 1.2, 0.45),
    ],
)
def test_quantized_models_stay_close(
    golden: Path,
    logits: Logits,
    case: str,
    precision: str,
    target: str,
    formats: dict[str, str],
    cosine: float,
    divergence: float,
    agreement: float,
) -> None:
    """The recorded models are random, with logits of deviation 4: they enlarge every error, so bounds are loose for int4."""
    expected = reference(load_file(golden / "llm" / case / "forward.safetensors"))
    measured = closeness(logits(case, precision, target, formats), expected)
    assert measured[0] > cosine, measured
    assert measured[1] < divergence, measured
    assert measured[2] > agreement, measured


@pytest.mark.parametrize("case", ["mha", "gqa"])
def test_finer_formats_are_nearer(golden: Path, logits: Logits, case: str) -> None:
    expected = reference(load_file(golden / "llm" / case / "forward.safetensors"))
    ladder = [
        logits(case, "fp16"),
        logits(case, "bf16"),
        logits(case, "int8"),
        logits(case, "fp16", "cpu", {"backbone": "int4-b32-asym"}),
        logits(case, "int4"),
    ]
    divergences = [closeness(each, expected)[1] for each in ladder]
    assert divergences == sorted(divergences)


def standing_for(source: Path, target: Path, formats: Mapping[str, str]) -> Path:
    """A copy of a checkpoint whose matrices are what the codes of `formats` (group -> format) stand for."""
    tensors = TensorSource.open(source)
    stored = {name: tensors.read(name).astype(np.float32) for name in tensors.names}
    for name, values in stored.items():
        group = {"model.transformer.wte.weight": "embedder", "model.transformer.ff_out.weight": "text_head"}.get(
            name, "backbone"
        )
        fmt = FORMATS[formats[group]]
        if values.ndim == 2:
            stored[name] = rounded(values, fmt, name) if fmt.floating else dequantize(quantize(values, fmt, name))
    save_tensors(target, stored, read_json(source / "config.json"))
    return target


@pytest.mark.parametrize(("precision", "formats"), [("int8", {}), ("int4", FINE)])
def test_a_bundle_computes_with_what_its_codes_stand_for(
    golden: Path, logits: Logits, tmp_path: Path, precision: str, formats: dict[str, str]
) -> None:
    """Nothing of a quantized bundle is unexplained: in fp32, the dequantized checkpoint gives the same logits. Compare
    0.01 to 1, the divergence from the checkpoint itself."""
    source = golden / "llm" / "gqa"
    recorded = load_file(source / "forward.safetensors")
    same = standing_for(source, tmp_path / "checkpoint", {**PRECISIONS[precision], **formats})
    export_checkpoint(same, tmp_path / "plain", precision="fp32", vocabulary=recorded_vocabulary(source))
    export_checkpoint(
        source,
        tmp_path / "quantized",
        precision=precision,  # type: ignore[arg-type]
        target="tensorrt",
        formats=formats,
        vocabulary=recorded_vocabulary(source),
    )
    expected = logits_of(tmp_path / "plain", recorded)
    exact = logits_of(tmp_path / "quantized", recorded, fused=False)
    np.testing.assert_allclose(exact, expected, atol=0.1)  # half precision, as TensorRT computes, and no more
    assert closeness(exact, expected)[1] < 1e-4
    for target in ("cpu", "cuda", "tensorrt"):  # here activations are rounded to int8 as well
        same_formats = {**PRECISIONS[precision], **formats}
        assert closeness(logits("gqa", precision, target, same_formats), expected)[1] < 0.02


def test_targets_hold_the_same_codes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for precision, formats in (("int8", {}), ("int4", NARROW)):
        logits = []
        for target in ("cpu", "cuda", "tensorrt"):
            written = export_checkpoint(
                tiny_checkpoint,
                tmp_path / f"{precision}-{target}",
                precision=precision,  # type: ignore[arg-type]
                target=target,  # type: ignore[arg-type]
                formats=formats,
            )
            bundle = Bundle.open(written, verify="full")
            assert bundle.target == target
            session = open_session(bundle.graph_path("text_head"), choose_device("cpu"), 1)
            hidden = np.random.default_rng(0).integers(-127, 128, (1, 3, 32)).astype(np.float32)
            hidden[..., 0] = 127
            feeds = {"hidden": hidden, "mix": ONE, "temperature": np.float32(0), "uniform": np.zeros((1, 3), np.float32)}
            logits.append(session.run(["logits"], {key: np.asarray(value) for key, value in feeds.items()})[0])
        for other in logits[1:]:
            np.testing.assert_allclose(other, logits[0], rtol=1e-3, atol=0.01)  # half precision; one code more or less: 0.05


@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_graph_is_valid_onnx_with_aligned_weights(
    tiny_checkpoint: Path, tmp_path: Path, precision: str, target: str
) -> None:
    reports: list[tuple[int, int, str]] = []
    bundle = Bundle.open(
        export_checkpoint(
            tiny_checkpoint,
            tmp_path / "bundle",
            precision=precision,  # type: ignore[arg-type]
            target=target,  # type: ignore[arg-type]
            formats=NARROW if (precision, target) == ("int4", "tensorrt") else None,
            progress=lambda *report: reports.append(report),
        )
    )
    assert reports[-1][0] == reports[-1][1] == sum(group.bytes or 0 for group in bundle.quantization.values())
    for name in bundle.graphs:
        onnx.checker.check_model(str(bundle.graph_path(name)), full_check=True)
        model = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
        contrib = any(node.domain for node in model.graph.node)
        assert {opset.domain for opset in model.opset_import} == ({"", "com.microsoft"} if contrib else {""})
        assert not (contrib and target == "tensorrt")
        offsets = [int(entry.value) for t in model.graph.initializer for entry in t.external_data if entry.key == "offset"]
        assert all(offset % ALIGNMENT == 0 for offset in offsets)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantized_model_paints_and_chats(tiny_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    written = export_checkpoint(tiny_checkpoint, tmp_path / "bundle", precision=precision)  # type: ignore[arg-type]
    model = mmada_lite.load(written, threads=1)
    assert model.paint("a red apple", ImageSettings(steps=4)).picture.size == (16, 16)
    assert isinstance(model.chat("hello", TextSettings(answer_length=8, steps=4)).text, str)


def test_what_will_be_slow_is_said(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mmada_lite.ort.measured.kept", lambda: None)
    for target in ("cpu", "tensorrt"):
        export_checkpoint(tiny_checkpoint, tmp_path / target, precision="int8", target=target)  # type: ignore[arg-type]
    mmada_lite.load(tmp_path / "cpu", threads=1, device="cpu")
    assert not caplog.messages
    mmada_lite.load(tmp_path / "tensorrt", threads=1, device="cpu")
    assert caplog.messages == ["tensorrt is made for tensorrt and will be slow on cpu; export it with --target cpu"]
    for form, words in (("int8", "--target cpu --precision int8"), ("openvino-int8", "--precision int8 --target openvino")):
        caplog.clear()
        best = Speeds({form: dict.fromkeys(ROWS, 1.0)}, {})
        monkeypatch.setattr("mmada_lite.ort.measured.kept", lambda best=best: best)
        mmada_lite.load(tmp_path / "tensorrt", threads=1, device="cpu")
        assert caplog.messages[0].endswith(f"will be slow on cpu; export it with {words}")


def test_a_processor_without_vnni_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr("mmada_lite.ort.session.Path", lambda _: cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for flags, exact in (("fpu avx2 avx512f", False), ("fpu avx2 avx_vnni", True), ("fpu avx512_vnni", True)):
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n")
        assert exact_int8() is exact
    cpuinfo.unlink()
    assert exact_int8()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert exact_int8()


def test_the_manifest_says_how_everything_is_stored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "b", precision="int4", formats={"text_head": "int8"}))
    groups = {name: (g.format, g.bits, g.block, g.symmetric, g.scale, g.activation) for name, g in bundle.quantization.items()}
    assert groups == {
        "backbone": ("int4", 4, 128, True, "fp16", None),
        "codec": ("fp16", 16, None, None, None, None),
        "embedder": ("int8", 8, None, True, "fp32", None),
        "image_head": ("int8", 8, None, True, "fp32", "int8 per token"),
        "text_head": ("int8", 8, None, True, "fp32", "int8 per token"),
    }
    asymmetric = specs_for("int4", overrides={"backbone": "int4-b32-asym"})
    assert asymmetric["backbone"].format.symmetric is False


def test_bundles_shrink_as_computed(golden: Path, tmp_path: Path) -> None:
    """Of gqa: d 64, mlp 160, so that every column of int4 blocks of 32 is whole."""
    source = golden / "llm" / "gqa"
    sizes = {}
    for precision, formats in (("fp32", {}), ("int8", {}), ("int4", FINE)):
        bundle = Bundle.open(
            export_checkpoint(
                source,
                tmp_path / precision,
                precision=precision,  # type: ignore[arg-type]
                formats=formats,
                vocabulary=recorded_vocabulary(source),
            )
        )
        sizes[precision] = {name: group.bytes for name, group in bundle.quantization.items()}
    shape = Bundle.open(tmp_path / "fp32").architecture
    d, mlp, kv, vocab_size = shape.d_model, shape.mlp_hidden_size, shape.n_kv_heads * shape.head_dim, shape.vocab_size
    matrices = shape.n_layers * (2 * d * d + 2 * d * kv + 3 * d * mlp)
    columns = shape.n_layers * (2 * d + 2 * kv + 2 * mlp + d)
    norms = 4 * d * (2 * shape.n_layers + 1)
    assert sizes["fp32"]["backbone"] == 4 * matrices + norms
    assert sizes["int8"]["backbone"] == matrices + 4 * columns + norms
    assert sizes["int4"]["backbone"] == matrices * 9 // 16 + norms
    assert sizes["int8"]["text_head"] == sizes["int8"]["embedder"] == vocab_size * (d + 4)
    assert sizes["int4"]["text_head"] == vocab_size * d * 17 // 32


def test_full_size_bundles_fit_where_they_must() -> None:
    """At the published shapes, from arithmetic alone: int8 below 8.6 GB and int4 below 4.7 GB, the image tokenizer included."""
    from mmada_lite.export.codec_vq import VQConfig
    from mmada_lite.export.lowering import linear_bytes, table_bytes

    d, mlp, vocab_size, codes, layers = 4096, 12288, 134656, 8192, 32
    block = [*[(d, d)] * 4, (mlp, d), (mlp, d), (d, mlp), (d,), (d,)]
    codec = VQConfig.from_json({}).expected_tensors().values()
    for precision, most in (("int8", 8.6e9), ("int4", 4.7e9)):
        specs = specs_for(precision)
        size = layers * sum(linear_bytes(shape, specs["backbone"]) for shape in block)
        size += linear_bytes((vocab_size, d), specs["text_head"]) + linear_bytes((codes, d), specs["image_head"])
        size += table_bytes((vocab_size, d), specs["embedder"]) + sum(linear_bytes(shape, specs["codec"]) for shape in codec)
        assert 0.96 * most < size < most - 20e6, size  # room for a tokenizer and the graphs


def test_bundles_of_before_quantization_open(tiny_bundle: Path, tmp_path: Path) -> None:
    old = in_format_1(tiny_bundle, tmp_path / "old")
    content = json.loads((old / "bundle.json").read_text())
    del content["target"]
    content["quantization"] = {name: {"format": "fp16"} for name in content["quantization"]}
    (old / "bundle.json").write_text(json.dumps(content))
    bundle = Bundle.open(old)
    assert (bundle.target, bundle.quantization["codec"]) == ("cpu", WeightGroup("fp16"))
    assert memory_needed(bundle) == 2 * bundle.size
    content["quantization"]["codec"]["bits"] = "16"
    (old / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(Error, match=r"quantization\.codec\.bits is '16'"):
        Bundle.open(old)


def test_memory_is_counted_group_by_group(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def needed(precision: str, **formats: str) -> int:
        target = tmp_path / "-".join([precision, *formats])
        export_checkpoint(tiny_checkpoint, target, precision=precision, formats=formats)  # type: ignore[arg-type]
        bundle = Bundle.open(target)
        sizes = {name: group.bytes or 0 for name, group in bundle.quantization.items()}
        return memory_needed(bundle) - bundle.size + sum(sizes.values()) - sum(sizes.values())

    half = needed("fp16")
    embedder = needed("fp16", embedder="fp32")
    assert half == embedder > 0  # a table is never expanded
    codec = needed("int8", image_head="int8")
    assert 0 < codec < needed("int8") < half  # the codec's half precision alone; the image head's too
    assert needed("int8", codec="fp32", image_head="int8") == 0
    assert needed("int4", codec="fp32") > 0  # scales and sums of blocks


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, error = capsys.readouterr()
    return code, out, error


def test_the_command_line_exports_and_shows(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small"
    words = ("--precision", "int4", "--store", "backbone=int4-b32-asym", "--store", "text_head=int8", "--json")
    code, out, error = run(capsys, "export", tiny_checkpoint, "-o", target, *words)
    assert (code, error) == (0, "")
    answer = json.loads(out)
    assert (answer["precision"], answer["target"]) == ("int4", "cpu")
    code, out, _ = run(capsys, "info", target)
    assert code == 0
    assert "backbone int4 in blocks of 32 with zero points, codec fp16, embedder int8, " in out
    assert "text_head int8 (activations int8 per token); lowered for cpu" in out
    code, out, _ = run(capsys, "info", target, "--json")
    assert json.loads(out)["quantization"]["backbone"]["block"] == 32
    assert json.loads(out)["target"] == "cpu"


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "precision": (("--precision", "int3"), "--precision: invalid choice: 'int3'"),
    "target": (("--precision", "int8", "--target", "npu"), "--target: invalid choice: 'npu'"),
    "no format": (("--store", "backbone"), "--store backbone: write GROUP=FORMAT"),
    "group": (("--store", "backbon=int8"), "no group of tensors is called 'backbon'; did you mean 'backbone'?"),
    "format": (("--store", "backbone=int4-b33"), "no format is called 'int4-b33'; did you mean 'int4-b32'?"),
    "embedder": (("--store", "embedder=int4-b32"), "the embedder is not stored as int4-b32; use one of fp32, fp16, bf16, int8"),
    "codec": (("--store", "codec=int8"), "the codec is not stored as int8; use one of fp32, fp16"),
    "tensorrt's zero points": (
        ("--target", "tensorrt", "--store", "backbone=int4-b32-asym"),
        "int4-b32-asym cannot be written for tensorrt",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_wish_that_cannot_be_met_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    words, message = BAD[fault]
    code, out, error = run(capsys, "export", tiny_checkpoint, "-o", tmp_path / "b", *words)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("part", ["blocks.1.up_proj", "blocks.0.attn_norm", "wte"])
def test_weights_that_are_no_numbers_are_named_and_leave_nothing(
    tiny_checkpoint: Path, tmp_path: Path, precision: str, part: str
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    name = f"model.transformer.{part}.weight"
    tensors[name].flat[7] = np.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(Error, match=rf"{name} holds NaN") as caught:
        export_checkpoint(source, tmp_path / "out" / "b", precision=precision)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_from_python_faults_are_errors_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="no precision is called 'int2'; use one of fp32, fp16, bf16, int8, int8-7bit, fp8, int4"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", precision="int2")  # type: ignore[arg-type]
    with pytest.raises(Error, match="no target is called 'npu'; use one of cpu, cuda, tensorrt, openvino"):
        export_checkpoint(tiny_checkpoint, tmp_path / "b", precision="int8", target="npu")  # type: ignore[arg-type]


def test_tensorrt_gets_attention_in_half_precision(golden: Path, logits: Logits) -> None:
    """And other targets do not. The price is that of half precision elsewhere."""
    expected = reference(load_file(golden / "llm" / "gqa" / "forward.safetensors"))
    half, full = logits("gqa", "fp32", "tensorrt"), logits("gqa", "fp32")
    assert np.abs(full - expected).max() < 2e-4
    assert 2e-4 < np.abs(half - expected).max() < 0.1
