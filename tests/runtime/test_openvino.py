"""OpenVINO in onnxruntime's place: the same ids, the options that were asked for, graphs that come back from its cache as they
were, and one line for what cannot be."""

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shipped_cases import CASES
from shipped_ids import difference, read_record, run_case

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding.denoiser import Window
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.ort import devices, loader, openvino, openvino_graphs
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.session import Device, open_session

if fault := openvino.lacking():
    pytest.skip(fault, allow_module_level=True)

CPU, OPENVINO = Device("cpu", "a test"), Device("openvino", "a test")
ONE = np.ones((1, 1), np.float32)
KINDS = ("text", "drawing", "question", "inpainting")
FEW = [case for kind in KINDS for case in [case for case in CASES if case.kind == kind][:2]]


def exported(checkpoint: Path, folder: Path, precision: str, target: str = "openvino", **formats: str) -> Bundle:
    return Bundle.open(export_checkpoint(checkpoint, folder, precision=precision, target=target, formats=formats))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lowered(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(tiny_checkpoint, tmp_path_factory.mktemp("openvino") / "bundle", "bf16")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    openvino_graphs._writable.cache_clear()
    return tmp_path / "cache"


def states(bundle: Bundle, device: Device) -> list[np.ndarray]:
    """Hidden states of a row, of one behind a past, and the keys of both layers."""
    denoiser = loader.open_denoiser(bundle, device, 1)
    tokens = np.array([[1, 5, 9, 2, 7, 3], [4, 4, 8, 1, 2, 6]])
    window = Window(tokens, np.arange(6), np.array([[0, 3, 5]] * 2))
    hidden, past = denoiser.forward(window, keep=True)
    assert past is not None
    later, _ = denoiser.forward(Window(tokens[:, :2], np.arange(6, 8), np.array([[0, 1]] * 2), past), keep=False)
    return [hidden, later, *past.keys]


# ---- the same numbers


@pytest.mark.parametrize("speed", ["exact", "fast"])
def test_the_packaged_model_writes_what_it_wrote_on_a_cpu(speed: str) -> None:
    """Texts, drawings, questions about pictures and inpaintings, with caches and guidance: but for near ties."""
    _, runs = read_record()
    recorded = {run.case: run for run in runs if run.speed == speed}
    model = mmada_lite.load(device="openvino", threads=1, speed=speed)
    compared = [difference(recorded[case.name], run_case(model, case, speed)) for case in FEW]
    differences = [one for one in compared if one is not None]
    assert not [str(one) for one in differences if one.counts(False)]
    assert sum(not one.same_ids for one in differences) <= 1, "\n".join(map(str, differences))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8-7bit", "int4"])
def test_every_precision_gives_onnxruntimes_numbers(tiny_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    """Codes within 63 are summed exactly on any processor; beside int4 onnxruntime alone rounds activations."""
    bundle = exported(tiny_checkpoint, tmp_path / "b", precision)
    floating = 2e-5 if openvino_graphs.precision_of(bundle, "backbone", OPENVINO) == "f32" else 5e-2
    near = {"int8-7bit": 1e-2, "int4": 2e-2}.get(precision, floating)  # codes may turn on the last bit of a float
    for ours, theirs in zip(states(bundle, OPENVINO), states(bundle, CPU), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=near * np.abs(theirs).max())


def test_graphs_for_openvino_are_those_for_a_cpu_turned_by_plain_operators(tiny_checkpoint: Path, tmp_path: Path) -> None:
    both = [exported(tiny_checkpoint, tmp_path / target, "int8-7bit", target) for target in ("cpu", "openvino")]
    for ours, theirs in zip(*(states(bundle, CPU) for bundle in both), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    files = [{name: info.sha256 for name, info in bundle.files.items() if name != "backbone.onnx"} for bundle in both]
    assert files[0] == files[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_heads_first_tokens_are_right(temperature: float) -> None:
    """As onnxruntime's from the first run of a compiled graph on, with rows of any number."""
    path, random = mmada_lite.model.embedded_bundle() / "text_head.onnx", np.random.default_rng(0)
    ours, theirs = openvino.Session(path, openvino.Compiling("openvino", 1)), open_session(path, CPU, 1)
    for rows, queried in ((1, 16), (2, 3), (1, 70)):
        feeds = {
            "hidden": random.standard_normal((rows, queried, 192), dtype=np.float32),
            "mix": random.standard_normal((rows, rows), dtype=np.float32),
            "temperature": np.array(temperature, np.float32),
            "uniform": random.random((rows, queried), dtype=np.float32),
        }
        for mine, yours in zip(*(each.run(["token", "entropy"], feeds) for each in (ours, theirs)), strict=True):
            np.testing.assert_allclose(mine, yours, atol=1e-4)


def test_weights_in_bf16_stay_what_they_are(lowered: Bundle) -> None:
    """The backbone's products read them as they are stored, and give onnxruntime's numbers within what bf16 rounds; without
    that OpenVINO would hold them in float32. A head's logits are not rounded."""
    models = []

    def seen(model: Any) -> Any:
        models.append(openvino._with_products_in_bf16(model))
        return models[-1]

    how = openvino.Compiling("openvino", 1)
    session = openvino.Session(lowered.graph_path("backbone"), how, seen)
    products = [node for node in models[0].get_ops() if node.get_type_name() == "MatMul"]
    weights = [node.input_value(1).get_node() for node in products]
    assert len(weights) == 7 * lowered.architecture.n_layers
    assert {node.get_type_name() for node in weights} == {"Constant"}
    assert {node.get_output_element_type(0).to_string() for node in weights} == {"bf16"}
    theirs = open_session(lowered.graph_path("backbone"), CPU, 1)
    feeds = {"embeddings": np.random.default_rng(0).standard_normal((1, 5, lowered.architecture.d_model), dtype=np.float32)}
    feeds |= {"positions": np.arange(5)[None], "rows": np.array([[0, 4]])}
    for value in theirs.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros([1, value.shape[1], 0, value.shape[3]], np.float32)
    (ours,), (expected,) = (each.run(["hidden"], feeds) for each in (session, theirs))
    np.testing.assert_allclose(ours, expected, atol=5e-2 * np.abs(expected).max())
    assert [products_of(lowered, graph) for graph in ("backbone", "text_head")] == [{"bf16"}, {"f32"}]


def products_of(bundle: Bundle, graph: str) -> set[str]:
    """The types of the products with weights, as a graph is compiled for a device with bf16."""
    read: list[Any] = []
    openvino.Session(bundle.graph_path(graph), openvino.Compiling("openvino", 1, "bf16"), lambda m: read.append(m) or m)
    return {node.get_output_element_type(0).to_string() for node in read[0].get_ops() if node.get_type_name() == "MatMul"}


def test_states_are_mixed_before_they_are_rounded() -> None:
    path, random = mmada_lite.model.embedded_bundle() / "text_head.onnx", np.random.default_rng(0)
    head = openvino.Session(path, openvino.Compiling("openvino", 1))
    feeds = {"hidden": random.standard_normal((2, 3, 192), dtype=np.float32), "mix": np.array([[4.5, -3.5]], np.float32)}
    feeds |= {"temperature": np.array(0, np.float32), "uniform": np.zeros((1, 3), np.float32)}
    (before,) = head.run(["logits"], feeds)
    head._rounds_states = True
    given = head._mixed(feeds)
    assert (given["hidden"].shape, given["mix"].tolist()) == ((1, 3, 192), [[1.0]])
    np.testing.assert_allclose(head.run(["logits"], feeds)[0], before, atol=1e-4)


# ---- options and cache


@pytest.mark.parametrize("threads", [1, 2])
def test_options_hold(lowered: Bundle, cache: Path, threads: int) -> None:
    """What is asked of OpenVINO is read back from what it compiled."""
    opened = openvino_graphs.open_compiled(lowered, "backbone", OPENVINO, threads)
    held = {name: opened.compiled.get_property(name) for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS")}
    assert held == {"INFERENCE_NUM_THREADS": min(threads, usable_cores()), "NUM_STREAMS": 1}
    precision = openvino_graphs.precision_of(lowered, "backbone", OPENVINO)
    assert opened.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == precision
    assert precision == ("bf16" if openvino.computes("openvino", "bf16") else "f32")


def test_every_graph_has_the_names_of_the_contract_compiled_and_from_the_cache(lowered: Bundle, cache: Path) -> None:
    for _ in range(2):
        for graph, info in lowered.graphs.items():
            opened = openvino_graphs.open_compiled(lowered, graph, OPENVINO, 1)
            assert {value.name for value in opened.get_inputs()} == set(info.inputs), graph
            assert {value.name for value in opened.get_outputs()} == set(info.outputs), graph


def test_a_kept_graph_is_what_is_held_from_the_first_load_on(lowered: Bundle, cache: Path) -> None:
    """Compiling leaves copies of the weights in memory; a kept graph maps them."""
    assert openvino_graphs.open_compiled(lowered, "backbone", OPENVINO, 1).compiled.get_property("LOADED_FROM_CACHE")


def test_a_graph_comes_back_from_the_cache_as_it_was(lowered: Bundle, cache: Path) -> None:
    first = states(lowered, OPENVINO)
    (folder,) = (cache / "mmada-lite" / "openvino").iterdir()
    kept = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(kept) == 3  # backbone and heads
    again = openvino_graphs.open_compiled(lowered, "backbone", OPENVINO, 1)
    assert again.compiled.get_property("LOADED_FROM_CACHE")
    for ours, before in zip(states(lowered, OPENVINO), first, strict=True):
        np.testing.assert_array_equal(ours, before)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == kept
    for file in folder.iterdir():  # damaged ones are compiled anew
        file.chmod(0o600)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    np.testing.assert_array_equal(states(lowered, OPENVINO)[0], first[0])


def test_the_cache_is_of_one_version_one_processor_and_one_bundle(
    lowered: Bundle, tiny_checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {openvino_graphs._kept(lowered, "openvino")}
    folders.add(openvino_graphs._kept(exported(tiny_checkpoint, tmp_path / "other", "fp32"), "openvino"))
    monkeypatch.setattr(openvino, "version_here", lambda: "2026.5.0")
    folders.add(openvino_graphs._kept(lowered, "openvino"))
    monkeypatch.setattr(openvino, "processor", lambda device: "another")
    folders.add(openvino_graphs._kept(lowered, "openvino"))
    assert (len(folders), None in folders) == (4, False)
    assert openvino_graphs._kept(Bundle.open(mmada_lite.model.embedded_bundle()), "openvino") is None


def test_a_cache_that_cannot_be_written_is_said_once(lowered: Bundle, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file")
    loader.open_denoiser(lowered, OPENVINO, 1)
    (line,) = (record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage())
    assert line.startswith(f"{cache}/mmada-lite/openvino/")
    assert "set XDG_CACHE_HOME to" in line
    assert "\n" not in line


# ---- bf16


def test_bf16_is_said_where_it_becomes_fp32(
    lowered: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino, "computes", lambda device, precision: precision == "f32")
    mmada_lite.load(lowered.path, device="openvino", threads=1)
    assert caplog.messages == [
        "bundle is stored in bf16, which openvino lacks here: it is computed in fp32, in the time of fp32"
    ]
    for products, mend in ((False, ""), (True, "; --device openvino computes it in bf16")):
        caplog.clear()
        monkeypatch.setattr(loader, "bf16_products", lambda products=products: products)
        mmada_lite.load(lowered.path, device="cpu", threads=1)
        assert caplog.messages == [f"bundle is stored in bf16, and onnxruntime computes it in fp32, in the time of fp32{mend}"]


def test_the_device_says_what_it_computes_in(lowered: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "computes", lambda device, precision: True)
    assert loader.device_for(lowered, "openvino").reason == "asked for; computed in bf16"
    assert loader.device_for(lowered, "auto").name == "openvino"
    assert loader.device_for(Bundle.open(mmada_lite.model.embedded_bundle()), "openvino").reason.endswith("computed in f32")


# ---- one line for what cannot be


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    return captured.err


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        (absent, 'OpenVINO is not installed; pip install "mmada-lite[openvino]"'),
        (lambda name: "2025.3.0", "OpenVINO 2025.3.0 is installed, and 2026.4 or later, below 2027, is needed; pip install"),
        (lambda name: "2027.0.0", "OpenVINO 2027.0.0 is installed, and 2026.4 or later, below 2027, is needed; pip install"),
    ],
)
def test_the_wrong_openvino(
    version: Callable[[str], str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "version", version)
    assert line in refused(["chat", "hello", "--device", "openvino"], capsys)


@pytest.mark.parametrize("place", ["gpu", "npu"])
def test_a_device_that_is_not_there(place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "core", lambda: type("Core", (), {"available_devices": ["CPU"]}))
    line = refused(["chat", "hello", "--device", f"openvino:{place}"], capsys)
    assert (
        f"OpenVINO finds no {place.upper()} here (it finds CPU); install Intel's driver for it, or use --device openvino"
        in line
    )


def test_a_bundle_of_another_target(
    lowered: Bundle, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("cuda", "tensorrt"):
        bundle = exported(tiny_checkpoint, tmp_path / target, "fp16", target)
        line = refused(["chat", "hello", "-m", str(bundle.path), "--device", "openvino"], capsys)
        assert f"{target} is made for {target}, which OpenVINO does not read; export it with --target openvino" in line
    monkeypatch.setattr(devices, "fault", lambda device: None)
    for device, target in (("cuda", "cuda"), ("rtx", "tensorrt"), ("tensorrt", "tensorrt")):
        line = refused(["chat", "hello", "-m", str(lowered.path), "--device", device], capsys)
        assert f"bundle is made for openvino, and not for {device}; export it with --target {target}" in line


def test_int8_whose_sums_would_overflow(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(tiny_checkpoint, tmp_path / "b", "int8")
    monkeypatch.setattr(openvino_graphs, "exact_int8", lambda: False)
    line = refused(["chat", "hello", "-m", str(bundle.path), "--device", "openvino"], capsys)
    assert (
        "b is int8, whose sums overflow in OpenVINO on a processor without VNNI; export it with --precision int8-7bit" in line
    )
    assert loader.device_for(bundle, "auto").name == "cpu"
    monkeypatch.setattr(openvino_graphs, "exact_int8", lambda: True)
    assert loader.device_for(bundle, "auto").name == "openvino"


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_bf16_for_a_target_that_has_none(
    target: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["export", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--precision", "bf16", "--target", target]
    assert f"bf16 cannot be written for {target}, whose kernels take half precision; use --precision fp16" in refused(
        told, capsys
    )
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_openvino_is_its_reason_in_one_line(lowered: Bundle) -> None:
    def fails() -> Any:
        raise RuntimeError(
            "Exception from src/a.cpp:1:\nException from src/b.cpp:2:\nCheck 'x < y' failed at src/c.cpp:3:\nx is 4\n"
        )

    with pytest.raises(RuntimeError, match=r"^x is 4$"):
        openvino._plainly(fails)
    with pytest.raises(Error, match="the graph backbone fails in OpenVINO: x is 4"):
        loader._guard(lowered, OPENVINO)(lambda: openvino._plainly(fails), "backbone")


# ---- the race


def test_a_race_is_refused_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmada_lite.bench.speed import runtimes
    from mmada_lite.model import embedded_bundle

    for words, line in (
        (["--beside", str(embedded_bundle())], "is no bundle of --shape tiny"),
        (["--beside", str(tmp_path / "none")], "no such bundle folder"),
        (["--pasts", "-5"], "-5 cannot be measured"),
    ):
        assert runtimes.main(["--shape", "tiny", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "r.json"), *words]) == 2
        assert line in capsys.readouterr().err.strip().splitlines()[-1]
        assert not list(tmp_path.iterdir())


def test_runtimes_race_over_windows_pasts_and_heads(tmp_path: Path) -> None:
    """Every side in every task, with its error: small in fp32, larger in less."""
    from mmada_lite.bench.speed import runtimes
    from mmada_lite.export.synthetic import size_named, write_bundle

    other = write_bundle(size_named("tiny"), tmp_path / "other", "int4", "cpu").path
    words = ["--shape", "tiny", "--work", str(tmp_path), "--windows", "8", "32", "--pasts", "0", "20", "--heads", "8"]
    words += ["--beside", str(other)]
    assert runtimes.main([*words, "--rounds", "1", "--threads", "1", "-o", str(tmp_path / "r.json")]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len({row["task"] for row in rows}) == 5
    sides = {*runtimes.sides(["fp32", "bf16", "int8"]), runtimes.THEIRS, "beside: other"}
    assert {(row["task"], row["side"]) for row in rows} == {(row["task"], side) for row in rows for side in sides}
    errors = {row["side"]: row["rms_error"] for row in rows if row["task"] == "32 tokens behind 20"}
    assert errors[runtimes.EXACT] == 0
    assert all(row["times"][row["side"]]["median"] == 1 for row in rows if row["side"] in row["times"])
    assert errors["fp32 on openvino"] < 1e-5 < errors["bf16 on openvino"] < 1e-2
