"""Engines for several cards at once, and of shapes that are not even: really built, on a machine without a GPU."""

from pathlib import Path

import pytest

from mmada_lite.cli.main import main
from mmada_lite.export import rtx_builder
from mmada_lite.export.formats import format_named
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import WeightSpec, linear, linear_bytes
from mmada_lite.export.synthetic import SIZES, RandomTensors, write_bundle
from mmada_lite.export.weights import Weight
from mmada_lite.ort import engines
from mmada_lite.ort.engines import Profile

lacking = rtx_builder.missing()
real = pytest.mark.skipif(lacking is not None, reason=lacking or "")


@real
@pytest.mark.slow
def test_one_engine_for_all_cards_is_as_large_as_one_for_one(tmp_path: Path) -> None:
    """By the command: for all cards where none is named, for three, and for one."""
    bundle = write_bundle(SIZES["tiny"], tmp_path / "b", "fp16", "tensorrt")
    words = ["export", str(bundle.path), "--engine", "rtx", "--profile", "block"]
    three = [word for card in ("8.6", "8.9", "12.0") for word in ("--compute-capability", card)]
    for chosen in ([], three, ["--compute-capability", "8.6"]):
        assert main([*words, *chosen]) == 0
    found = [record for _, record in engines.records(bundle) if record.key.graph == "backbone"]
    sizes = {record.key.compute_capability: record.size for record in found}
    every = rtx_builder.every_card()
    assert set(sizes) == {every, "8.6+8.9+12.0", "8.6"}
    assert all(size - sizes["8.6"] < 4096 for size in sizes.values())
    for card in ("8.6", "8.9", "12.0"):
        assert card in every.split("+")
        assert engines.find(bundle, "backbone", card)[0] is not None
    assert engines.find(bundle, "backbone", "9.0")[0] is None


@real
@pytest.mark.parametrize(("name", "outputs", "inputs"), [("int8-b32", 64, 128), ("int4-b64", 65, 200), ("int8-b64", 33, 200)])
def test_blocks_and_odd_shapes_build_and_stay_packed(name: str, outputs: int, inputs: int, tmp_path: Path) -> None:
    """As large as a matrix must be that the kernels beside it do not hide: 16 times in each direction, still odd."""
    shape, spec = (outputs * 16 + outputs % 2, inputs * 16 + 8 * (inputs % 16 > 0)), WeightSpec(format_named(name), "tensorrt")
    with WeightFile(tmp_path / "w.bin", lambda tensor, size: None) as weights:
        graph = Graph("linear", weights)
        x = graph.input("x", "float16", ("W", shape[1]))
        linear(graph, x, Weight(RandomTensors({"w": shape}), "w"), spec, to="y")
        graph.output("y", "float16", ("W", shape[0]))
        graph.save(tmp_path / "g.onnx")
    engine = rtx_builder.build(tmp_path / "g.onnx", [Profile("block", {"W": (1, 8, 64)})], "8.6+8.9+12.0", lambda share: None)
    assert linear_bytes(shape, spec) < memoryview(engine).nbytes < 1.1 * linear_bytes(shape, spec) + (1 << 19)
