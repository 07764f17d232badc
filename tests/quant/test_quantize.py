"""`mmada-lite quantize`: near the model, resumable to the same bundle, never half there, faults in one line."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.decoding.denoiser import Window
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint, open_checkpoint
from mmada_lite.export.formats import FORMATS, dequantize, quantize
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.quant import layer_pipeline
from mmada_lite.quant.block_rounding import Batch, Layer, Passage, embedded, load_block
from mmada_lite.quant.calibration import Calibration, Reader, Weighting, collect, position_weights
from mmada_lite.quant.convert import Request, forms_named, open_source, quantize_model
from mmada_lite.quant.layer_pipeline import reader_of
from mmada_lite.quant.methods import Method, method_named
from mmada_lite.quant.prompts import NEEDED, TASKS, Prompt, built_in, from_file
from mmada_lite.quant.sources import Prepared, packed
from mmada_lite.quant.transforms import SITES, Folded, Folds
from mmada_lite.quant.work_folder import KEY, WorkFolder

ROOT = Path(__file__).parents[2]
SMALL = Request(format="int4-b32", method="gptq", prompts=2)
ONE = np.ones((1, 1), np.float32)


def files_of(bundle: Path) -> dict[str, str]:
    return {name: info.sha256 for name, info in Bundle.open(bundle, verify="full").files.items()}


def logits_of(bundle: Path) -> np.ndarray:
    model = mmada_lite.load(bundle, device="cpu", threads=1)
    tokens = np.random.default_rng(0).integers(0, 256, (1, 40))
    hidden, _ = model.denoiser.forward(Window(tokens, np.arange(40), np.arange(40)[None]), keep=False)
    return model.denoiser.logits("text", hidden, ONE)


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_model(tiny_checkpoint, tmp_path_factory.mktemp("gptq") / "bundle", SMALL)


@pytest.mark.parametrize("method", ["rtn", "clip", "rotate", "smooth", "gptq", "rotate+gptq", "smooth+gptq", "rotate+gptaq"])
@pytest.mark.parametrize("form", ["int8", "int4-b32-asym"])
def test_every_method_makes_a_bundle_near_the_model(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, method: str, form: str
) -> None:
    request = Request(format=form, method=method, prompts=1, steps=2)
    written = quantize_model(tiny_checkpoint, tmp_path / "b", request)
    bundle, expected, found = Bundle.open(written, verify="full"), logits_of(tiny_bundle), logits_of(written)
    assert np.abs(found - expected).max() < (0.2 if form == "int8" else 1) * np.abs(expected).max()
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
    config, source = checkpoint.config, Folded(checkpoint.tensors, checkpoint.config, Folds())
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (48, 40)))
    both = [Batch(part, torch.ones(24, 40), torch.ones(24, 40), "chat") for part in tokens.split(24)]
    errors = {}
    for rounding in ("gptq", "gptaq"):
        (seen,), (fresh,), (wanted,) = ([embedded(source, [each])[0]] for each in (both[0], both[1], both[1]))
        states, aims, others, whole = [seen], [seen], [fresh], [wanted]
        for number in range(config.n_layers):
            layer = Layer(load_block(source, config, number), config, method_named(rounding), WeightSpec(FORMATS[form]), "l")
            unrounded = Passage(copy.deepcopy(layer.block), config, whole, False)
            layer.advance(states, both[:1], aims if rounding == "gptaq" else None)
            rounded = Passage(layer.block, config, others, False)
            for site in SITES:
                rounded.go_past(site)
                unrounded.go_past(site)
        errors[rounding] = float((others[0] - whole[0]).square().mean())
    assert 0 < errors["gptaq"] < 0.95 * errors["gptq"]


def test_a_quantized_bundle_is_no_source(calibrated: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="its embedder is quantized already"):
        quantize_model(calibrated, tmp_path / "b", SMALL)


@pytest.mark.parametrize("method", ["gptq", "smooth+gptaq"])
def test_a_conversion_that_was_cut_off_ends_the_same(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Cut off at every unit that is saved, one after the other, in one work folder."""
    request = replace(SMALL, method=method)
    whole = quantize_model(tiny_checkpoint, tmp_path / "whole", request)
    save, room = WorkFolder.save, [0]

    def until(self: WorkFolder, unit: str, arrays: dict[str, np.ndarray]) -> None:
        if room[0] == 0:
            raise KeyboardInterrupt
        room[0] -= 1
        save(self, unit, arrays)

    monkeypatch.setattr(WorkFolder, "save", until)
    cuts = 0
    while True:
        room[0] = 1
        try:
            quantize_model(tiny_checkpoint, tmp_path / "b", request)
            break
        except KeyboardInterrupt:
            cuts += 1
            assert not (tmp_path / "b").exists()
    assert cuts >= 5
    assert files_of(tmp_path / "b") == files_of(whole)


