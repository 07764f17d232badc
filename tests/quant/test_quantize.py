"""`mmada-lite quantize`: near the model, the same from either source, never half there, faults in one line."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conversions import files_of
from safetensors.numpy import load_file, save_file

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding.denoiser import Window
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint, open_checkpoint
from mmada_lite.export.formats import FORMATS
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.quant import convert
from mmada_lite.quant.block_rounding import Batch, BlockForward, BlockRounder, _PrefixedTensors, embed, load_block
from mmada_lite.quant.convert import Request, quantize_model, specs_named
from mmada_lite.quant.methods import method_named
from mmada_lite.quant.transforms import SITES, TransformedTensors, Transforms

ONE = np.ones((1, 1), np.float32)


def logits_of(bundle: Path) -> np.ndarray:
    model = mmada_lite.load(bundle, device="cpu", threads=1)
    tokens = np.random.default_rng(0).integers(0, 256, (1, 40))
    hidden, _ = model.denoiser.forward(Window(tokens, np.arange(40), np.arange(40)[None]), keep=False)
    return model.denoiser.logits("text", hidden, ONE)


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_model(
        tiny_checkpoint, tmp_path_factory.mktemp("clip") / "bundle", Request(format="int4-b32", method="clip")
    )


@pytest.mark.parametrize("method", ["rtn", "clip", "rotate", "smooth", "gptq", "rotate+gptq", "smooth+gptq", "rotate+gptaq"])
@pytest.mark.parametrize("form", ["int8", "int4-b32-asym"])
def test_every_method_makes_a_bundle_near_the_model(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, method: str, form: str
) -> None:
    request = Request(format=form, method=method, prompts=1, steps=2)
    written = quantize_model(tiny_checkpoint, tmp_path / "b", request)
    bundle, expected, logits = Bundle.open(written, verify="full"), logits_of(tiny_bundle), logits_of(written)
    assert np.abs(logits - expected).max() < (0.2 if form == "int8" else 1) * np.abs(expected).max()
    assert bundle.tensors["backbone"]["blocks.0.q_proj.weight"] == form
    assert bundle.tensors["backbone"]["blocks.0.attn_norm.weight"] == "fp32"
    assert (bundle.provenance.method or "rtn").startswith(request.method.removesuffix("+rtn"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_rounding_to_nearest_is_what_export_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    quantize_model(tiny_checkpoint, tmp_path / "a", Request(format="int4", method="rtn"))
    export_checkpoint(tiny_checkpoint, tmp_path / "b", precision="int4")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("method", ["clip", "gptq", "rotate+gptq"])
def test_a_bundle_in_full_precision_is_as_good_a_source(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, method: str
) -> None:
    request = Request(format="int4-b32", method=method, prompts=1, steps=1, store=(("codec", "fp32"),))
    quantize_model(tiny_checkpoint, tmp_path / "a", request)
    quantize_model(tiny_bundle, tmp_path / "b", request)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert Bundle.open(tmp_path / "b").provenance.source_sha256 == Bundle.open(tiny_bundle).provenance.source_sha256
    mmada_lite.load(tmp_path / "b").paint("a cat").picture  # noqa: B018


@pytest.mark.parametrize("form", ["int4-b32", "int4-b64-asym"])
def test_layers_that_aim_make_up_for_those_before_them(tiny_checkpoint: Path, form: str) -> None:
    """All layers in turn, calibrated on 24 rows: other rows leave them nearer to the states that no rounding touched."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    config, source = checkpoint.config, TransformedTensors(checkpoint.tensors, checkpoint.config, Transforms())
    tokens, spec = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (48, 40))), WeightSpec(FORMATS[form])
    calibration, unseen = (Batch(part, torch.ones(24, 40), torch.ones(24, 40), "chat") for part in tokens.split(24))
    errors = {}
    for rounding in ("gptq", "gptaq"):
        states, exact_states = embed(source, [calibration]), embed(source, [calibration])
        rounded_states, wanted_states = embed(source, [unseen]), embed(source, [unseen])
        for number in range(config.n_layers):
            rounder = BlockRounder(load_block(source, config, number), config, method_named(rounding), spec, "l")
            exact = BlockForward(copy.deepcopy(rounder.block), config, wanted_states, False)
            rounder.advance(states, [calibration], exact_states if rounding == "gptaq" else None)
            rounded = BlockForward(rounder.block, config, rounded_states, False)
            for site in SITES:
                rounded.go_past(site)
                exact.go_past(site)
        errors[rounding] = float((rounded_states[0] - wanted_states[0]).square().mean())
    assert 0 < errors["gptaq"] < 0.95 * errors["gptq"]


def test_a_quantized_bundle_is_no_source(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="its embedder is quantized already"):
        quantize_model(quantized, tmp_path / "b", Request(method="rtn"))


