"""Engines ahead of time: kept under their key, built anew when they do not fit, shared by two processes; and, where the
wheels of TensorRT-RTX are, really parsed and built, on a machine without a GPU."""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.errors import Error
from mmada_lite.export import jetson, rtx_builder
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.engines import build_engines
from mmada_lite.export.formats import format_named
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import WeightSpec, linear_bytes
from mmada_lite.export.transformer import build_backbone
from mmada_lite.ort import engines
from mmada_lite.ort.engines import NAMES, PADDED, EngineKey, Profile, profiles_for

ROOT = Path(__file__).parents[2]
PLANTED = "tensorrt-rtx 1.0"
ALLOWED = 8 << 20  # bytes of an engine beside 1.1 times its packed weights
MORE = 6 << 20  # bytes of kernels that every further profile of one engine brings
lacking = rtx_builder.missing()
real = pytest.mark.skipif(lacking is not None, reason=lacking or "")


def planted(graph: Path, profiles: Sequence[Profile], capability: str, progress: Callable[[float], None]) -> bytes:
    progress(0.5)
    return f"{graph.name} for {capability} with {[p.name for p in profiles]}".encode()


@pytest.fixture
def bundle(tiny_checkpoint: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "bundle", precision="fp16", target="tensorrt"))


@dataclass
class BuildRun:
    """What one call printed and built."""

    lines: list[str]
    built: list[bool]
    keys: list[EngineKey]


def build_all(bundle: Bundle, capability: str = "8.9", profiles: Sequence[str] = NAMES) -> BuildRun:
    lines: list[str] = []
    engines = build_engines(bundle, capability, profiles=profiles, say=lines.append, build=planted, builder=PLANTED)
    return BuildRun(lines, [engine.built for engine in engines], [engine.key for engine in engines])


def test_what_was_built_is_found_and_not_built_again(bundle: Bundle) -> None:
    first, again = build_all(bundle), build_all(bundle)
    assert first.built == [True, True, True]
    assert again.built == [False, False, False]
    assert [key.graph for key in first.keys] == ["backbone", "text_head", "image_head"]
    assert all(" fits" in line for line in again.lines)
    key, notice = engines.find(bundle, "backbone", "8.9")
    assert key == first.keys[0]
    assert "fits" in notice
    Bundle.open(bundle.path, verify="full")  # engines do not make a bundle another one


def test_every_part_of_the_key_makes_another_engine(bundle: Bundle) -> None:
    (key, *_) = build_all(bundle).keys
    changed = {
        "graph": "text_head",
        "graph_sha256": "0" * 64,
        "builder": "tensorrt-rtx 2.0",
        "compute_capability": "8.6",
        "profile": "block",
    }
    assert set(changed) == set(EngineKey.__slots__)
    stems = {replace(key, **{name: value}).stem for name, value in changed.items()}
    assert len(stems | {key.stem}) == len(changed) + 1
    assert engines.fault(bundle, key) is None
    for name, value in changed.items():
        assert engines.fault(bundle, replace(key, **{name: value})) == engines.ABSENT


