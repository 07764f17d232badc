"""A conversion that is cut off goes on to the same bundle, and a killed one leaves nothing wrong behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import SMALL, files_of

from mmada_lite.export.formats import FORMATS, dequantize, quantize
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.quant.layer_pipeline import LayerPipeline
from mmada_lite.quant.methods import Method
from mmada_lite.quant.sources import QuantizedTensors, codes_to_arrays
from mmada_lite.quant.work_folder import KEY, WorkFolder

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MMADA_LITE_KILLS", "1"))


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_model(tiny_checkpoint, tmp_path_factory.mktemp("gptq") / "bundle", SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "smooth+gptaq"])
def test_a_conversion_that_was_cut_off_ends_the_same(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Cut off at every unit that is saved, one after the other, in one work folder."""
    request = replace(SMALL, method=method)
    uncut = quantize_model(tiny_checkpoint, tmp_path / "uncut", request)
    save, saves_left = WorkFolder.save, [0]

    def until(self: WorkFolder, unit: str, arrays: dict[str, np.ndarray]) -> None:
        if saves_left[0] == 0:
            raise KeyboardInterrupt
        saves_left[0] -= 1
        save(self, unit, arrays)

    monkeypatch.setattr(WorkFolder, "save", until)
    cuts = 0
    while True:
        saves_left[0] = 1
        try:
            quantize_model(tiny_checkpoint, tmp_path / "b", request)
            break
        except KeyboardInterrupt:
            cuts += 1
            assert not (tmp_path / "b").exists()
    assert cuts >= 5
    assert files_of(tmp_path / "b") == files_of(uncut)


def test_another_conversion_does_not_go_on_from_there(
    tiny_checkpoint: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_heads = LayerPipeline._round_heads

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerPipeline, "_round_heads", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(tiny_checkpoint, tmp_path / "b", Request(format="int8", method="gptq", prompts=1, steps=1))
    assert (tmp_path / ".b.quantizing" / "layer-1").is_dir()
    monkeypatch.setattr(LayerPipeline, "_round_heads", round_heads)
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
    """Neither half of a unit that is taken for a complete one, nor a folder that is taken for somebody else's."""
    key, unit, done = {"a": 1}, {"codes": np.ones(3), "zeros": np.ones(3)}, False
    kept = {name: getattr(os, name) for name in ("unlink", "rmdir", "rename")}
    for calls in range(40):
        left = [calls]

        def until(name: str, *arguments: Any, left: list[int] = left, **named: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            kept[name](*arguments, **named)

        work = WorkFolder(tmp_path / "work", key)
        for name in ("first", "second"):
            if not work.has(name):
                work.save(name, unit)
        with work, monkeypatch.context() as patch:
            for name in kept:
                patch.setattr(os, name, partial(until, name))
            try:
                work.remove()
                done = True
            except KeyboardInterrupt:
                pass
        for again in (key, {"a": 2}):
            with WorkFolder(tmp_path / "work", again) as taken_up:
                for name in ("first", "second"):
                    assert not taken_up.has(name) or set(taken_up.load(name)) == set(unit)
        taken_up.remove()
        assert not (tmp_path / "work").exists()
        if done:
            break
    assert done
    assert calls > 5


@pytest.mark.slow
def test_killed_at_random_moments_no_wrong_bundle_is_there(tiny_checkpoint: Path, calibrated: Path, tmp_path: Path) -> None:
    """A process of its own, killed after some units and a moment; what loads afterwards is right, and the last run ends."""
    command = [sys.executable, "-m", "mmada_lite", "quantize", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--force"]
    command += ["--format", SMALL.format, "--method", SMALL.method, "--prompt-count", str(SMALL.prompts)]
    environment, expected = {**os.environ, "PYTHONPATH": str(ROOT)}, files_of(calibrated)
    rng = random.Random(KILLS)
    for kill in range(KILLS):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        units, moment = rng.randrange(8), rng.random() * rng.choice([0.01, 0.3])
        while process.poll() is None and len(list(tmp_path.glob(".b.quantizing/*"))) < units:
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "b").exists():
            assert files_of(tmp_path / "b") == expected, f"kill {kill}"
            shutil.rmtree(tmp_path / "b")
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert files_of(tmp_path / "b") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


@pytest.mark.parametrize("name", sorted(name for name, fmt in FORMATS.items() if not fmt.floating))
def test_codes_come_back_from_the_work_folder(name: str, tmp_path: Path) -> None:
    fmt, values = FORMATS[name], np.random.default_rng(0).standard_normal((10, 200), dtype=np.float32)
    quantized, work = quantize(values, fmt, "w"), WorkFolder(tmp_path / "work", {})

    class Shape:
        def shape(self, name: str) -> tuple[int, ...]:
            return values.shape

        def read(self, name: str, rows: slice | None = None) -> np.ndarray:
            raise AssertionError("codes are there, so that weights are not read")

    for unit, first, tensor in (("layer-3", 0, "blocks.3.up_proj"), ("image_head", 7, "ff_out")):
        work.save(unit, codes_to_arrays(tensor.split(".")[-1], quantized))
        source = QuantizedTensors(Shape(), Method("gptq"), work, "image_head", 7)
        loaded = source.quantized(f"model.transformer.{tensor}.weight", fmt, slice(first + 2, first + 9))
        np.testing.assert_array_equal(loaded.codes, quantized.codes[2:9])
        np.testing.assert_array_equal(dequantize(loaded), dequantize(quantized)[2:9])