def test_formats_by_name() -> None:
    formats = {
        group: spec.format.name for group, spec in specs_named("int4-b128-asym", "cpu", {"image_head": "int4-b32"}).items()
    }
    assert formats == {
        "embedder": "int8",
        "backbone": "int4-b128-asym",
        "text_head": "int4-b64-asym",
        "image_head": "int4-b32",
        "codec": "fp16",
    }
    assert specs_named("int8-b64", "cuda", {})["text_head"].format.name == "int8-b64"


def damaged(change: Callable[[Path], None], source: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(source, folder / "source"))
    change(copy)
    return copy


def test_weights_that_are_no_numbers_are_named_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.transformer.blocks.1.up_proj.weight"

    def poison(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name].copy()
        tensors[name][3, 5] = np.nan
        save_file(tensors, folder / "model.safetensors")

    source = damaged(poison, tiny_checkpoint, tmp_path)
    for method in ("rtn", "clip", "rotate", "gptq"):
        assert (
            main(["quantize", str(source), "-o", str(tmp_path / "out" / "b"), "--method", method, "--prompt-count", "1"]) == 2
        )
        assert f"{name} holds NaN" in capsys.readouterr().err
        left = (tmp_path / "out").glob("*")  # a conversion in progress may stay, hidden
        assert not [path for path in left if path.name == "b" or "partial" in path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "int4-b30"], "no format is called 'int4-b30'; did you mean 'int4-b3"),
        (["--format", "int5"], "no format is called 'int5'; did you mean 'int"),
        (["--method", "gptg"], "no method is called 'gptg'; did you mean 'gptq'?"),
        (["--method", "rtn+clip"], "says one thing twice"),
        (["--format", "fp16"], "there is nothing to round in fp16"),
        (["--store", "body=int8"], "no group of tensors is called 'body'"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--prompt-count", "0"], "sees nothing; use 1 or more"),
        (["--record-with", "nowhere"], "nowhere"),
        (["--work", "taken"], "holds other things than a conversion in progress"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert main(["quantize", str(tiny_checkpoint), "-o", "b", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]  # no bundle, and no conversion in progress
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


def test_a_truncated_shard_and_a_full_disk_are_said(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])

    source = damaged(cut, tiny_checkpoint, tmp_path)
    assert main(["quantize", str(source), "-o", str(tmp_path / "b")]) == 2
    assert "truncated" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("mmada_lite.files.shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert main(["quantize", str(tiny_checkpoint), "-o", str(tmp_path / "b")]) == 2
    assert "the disk has 1.0 KB free" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_conversion_that_calibrates_asks_for_room_for_two_bundles(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle, and the codes in its work folder."""
    free = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr("mmada_lite.files.shutil.disk_usage", lambda _: free)
    monkeypatch.setattr(convert, "_MARGIN", 0)
    needed = {}
    for method in ("clip", "gptq"):
        with pytest.raises(Error, match=r"needs (\d+\.\d) (.B)") as fault:
            quantize_model(tiny_checkpoint, tmp_path / "b", Request(format="int8", method=method))
        needed[method] = float(re.search(r"needs (\d+\.\d)", str(fault.value))[1])  # type: ignore[index]
    assert needed["gptq"] == pytest.approx(2 * needed["clip"], rel=0.01)


def test_a_codec_that_is_taken_over_keeps_its_format(tiny_bundle: Path) -> None:
    taken = convert._spec_of_adopted_codec(tiny_bundle, WeightSpec(FORMATS["fp16"], "cuda"), explicitly=False)
    assert taken == WeightSpec(FORMATS["fp32"], "cuda")


def test_a_layer_is_read_by_names_without_what_they_begin_with(tiny_checkpoint: Path) -> None:
    tensors = open_checkpoint(tiny_checkpoint).tensors
    layer = _PrefixedTensors(tensors, "model.transformer.blocks.0.")
    assert layer.shape("q_proj.weight") == tensors.shape("model.transformer.blocks.0.q_proj.weight")


def test_what_is_there_is_not_replaced_unasked(tiny_checkpoint: Path, quantized: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(quantized, tmp_path / "b"))
    before = files_of(mine)
    with pytest.raises(Error, match="exists already"):
        quantize_model(tiny_checkpoint, mine, Request(method="rtn"))
    assert files_of(mine) == before
    quantize_model(tiny_checkpoint, mine, Request(method="rtn"), force=True)
    assert files_of(mine) != before


def test_the_verb_says_what_it_wrote(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--format", "int8", "--method", "rtn", "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["result"], answer["format"], answer["method"]) == (str(tmp_path / "b"), "int8", "rtn")
    assert answer["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").iterdir())


def test_only_methods_that_look_at_states_need_torch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom mmada_lite.cli.main import main\n"
        "source, folder, *methods = sys.argv[1:]\n"
        "print([main(['quantize', source, '-o', folder + '/' + m, '--method', m]) for m in methods])\n"
    )
    command = [sys.executable, "-c", code, str(tiny_checkpoint), str(tmp_path), "rtn", "clip", "rotate", "gptq"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2]"
    assert 'this needs torch, which is not installed; pip install "mmada-lite[quant]"' in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "rotate", "rtn"]