def test_another_conversion_does_not_go_on_from_there(
    tiny_checkpoint: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = layer_pipeline._heads

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layer_pipeline, "_heads", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(tiny_checkpoint, tmp_path / "b", Request(format="int8", method="gptq", prompts=1, steps=1))
    assert (tmp_path / ".b.quantizing" / "layer-1").is_dir()
    monkeypatch.setattr(layer_pipeline, "_heads", heads)
    quantize_model(tiny_checkpoint, tmp_path / "b", SMALL)
    assert files_of(tmp_path / "b") == files_of(calibrated)
    assert not (tmp_path / ".b.quantizing").exists()


def test_a_work_folder_killed_at_birth_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / f"{KEY}.new").write_text("{")
    WorkFolder(tmp_path / "work", {"a": 1}).save("unit", {"x": np.ones(3)})
    assert WorkFolder(tmp_path / "work", {"a": 1}).has("unit")
    assert not WorkFolder(tmp_path / "work", {"a": 2}).has("unit")


def test_a_removal_killed_at_any_moment_leaves_nothing_to_trip_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half of a unit that is taken for a whole one, nor a folder that is taken for somebody else's."""
    key, unit, done = {"a": 1}, {"codes": np.ones(3), "zeros": np.ones(3)}, False
    kept = {name: getattr(os, name) for name in ("unlink", "rmdir", "rename")}
    for room in range(40):
        left = [room]

        def until(name: str, *arguments: Any, left: list[int] = left, **named: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            kept[name](*arguments, **named)

        work = WorkFolder(tmp_path / "work", key)
        for name in ("first", "second"):
            if not work.has(name):
                work.save(name, unit)
        with monkeypatch.context() as patch:
            for name in kept:
                patch.setattr(os, name, partial(until, name))
            try:
                work.remove()
                done = True
            except KeyboardInterrupt:
                pass
        for again in (key, {"a": 2}):
            taken_up = WorkFolder(tmp_path / "work", again)
            for name in ("first", "second"):
                assert not taken_up.has(name) or set(taken_up.load(name)) == set(unit)
        taken_up.remove()
        assert not (tmp_path / "work").exists()
        if done:
            break
    assert done
    assert room > 5


KILLS = int(os.environ.get("MMADA_LITE_KILLS", "1"))


def test_killed_at_random_moments_no_wrong_bundle_is_there(tiny_checkpoint: Path, calibrated: Path, tmp_path: Path) -> None:
    """A process of its own, killed after some units and a moment; what loads afterwards is right, and the last run ends."""
    words = [sys.executable, "-m", "mmada_lite", "quantize", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--force"]
    words += ["--format", SMALL.format, "--method", SMALL.method, "--prompt-count", str(SMALL.prompts)]
    environment, expected = {**os.environ, "PYTHONPATH": str(ROOT)}, files_of(calibrated)
    rng = random.Random(KILLS)
    for kill in range(KILLS):
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        units, moment = rng.randrange(8), rng.random() * rng.choice([0.01, 0.3])
        while process.poll() is None and len(list(tmp_path.glob(".b.quantizing/*"))) < units:
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "b").exists():
            assert files_of(tmp_path / "b") == expected, f"kill {kill}"
            shutil.rmtree(tmp_path / "b")
    subprocess.run(words, env=environment, check=True, capture_output=True)
    assert files_of(tmp_path / "b") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_rows_are_those_that_decoding_meets(tiny_checkpoint: Path) -> None:
    checkpoint = open_source(tiny_checkpoint)
    first = checkpoint.vocabulary.image_code_offset
    reader = reader_of(checkpoint, slice(first, first + checkpoint.vocabulary.codebook_size), None)
    mask, settings = checkpoint.vocabulary.special.mask, Calibration(prompts=2, steps=4)
    samples = collect(reader, settings)
    assert {sample.task for sample in samples} == set(NEEDED)
    assert len(samples) == 2 * 4 * 3  # random weights think of nothing
    for sample in samples:
        masked = sample.tokens == mask
        assert masked.any()
        assert (sample.weight[masked] > sample.weight[~masked].max()).all()
        np.testing.assert_array_equal(sample.predicted > 0, masked)
    ratios = {float((sample.tokens == mask).mean()) for sample in samples}
    assert len(ratios) > 4
    for sample in collect(reader, Calibration(prompts=1, steps=2, seen="unmasked")):
        assert not (sample.tokens == mask).any()
        assert (sample.weight == 1).all()
    again = collect(reader, settings)
    assert all((a.tokens == b.tokens).all() and (a.weight == b.weight).all() for a, b in zip(samples, again, strict=True))


def test_a_model_that_thinks_before_it_draws_is_watched_while_it_does() -> None:
    model = mmada_lite.load(device="cpu", threads=1)
    codes, longest = model.codec.grid**2, model.bundle.architecture.max_sequence_length
    reader = Reader(
        *(model.denoiser, model.tokenizer, model.vocabulary, codes, longest, model.text_defaults, model.image_defaults)
    )
    prompts = [Prompt(task, "what is this?") for task in NEEDED]
    prompts += [Prompt("think", text) for text in ("a cat left of a car", "an apple above a star on a red background")]
    told: list[tuple[int, int]] = []
    samples = collect(reader, Calibration(prompts=2, steps=3), prompts, lambda done, total: told.append((done, total)))
    special = model.vocabulary.special
    thought = [sample for sample in samples if sample.tokens[0] == special.r2i]
    assert [sample.task for sample in thought if sample.task == "chat"] == ["chat"] * 6
    drawn = [sample for sample in thought if sample.task == "paint"]
    assert 0 < len(drawn) <= 6  # the others are rows of guidance, without a prompt
    for sample in drawn:
        before = sample.tokens.tolist()[2 : sample.tokens.tolist().index(special.soi)]
        assert "</think>" in model.tokenizer.decode(before)
    assert len(samples) == 3 * 3 + 2 * 2 * 3
    assert told == [(n, 5) for n in range(1, 6)]


@pytest.mark.parametrize("name", sorted(name for name, form in FORMATS.items() if not form.floating))
def test_codes_come_back_from_the_work_folder(name: str, tmp_path: Path) -> None:
    form, values = FORMATS[name], np.random.default_rng(0).standard_normal((10, 200), dtype=np.float32)
    held, work = quantize(values, form, "w"), WorkFolder(tmp_path / "work", {})

    class Shape:
        def shape(self, name: str) -> tuple[int, ...]:
            return values.shape

        def read(self, name: str, rows: slice | None = None) -> np.ndarray:
            raise AssertionError("codes are there, so that weights are not read")

    for unit, first, tensor in (("layer-3", 0, "blocks.3.up_proj"), ("image_head", 7, "ff_out")):
        work.save(unit, packed(tensor.split(".")[-1], held))
        source = Prepared(Shape(), Method("gptq"), work, "image_head", 7)
        found = source.quantized(f"model.transformer.{tensor}.weight", form, slice(first + 2, first + 9))
        np.testing.assert_array_equal(found.codes, held.codes[2:9])
        np.testing.assert_array_equal(dequantize(found), dequantize(held)[2:9])


def test_what_is_written_sooner_weighs_more() -> None:
    weights = position_weights(np.array([-1, 0, 1, 8, 1000]), 16, Weighting(given=0.1, masked=0.5, soon=1.0, half=0.125))
    np.testing.assert_allclose(weights[[0, 1, 4]], [0.1, 1.5, 0.5], atol=1e-6)
    assert (np.diff(weights[1:]) < 0).all()


def test_prompts_are_fixed_or_come_from_a_file(tmp_path: Path) -> None:
    assert built_in("paint", 5) == built_in("paint", 9)[:5]
    assert len({prompt.text for task in TASKS for prompt in built_in(task, 20)}) > 30
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"task": "chat", "text": "hello"}\n\n{"task": "paint", "text": "a cat"}\n')
    assert from_file(file) == [Prompt("chat", "hello"), Prompt("paint", "a cat")]
    for bad in ("nonsense", '{"task": "sing", "text": "x"}', '{"task": "chat", "text": " "}', '{"task": "chat"}'):
        file.write_text('{"task": "chat", "text": "hello"}\n' + bad)
        with pytest.raises(Error, match="line 2"):
            from_file(file)
    file.write_text("\n")
    with pytest.raises(Error, match="holds no prompts"):
        from_file(file)


