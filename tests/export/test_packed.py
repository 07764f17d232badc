"""Codes packed for CUDA's fused kernels: byte by byte where onnxruntime's documents and its own packing put them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import mmada_lite
from mmada_lite.bundle import PACKED_FOR_CUDA, Bundle
from mmada_lite.cli.main import main
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.formats import FORMATS, pack_blocks, unpack_blocks
from mmada_lite.export.packed import can_be_packed, pack_fused, rows_of_a_tile
from mmada_lite.ort import devices, loader

EMOJI = Path(__file__).parents[2] / "train" / "shipped" / "emoji"
# The order of inputs in a run, as TensorRT-LLM, whose kernels these are, publishes it for weights of eight and of four bits.
EIGHT = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
FOUR = [place + more for place in (0, 2, 4, 6) for more in (0, 1, 8, 9, 16, 17, 24, 25)]


def read(packed: np.ndarray, column: int, row: int, bits: int) -> int:
    """The code of a column and an input, found by following the documented steps one after another for it alone: inputs are
    put in a run's order, columns stand side by side tile by tile, and in a word of 32 bits the even elements come before the
    odd ones (eight of four bits), or the two in the middle change places (four of eight)."""
    run, beside, word = (16, 2, 4) if bits == 8 else (32, 4, 8)
    order = EIGHT if bits == 8 else FOUR
    inputs = packed.shape[1] * 8 // bits
    row = row // run * run + order.index(row % run)
    stream = packed[column // beside * beside :][:beside].reshape(-1)
    element = row // 64 * 64 * beside + column % beside * 64 + row % 64
    assert element < beside * inputs
    place = element % word
    moved = [0, 2, 1, 3][place] if bits == 8 else (place // 2 if place % 2 == 0 else 4 + place // 2)
    at = element // word * word + moved
    if bits == 8:
        return int(stream[at]) - 128
    return (int(stream[at // 2]) >> (4 * (at % 2)) & 15) - 8


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_lies_where_a_kernel_reads_it(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(-(1 << bits - 1), 1 << bits - 1, (64, 192)).astype(np.int8)
    packed = pack_fused(codes, bits)
    assert packed.shape == (64, 192 * bits // 8)
    assert rows_of_a_tile(bits) == (EIGHT if bits == 8 else FOUR)
    for column in range(64):
        assert [read(packed, column, row, bits) for row in range(192)] == codes[column].tolist()
    np.testing.assert_array_equal(np.concatenate([pack_fused(codes[:20], bits), pack_fused(codes[20:], bits)]), packed)


def test_what_no_kernel_takes_is_not_packed() -> None:
    assert can_be_packed(64, 128, 4)
    assert can_be_packed(32, 128, 8)
    assert not can_be_packed(32, 128, 4)
    assert not can_be_packed(64, 96, 4)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_packed_bundle_holds_the_same_codes_and_says_so(precision: str, tmp_path: Path) -> None:
    bundles = {}
    for packed in (False, True):
        written = export_checkpoint(EMOJI, tmp_path / str(packed), precision=precision, target="cuda", packed=packed)  # type: ignore[arg-type]
        bundles[packed] = Bundle.open(written, verify="full")
    assert bundles[True].needs == (PACKED_FOR_CUDA,)
    assert bundles[False].needs == ()
    fmt, seen = FORMATS["int4-b32" if precision == "int4" else "int8"], 0
    graphs = {packed: onnx.load(str(bundle.graph_path("backbone"))) for packed, bundle in bundles.items()}
    tensors = {packed: {each.name: each for each in model.graph.initializer} for packed, model in graphs.items()}
    for plain, other in zip(graphs[False].graph.node, graphs[True].graph.node, strict=True):
        if plain.op_type != "MatMulNBits":
            assert plain == other
            continue
        about = {attribute.name: attribute.i for attribute in other.attribute}
        values = [numpy_helper.to_array(tensors[packed][plain.input[1]]) for packed in (False, True)]
        if about.get("weight_prepacked") != 1:
            assert about["K"] % 64 or about["N"] % 32
            np.testing.assert_array_equal(*values)
            continue
        codes = unpack_blocks(values[0], fmt, about["K"])
        np.testing.assert_array_equal(values[1].reshape(about["N"], -1), pack_fused(codes, about["bits"]))
        assert (pack_blocks(codes, fmt, 32) == values[0]).all()
        seen += 1
    assert seen


def test_nothing_but_cuda_runs_what_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU provider would read other weights, in silence (findings/onnxruntime-cpu-reads-packed.sh)."""
    bundle = tmp_path / "bundle"
    assert main(["export", str(EMOJI), "-o", str(bundle), "--precision", "int4", "--target", "cuda", "--packed"]) == 0
    for device in ("cpu", "auto"):
        with pytest.raises(Error, match=r"is packed for cuda, and this would run on cpu.*export it without --packed"):
            mmada_lite.load(bundle, device=device)
    monkeypatch.setattr(devices, "fault", lambda device: None)
    assert loader.device_for(Bundle.open(bundle), "cuda").name == "cuda"
    assert main(["export", str(EMOJI), "-o", str(tmp_path / "x"), "--precision", "int4", "--packed"]) == 2
    assert "codes are packed for CUDA's kernels alone, and not for cpu; leave --packed out" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_has_no_codes_is_not_said_to_be_packed(tmp_path: Path) -> None:
    with pytest.raises(Error, match="fp16 has no codes to pack; leave --packed out, or use --precision int4 or int8"):
        export_checkpoint(EMOJI, tmp_path / "x", precision="fp16", target="cuda", packed=True)
    assert not (tmp_path / "x").exists()
