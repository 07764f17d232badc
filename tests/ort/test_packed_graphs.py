"""Graphs that are kept as onnxruntime packed them: the same numbers, opened without packing, and never a broken one."""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.ort import packed
from mmada_lite.ort.session import Device, Tuning

CPU = Device("cpu", "a test's")
SETTINGS = TextSettings(answer_length=12, steps=6, block_length=4)


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("packed") / "int8", precision="int8")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tuning]:
    """A cache of the test's own, in which the smallest graph is kept; how each session was opened."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "LEAST", 1)
    asked, plain = list[Tuning](), packed.open_session

    def noted(*given: Any, tuning: Tuning, **named: Any) -> Any:
        asked.append(tuning)
        return plain(*given, tuning=tuning, **named)

    monkeypatch.setattr(packed, "open_session", noted)
    return asked


def answer(folder: Path) -> list[int]:
    ids: list[int] = mmada_lite.load(folder, device="cpu", threads=1).chat("a b c", SETTINGS).result().ids.tolist()
    return ids


def test_the_first_load_packs_and_the_next_opens_what_was_packed(
    int8: Path, opened: list[Tuning], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packed, "LEAST", 1 << 60)
        plain = answer(int8)
    assert opened == []
    assert answer(int8) == plain
    assert [tuning.keep is not None for tuning in opened] == [True, True, False, False]  # backbone and text head
    opened.clear()
    assert answer(int8) == plain
    assert opened == [Tuning(packed=True)] * 2


def test_numbers_are_the_same_to_the_bit(int8: Path, opened: list[Tuning]) -> None:
    bundle = Bundle.open(int8)
    kept = packed.open_packed(bundle, "text_head", CPU, 1)
    assert kept is not None
    states = np.random.default_rng(0).standard_normal((1, 5, bundle.architecture.d_model), np.float32)
    feeds = {"hidden": states, "mix": np.ones((1, 1), np.float32), "temperature": np.array(0.0, np.float32)}
    feeds["uniform"] = np.full((1, 5), 0.5, np.float32)
    plain = packed.open_session(bundle.graph_path("text_head"), CPU, 1, tuning=Tuning())
    for ours, theirs in zip(kept.run(None, feeds), plain.run(None, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("damage", ["cut", "graph", "no sizes", "sizes"])
def test_what_is_damaged_is_packed_anew(int8: Path, opened: list[Tuning], damage: str) -> None:
    bundle = Bundle.open(int8)
    assert packed.open_packed(bundle, "backbone", CPU, 1)
    folder = packed.folder_of(bundle)
    if damage == "cut":
        os.truncate(folder / "backbone.bin", 10)
    elif damage == "graph":
        size = (folder / "backbone.onnx").stat().st_size
        (folder / "backbone.onnx").write_bytes(b"\xff" * size)
    elif damage == "no sizes":
        (folder / packed.MARKER).unlink()
    else:
        (folder / packed.MARKER).write_text("[1")
    if damage == "graph":  # its size is right: onnxruntime refuses it, and it is opened as it is this once
        assert packed.open_packed(bundle, "backbone", CPU, 1) is None
    opened.clear()
    assert packed.open_packed(bundle, "backbone", CPU, 1)
    assert any(tuning.keep for tuning in opened)
    assert (folder / packed.MARKER).is_file()


def test_a_damaged_bundle_is_never_kept(int8: Path, opened: list[Tuning], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(int8, tmp_path / "copy"))
    bundle = Bundle.open(folder)
    content = bytearray((folder / "weights.bin").read_bytes())
    content[-1] ^= 1
    (folder / "weights.bin").write_bytes(content)
    assert packed.open_packed(bundle, "backbone", CPU, 1) is None
    assert not packed.folder_of(bundle).exists()
    assert opened == []


def test_where_nothing_can_be_written_it_opens_as_it_is(
    int8: Path, opened: list[Tuning], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, logger="mmada_lite"):
        assert answer(int8)
    assert "are packed at every load: " in caplog.text


def test_another_processor_or_bundle_has_its_own(int8: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = packed.folder_of(Bundle.open(int8))
    assert packed.folder_of(Bundle.open(tiny_bundle)) != here
    monkeypatch.setattr(packed, "processor_flags", lambda: {"avx9000"})
    assert packed.folder_of(Bundle.open(int8)) != here


def test_it_is_done_where_it_pays(int8: Path, tiny_bundle: Path, opened: list[Tuning], monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed.graphs_of(Bundle.open(tiny_bundle)) == []  # floats, which are mapped or widened
    assert packed.graphs_of(Bundle.open(int8)) == ["backbone", "text_head"]
    assert packed.open_packed(Bundle.open(int8), "image_head", CPU, 1) is None
    assert packed.open_packed(Bundle.open(int8), "backbone", Device("openvino", ""), 1) is None
    monkeypatch.setattr(packed, "LARGE", 1)
    assert packed.graphs_of(Bundle.open(int8)) == []


def test_what_nobody_opens_is_removed(int8: Path, opened: list[Tuning]) -> None:
    bundle = Bundle.open(int8)
    assert packed.open_packed(bundle, "backbone", CPU, 1)
    parent = packed.folder_of(bundle).parent
    old, other = parent / ("0" * 16), parent / "other"
    for folder in (old, other):
        folder.mkdir(parents=True)
    (old / packed.MARKER).write_text("{}")
    for folder in (old, other):
        os.utime(folder, (0, time.time() - 61 * 86400))
    shutil.rmtree(packed.folder_of(bundle))
    assert packed.open_packed(bundle, "backbone", CPU, 1)
    assert (old.exists(), other.exists()) == (False, True)  # what is not ours stays