def test_weights_are_part_of_the_key(bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = Bundle.open(
        export_checkpoint(
            tiny_checkpoint, tmp_path / "other", precision="int8", target="tensorrt", formats={"backbone": "fp16"}
        )
    )
    assert bundle.files["backbone.onnx"].sha256 != "" != other.files["weights.bin"].sha256
    assert engines.graph_sha256(bundle, "backbone") != engines.graph_sha256(other, "backbone")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]), "sha256"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "bytes, and"),
    "gone": (lambda path: path.unlink(), "a file of it is missing"),
    "no host graph": (lambda path: path.with_suffix(".onnx").unlink(), "a file of it is missing"),
    "no record": (lambda path: path.with_suffix(".json").unlink(), "record cannot be read"),
    "half a record": (lambda path: path.with_suffix(".json").write_text('{"key": {'), "record cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_corrupt_engine_is_built_anew_and_that_is_said(bundle: Bundle, name: str) -> None:
    damage, message = DAMAGES[name]
    path = engines.engine_path(bundle, build_all(bundle).keys[0])
    sound = path.read_bytes()
    damage(path)
    assert engines.find(bundle, "backbone", "8.9")[0] is None
    again = build_all(bundle)
    assert again.built == [True, False, False]
    assert f"{path.name} is corrupt" in again.lines[0]
    assert message in again.lines[0]
    assert "building it anew" in again.lines[0]
    assert path.read_bytes() == sound
    assert engines.find(bundle, "backbone", "8.9")[0] is not None


def test_an_engine_of_another_card_is_not_used_and_that_is_said(bundle: Bundle) -> None:
    build_all(bundle, "8.6")
    key, notice = engines.find(bundle, "backbone", "8.9")
    assert key is None
    assert "built for compute capability 8.6, and this card has 8.9" in notice
    new = build_all(bundle, "8.9")
    assert new.built == [True, True, True]
    assert "was built for compute capability 8.6: building backbone-sm89" in new.lines[0]


def test_an_engine_of_another_card_under_a_wrong_name_is_built_anew(bundle: Bundle) -> None:
    old, new = build_all(bundle, "8.6").keys[0], build_all(bundle, "8.9").keys[0]
    for suffix in (".engine", ".json", ".onnx"):
        shutil.copyfile(
            engines.engine_path(bundle, old).with_suffix(suffix), engines.engine_path(bundle, new).with_suffix(suffix)
        )
    again = build_all(bundle, "8.9")
    assert again.built == [True, False, False]
    assert "was built for compute capability 8.6, not 8.9: building it anew" in again.lines[0]


def test_a_failed_build_leaves_nothing(bundle: Bundle) -> None:
    def fails(*_: object) -> bytes:
        raise Error("no kernel for this")

    with pytest.raises(Error, match="no kernel"):
        build_engines(bundle, "8.9", say=lambda line: None, build=fails, builder=PLANTED)
    left = [path for path in (bundle.path / "engines").iterdir() if path.suffix != ".lock"]
    assert left == []


def slowly(folder: Path, started: Any, waited: Any, lines: Any) -> None:
    """A process of the test below: its builder writes down that it ran, and takes until the other process waits for it."""

    def build(graph: Path, profiles: Sequence[Profile], capability: str, progress: Callable[[float], None]) -> bytes:
        started.set()
        with (folder.parent / "runs").open("a") as stream:
            stream.write(f"{graph.stem}\n")
        waited.wait(60)
        return planted(graph, profiles, capability, progress)

    def say(line: str) -> None:
        printed.append(line)
        if "another process is building" in line:
            waited.set()

    printed: list[str] = []
    build_engines(Bundle.open(folder), "8.9", say=say, build=build, builder=PLANTED)
    lines.put(printed)


def test_of_two_builders_at_once_one_builds_and_the_other_waits(bundle: Bundle) -> None:
    context = multiprocessing.get_context("fork")
    started, waited, lines = context.Event(), context.Event(), context.Queue()
    first, second = (context.Process(target=slowly, args=(bundle.path, started, waited, lines)) for _ in range(2))
    first.start()
    assert started.wait(60)
    second.start()
    printed = [lines.get(timeout=60), lines.get(timeout=60)]
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    runs = (bundle.path.parent / "runs").read_text().split()
    assert sorted(runs) == ["backbone", "image_head", "text_head"]
    assert (
        len([line for lines_of_one in printed for line in lines_of_one if "another process is building backbone" in line]) == 1
    )
    assert engines.find(bundle, "backbone", "8.9")[0] is not None


def test_a_builder_that_dies_does_not_block_the_next(bundle: Bundle) -> None:
    def dies(folder: Path) -> None:
        def build(*_: object) -> bytes:
            import os

            os._exit(9)

        build_engines(Bundle.open(folder), "8.9", say=lambda line: None, build=build, builder=PLANTED)

    process = multiprocessing.get_context("fork").Process(target=dies, args=(bundle.path,))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert build_all(bundle).built == [True, True, True]


def test_profiles_span_what_decoding_meets(bundle: Bundle) -> None:
    prefill, block, picture = profiles_for(bundle)
    longest, codes = bundle.architecture.max_sequence_length, 16
    assert prefill.axes["W"][2] == prefill.axes["P"][2] == block.axes["P"][2] == longest
    assert prefill.axes["Q"][2] >= max(codes, bundle.text_defaults.block_length)
    assert picture.axes["Q"] == (1, PADDED, PADDED)  # as `captured` fills 16 up
    assert picture.axes["W"][0] == codes
    for profile in (prefill, block, picture):
        assert all(least <= likely <= most for least, likely, most in profile.axes.values())
    assert prefill.shape(("B", 2, "P", 8), 2) == (1, 2, longest, 8)


def test_a_bundle_without_pictures_has_no_picture_profile(tiny_checkpoint: Path, tmp_path: Path) -> None:
    blind = shutil.copytree(tiny_checkpoint, tmp_path / "blind")
    shutil.rmtree(blind / "vq")
    bundle = Bundle.open(export_checkpoint(blind, tmp_path / "bundle", target="tensorrt"))
    assert [profile.name for profile in profiles_for(bundle)] == ["prefill", "block"]
    with pytest.raises(Error, match="leave out --profile picture"):
        profiles_for(bundle, ["picture"])


def test_what_a_host_opens_has_the_graphs_own_face(bundle: Bundle) -> None:
    key = build_all(bundle).keys[0]
    host = onnx.load(engines.host_graph_path(bundle, key)).graph
    graph = onnx.load(bundle.graph_path("backbone"), load_external_data=False).graph
    assert list(host.input) == list(graph.input)
    assert list(host.output) == list(graph.output)
    (node,) = host.node
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes["ep_cache_context"].decode() == engines.engine_path(bundle, key).name
    assert attributes["hardware_architecture"] == b"89"


def test_bad_requests(bundle: Bundle, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Error, match="lowered for cpu, which TensorRT does not read; export it with --target tensorrt"):
        build_all(Bundle.open(tiny_bundle))
    with pytest.raises(Error, match="no profile is called 'all'; use one of prefill, block, picture"):
        build_all(bundle, profiles=["all"])
    for words, message in (
        (["--profile", "block"], "add --engine rtx"),
        *([(["--engine", "rtx"], "has heads of 8 numbers, and TensorRT attends with more than 8")] if lacking is None else []),
        (["--engine", "rtx", "-o", "x"], "is a bundle: its engines go into it"),
        (["--engine", "rtx", "--precision", "int4"], "is a bundle: its engines go into it"),
        (["--engine", "rtx", "--packed"], "is a bundle: its engines go into it"),
        (["--engine", "rtx", "--attention", "mha"], "is a bundle: its engines go into it"),
        ([], "required: -o/--output"),
    ):
        assert main(["export", str(bundle.path), *words]) == 2
        assert message in capsys.readouterr().err


def test_bad_requests_are_refused_before_a_bundle_is_written(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        (["--target", "cuda"], "engines are of graphs for tensorrt, and not for cuda; leave --target out, or --engine"),
        (["--profile", "blok"], "no profile is called 'blok'; use one of prefill, block, picture"),
    ]
    if lacking is None:
        asked += [
            (["--compute-capability", card], f"compute capability {card}; use one of 8.6, 8.9")
            for card in ("8.95", "abc", "7.5")
        ]
    for words, message in asked:
        assert main(["export", str(tiny_checkpoint), "-o", str(tmp_path / "x"), "--engine", "rtx", *words]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_without_the_wheels_the_install_line_is_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rtx_builder, "_BINDINGS", "no_such_bindings")
    assert main(["export", str(bundle.path), "--engine", "rtx", "--compute-capability", "8.9"]) == 2
    assert 'no_such_bindings; pip install "mmada-lite[rtx-build]"' in capsys.readouterr().err
    assert not (bundle.path / "engines").exists()


# ---- what really builds


@real
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_the_small_model_becomes_engines(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line, one profile: at most 1.1 times the packed weights and 8 MB."""
    source = ROOT / "train" / "shipped" / "emoji"
    words = ["export", source, "-o", tmp_path / "b", "--precision", precision, "--engine", "rtx", "--compute-capability", "8.9"]
    assert main([*map(str, words), "--profile", "block", "--profile", "picture"]) == 0
    assert "built backbone-sm89" in capsys.readouterr().err
    bundle = Bundle.open(tmp_path / "b")
    for path, record in engines.records(bundle):
        packed = bundle.quantization[record.key.graph].bytes
        assert packed is not None
        further = record.key.profile.count("+")
        assert packed < path.stat().st_size <= 1.1 * packed + ALLOWED + further * MORE, record
    assert main(["export", str(tmp_path / "b"), "--engine", "rtx", "--compute-capability", "8.9", "--profile", "block"]) == 0
    (single,) = [p for p, r in engines.records(bundle) if r.key.graph == "backbone" and "+" not in r.key.profile]
    assert single.stat().st_size <= 1.1 * (bundle.quantization["backbone"].bytes or 0) + ALLOWED


class RandomWeights:
    """Two layers of size S: d 1024, 16 heads, feed-forward 3072; distinct numbers, the same at every reading."""

    config = TransformerConfig(
        d_model=1024, n_layers=2, n_heads=16, n_kv_heads=16, mlp_hidden_size=3072, vocab_size=512, rope_theta=500000.0,
        rms_norm_eps=1e-5, mask_token_id=1, eos_token_id=2, max_sequence_length=1280, codebook_size=64, llm_vocab_size=448,
        num_vq_tokens=64,
    )  # fmt: skip

    def shape(self, name: str) -> tuple[int, ...]:
        return self.config.expected_tensors()[name]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        first = rows.start if rows else 0
        count = (rows.stop - rows.start) if rows else self.shape(name)[0]
        random = np.random.default_rng([*name.encode(), first])
        return random.standard_normal((count, *self.shape(name)[1:]), dtype=np.float32) * np.float32(0.03)


def packed_bytes(spec: WeightSpec) -> int:
    shapes: Iterable[tuple[int, ...]] = RandomWeights.config.expected_tensors().values()
    return sum(linear_bytes(shape, spec) for shape in shapes if shape[0] != RandomWeights.config.vocab_size)


@real
def test_a_size_s_layer_group_builds_and_int4_stays_packed(tmp_path: Path) -> None:
    """Dynamic window, past from nothing; sizes follow the packed weights, so nothing was unpacked."""
    axes = {"B": (1, 1, 1), "W": (1, 32, 1280), "P": (0, 256, 1280), "Q": (1, 32, 1024)}
    sizes, packed = {}, {}
    for name in ("fp16", "int8", "fp8", "int4-b128"):
        spec = WeightSpec(format_named(name), "tensorrt")
        with WeightFile(tmp_path / f"{name}.bin", lambda tensor, size: None) as weights:
            graph = Graph("backbone", weights)
            build_backbone(graph, RandomWeights(), spec, RandomWeights.config)
            graph.save(tmp_path / f"{name}.onnx")
        shares: list[float] = []
        engine = rtx_builder.build(tmp_path / f"{name}.onnx", [Profile("block", axes)], "8.9", shares.append)
        sizes[name], packed[name] = memoryview(engine).nbytes, packed_bytes(spec)
        assert packed[name] < sizes[name] <= 1.1 * packed[name] + ALLOWED, name
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert packed["int4-b128"] < 0.27 * packed["fp16"]
    for name in ("int8", "fp8", "int4-b128"):
        saved = sizes["fp16"] - sizes[name]
        assert saved == pytest.approx(packed["fp16"] - packed[name], rel=0.1), name


@real
def test_what_tensorrt_refuses_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(Error, match=r"cannot read .*broken\.onnx"):
        rtx_builder.build(tmp_path / "broken.onnx", [], "8.9", lambda share: None)
    with pytest.raises(Error, match=r"builds nothing for compute capability 1\.0; use one of 7\.5, "):
        rtx_builder.build(tiny_bundle / "text_head.onnx", [], "8.6+1.0", lambda share: None)


@real
def test_an_interruption_ends_the_build(tmp_path: Path, bundle: Bundle) -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rtx_builder.build(bundle.graph_path("backbone"), profiles_for(bundle)[:1], "8.9", interrupt)


def test_an_engine_of_another_tensorrt_is_not_used_and_that_is_said(bundle: Bundle) -> None:
    build_all(bundle)
    assert engines.find(bundle, "backbone", "8.9", version="1.0")[0] is not None
    key, notice = engines.find(bundle, "backbone", "8.9", version="1.7.1")
    assert key is None
    assert "was built with tensorrt-rtx 1.0, and 1.7.1 is here" in notice
    assert engines.find(bundle, "backbone", "8.9", "tensorrt")[0] is None


TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then echo "=== TensorRT v100300 [TensorRT] ==="; exit 0; fi
for word in "$@"; do case "$word" in
    --saveEngine=*) target="${word#--saveEngine=}";;
    --onnx=*text_head.onnx) [ -n "$REFUSE" ] && { echo "[E] no kernel for text_head"; exit 1; };;
esac; done
printf '%s\\n' "$@" > "$target"
"""


def test_the_script_for_a_jetson_builds_with_trtexec(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(TRTEXEC)
    trtexec.chmod(0o755)
    words = [str(bundle.path), "--trtexec", str(trtexec), "--memory", "8GB"]
    assert jetson.main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "of 8.0 GB" in out
    assert out.splitlines()[0].endswith("fits")
    assert out.count("--stronglyTyped") == 3
    monkeypatch.setenv("REFUSE", "1")
    assert jetson.main(words) == 2
    assert "trtexec cannot build text_head.onnx: [E] no kernel for text_head" in capsys.readouterr().err
    monkeypatch.delenv("REFUSE")
    assert jetson.main(words) == 0
    key, _ = engines.find(bundle, "backbone", "8.7", "tensorrt")
    assert key is not None
    assert key.builder == "tensorrt 100300"
    given = engines.engine_path(bundle, key).read_text().split()
    assert [word for word in given if word.startswith("--profile=")] == ["--profile=0", "--profile=1", "--profile=2"]
    assert sum(word.startswith("--maxShapes=embeddings:1x256x32,positions:1x256,") for word in given) == 3
    host = onnx.load(engines.host_graph_path(bundle, key)).graph.node[0]
    assert b"TensorrtExecutionProvider" in [a.s for a in host.attribute]


def test_a_jetson_without_trtexec(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert jetson.main([str(bundle.path), "--trtexec", "no/trtexec"]) == 2
    assert "JetPack brings it" in capsys.readouterr().err


def test_a_record_holds_the_key(bundle: Bundle) -> None:
    key = build_all(bundle).keys[0]
    content = json.loads(engines.engine_path(bundle, key).with_suffix(".json").read_text())
    assert EngineKey(**content["key"]) == key