def test_formats_by_name() -> None:
    forms = {
        group: form.format.name for group, form in forms_named("int4-b128-asym", "cpu", {"image_head": "int4-b32"}).items()
    }
    assert forms == {
        "embedder": "int8",
        "backbone": "int4-b128-asym",
        "text_head": "int4-b64-asym",
        "image_head": "int4-b32",
        "codec": "fp16",
    }
    assert forms_named("int8-b64", "cuda", {})["text_head"].format.name == "int8-b64"


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
        assert not [path for path in (tmp_path / "out").iterdir() if path.name == "b" or "partial" in path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "int4-b30"], "no format is called 'int4-b30'; did you mean 'int4-b3"),
        (["--format", "int5"], "no format is called 'int5'; did you mean 'int"),
        (["--method", "gptg"], "no method is called 'gptg'; did you mean 'gptq'?"),
        (["--method", "rtn+clip"], "says one thing twice"),
        (["--format", "fp16"], "there is nothing to round in fp16"),
        (["--format", "int8-b64", "--target", "tensorrt"], "int8-b64 cannot be written for tensorrt"),
        (["--format", "int4-b128", "--target", "tensorrt"], "needs inputs that the block divides"),
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
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]  # no bundle, and no conversion in progress
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


def test_a_truncated_shard_and_a_full_disk_are_said(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    source = damaged(cut, tiny_checkpoint, tmp_path)
    assert main(["quantize", str(source), "-o", str(tmp_path / "b")]) == 2
    assert "truncated" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("mmada_lite.files.shutil.disk_usage", lambda _: usage._replace(free=1000))
    assert main(["quantize", str(tiny_checkpoint), "-o", str(tmp_path / "b")]) == 2
    assert "the disk has 1.0 KB free" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_is_there_is_not_replaced_unasked(tiny_checkpoint: Path, calibrated: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(calibrated, tmp_path / "b"))
    before = files_of(mine)
    with pytest.raises(Error, match="exists already"):
        quantize_model(tiny_checkpoint, mine, Request(method="rtn"))
    assert files_of(mine) == before
    quantize_model(tiny_checkpoint, mine, Request(method="rtn"), force=True)
    assert files_of(mine) != before


def test_the_verb_says_what_it_wrote(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--format", "int8", "--method", "rtn", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["result"], said["format"], said["method"]) == (str(tmp_path / "b"), "int8", "rtn")
    assert said["bytes"] == sum(path.stat().st_size for path in (tmp_path / "b").iterdir())


def test_a_bundle_decodes_the_prompts_for_a_checkpoint_too_large(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmada_lite.quant.layer_pipeline.memory_available", lambda: 1000)
    with pytest.raises(Error, match="first quantize it with --method rtn, then add --record-with"):
        quantize_model(tiny_checkpoint, tmp_path / "b", SMALL)
    recorded = Request(format="int4-b32", method="gptq", prompts=1, steps=1, record_with=tiny_bundle)
    Bundle.open(quantize_model(tiny_checkpoint, tmp_path / "b", recorded), verify="full")


def test_prompts_that_lack_a_task_leave_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Error, match="there is no prompt for paint among those given; calibration needs all of chat, ask, paint"
    ):
        quantize_model(tiny_checkpoint, tmp_path / "b", SMALL, given=[Prompt("think", "a cat left of a car")])
    assert not list(tmp_path.iterdir())


def test_more_prompts_than_can_be_decoded_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="is more than a machine decodes; use 10000 at most"):
        quantize_model(tiny_checkpoint, tmp_path / "b", replace(SMALL, prompts=10**9))
    assert not list(tmp_path.iterdir())
