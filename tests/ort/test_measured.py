"""Advice from measurement: what is measured, what is kept, and that whatever is advised is the fastest that was measured."""

import json
import logging
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import mmada_lite
from mmada_lite.bench.speed import advice
from mmada_lite.bundle import Bundle
from mmada_lite.cli.main import main
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.formats import format_named
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import WeightSpec, linear
from mmada_lite.export.synthetic import RandomTensors
from mmada_lite.export.weights import Weight
from mmada_lite.ort import measured
from mmada_lite.ort.measured import FORMS, ROWS, Speeds
from mmada_lite.ort.trial_layer import product_graph

COUNTS = measured.thread_counts(measured.usable_cores())


def planted(quiet: bool = True, **milliseconds: float) -> Speeds:
    """Forms (`int8_b128` for int8-b128) that take so long at every number of tokens, and threads that help."""
    forms = {name.replace("_", "-"): dict.fromkeys(ROWS, taken) for name, taken in milliseconds.items()}
    return Speeds(forms, {count: dict.fromkeys(ROWS, 10.0 / count) for count in COUNTS}, quiet)


# size S backbone at 128 tokens, on AVX2 without VNNI and on a Xeon with AMX
AVX2 = planted(int8=270.0, int8_7bit=237.0, int8_b128=561.0, int4_b128=383.0, fp32=414.0)
AMX = planted(int8=72.0, int8_b128=199.0, int4_b128=214.0, fp32=254.0)
SLOW_INT8 = planted(int8=500.0, int8_b128=400.0, int4_b128=100.0, fp32=300.0)
FLOATS = planted(int8=500.0, int8_b128=400.0, int4_b128=300.0, fp32=100.0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmada-lite"


@pytest.fixture
def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> Speeds:
        raise AssertionError("it was measured")

    monkeypatch.setattr(measured, "measure", measure)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_measured_is_what_an_export_writes(form: str, tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.bin", lambda name, size: None) as weights:
        graph = Graph("one", weights)
        x = graph.input("x", "float32", ("M", 256))
        linear(graph, x, Weight(RandomTensors({"w": (128, 256)}), "w"), WeightSpec(format_named(form)), to="y")
        graph.output("y", "float32", ("M", 128))
        graph.save(tmp_path / "one.onnx")

    def operators(model: Any) -> Counter[Any]:
        return Counter(
            (node.domain, node.op_type, tuple(sorted((each.name, each.i) for each in node.attribute if each.type == 2)))
            for node in model.graph.node
            if node.op_type not in ("Identity", "Cast")  # scales of half precision are cast once, when a graph is opened
        )

    ours = onnx.load_from_string(product_graph(form, 256, 128))
    onnx.checker.check_model(ours)
    assert operators(ours) == operators(onnx.load(str(tmp_path / "one.onnx"), load_external_data=False))


def test_a_measurement_has_every_form_and_number_of_threads() -> None:
    speeds = measured.measure(rounds=1, turn=0.0, limit=0.0)
    assert set(speeds.forms) == {*measured.forms_here(), *measured.openvino_forms_here()}
    assert sorted(speeds.threads) == COUNTS
    for times in (*speeds.forms.values(), *speeds.threads.values()):
        assert list(times) == list(ROWS)
        assert all(0 < each < math.inf for each in times.values())


def test_what_is_kept_is_read_as_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured.kept() is None
    assert measured.keep(AVX2) is None
    assert measured.kept() == AVX2
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    assert measured.keep(AMX) is None
    assert measured.kept() == AMX
    for name, other in (("usable_cores", lambda: 77), ("_cpu", lambda: "another processor")):
        with monkeypatch.context() as patch:
            patch.setattr(measured, name, other)
            assert measured.kept() is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"forms": 3}', "\x00", "cut", "zero", "huge", "word", "lacking"])
def test_a_damaged_cache_is_as_if_there_were_none(cache: Path, damage: str) -> None:
    measured.keep(AVX2)
    (file,) = cache.iterdir()
    whole = file.read_text()
    content = json.loads(whole)
    if damage in ("zero", "word", "huge"):
        content["forms"]["int8"]["8"] = {"zero": 0, "word": "x", "huge": 10**400}[damage]
    if damage == "lacking":
        del content["threads"]["1"]
    file.write_text(
        {"cut": whole[:90]}.get(damage, json.dumps(content) if damage in ("zero", "word", "huge", "lacking") else damage)
    )
    assert measured.kept() is None
    assert measured.keep(AVX2) is None
    assert measured.kept() == AVX2


def test_what_cannot_be_kept_is_said_in_a_line(cache: Path) -> None:
    cache.parent.write_text("a file where the folder would be")
    assert re.fullmatch(r".*mmada-lite cannot be written \(.+\), so it is measured again next time", measured.keep(AVX2) or "")
    assert measured.kept() is None


def test_a_measurement_beside_other_programs_is_not_kept(cache: Path) -> None:
    assert "other programs were at work" in (measured.keep(replace(AVX2, quiet=False)) or "")
    assert not cache.exists()


@pytest.mark.parametrize("speeds", [AVX2, AMX, SLOW_INT8, FLOATS], ids=["avx2", "amx", "slow int8", "floats"])
def test_a_warning_never_advises_the_form_that_the_bundle_has(speeds: Speeds) -> None:
    for form in FORMS:
        better = speeds.faster(form)
        assert better != form
        if better is not None:
            assert speeds.ratio(form, better) >= measured.SLOW
            assert measured._BITS[better] <= measured._BITS[form]
    assert speeds.faster(speeds.best) is None


def test_the_fastest_is_the_one_that_was_measured() -> None:
    assert AVX2.order == ["int8-7bit", "int8", "int4-b128", "fp32", "int8-b128"]
    assert AVX2.faster("int8-b128") == "int8-7bit"
    assert AVX2.faster("int8") is AVX2.faster("int4-b128") is None
    assert AMX.faster("int8-7bit") is None  # stands as int8 where narrow codes are not measured
    assert SLOW_INT8.faster("int8") == "int4-b128"
    assert FLOATS.best == "fp32"
    assert AVX2.thread_order == sorted(COUNTS, reverse=True)
    crossing = Speeds({"int8": {8: 2.0, 32: 3.0, 128: 4.0}, "fp32": {8: 1.0, 32: 6.0, 128: 8.0}}, {})
    assert (crossing.at(8), crossing.at(32)) == (["fp32", "int8"], ["int8", "fp32"])
    assert crossing.best == "int8"


# size S at 128 tokens on a Xeon with AMX, OpenVINO beside
BESIDE = planted(int8=72.0, int8_b128=199.0, int4_b128=214.0, fp32=254.0, openvino_int8=71.0, openvino_bf16=89.0)


def test_openvinos_forms_are_advised_and_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert BESIDE.best == "openvino-int8"
    assert measured.keep(BESIDE) is None
    assert measured.kept() == BESIDE
    assert main(["doctor", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    if best["device"] == "openvino":
        assert best["settings"][0].startswith("mmada-lite export CHECKPOINT -o BUNDLE --precision int8 --target openvino  ")
        assert best["settings"][-1].startswith("run with --device openvino --threads")
    monkeypatch.setattr(measured, "_openvino_version", lambda: "another")
    assert measured.kept() is None


def test_auto_takes_the_runtime_that_was_faster_in_the_same_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    slower = planted(
        int8=72.0, int8_b128=1.0, int4_b128=1.0, fp32=50.0, openvino_int8=144.0, openvino_bf16=10.0, openvino_fp32=90.0
    )
    lines = {
        "int8": "OpenVINO takes 2.0 times as long for int8 (measured on this machine)",
        "fp16": "OpenVINO takes 1.8 times as long for fp16 and fp32 (measured on this machine)",
        "bf16": None,  # onnxruntime would compute another precision
        "int4": None,  # not measured
    }
    narrow = {"backbone": "int4-b32", "text_head": "int4-b32"}
    for precision, line in lines.items():
        formats = narrow if precision == "int4" else None
        folder = export_checkpoint(
            tiny_checkpoint, tmp_path / precision, precision=precision, target="openvino", formats=formats
        )  # type: ignore[arg-type]
        assert measured.cpu_instead(Bundle.open(folder), slower) == line
        assert measured.cpu_instead(Bundle.open(folder), BESIDE) is None


def test_orders_agree_but_for_what_is_nearly_the_same() -> None:
    assert advice.agree({"a": [1.0], "b": [2.0]}, {"a": [3.0], "b": [4.0]})
    assert advice.agree({"a": [1.0], "b": [1.05]}, {"a": [4.0], "b": [3.0]})
    assert not advice.agree({"a": [1.0], "b": [2.0]}, {"a": [4.0], "b": [3.0]})


@pytest.fixture(scope="module")
def stored(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in each form."""
    folder = tmp_path_factory.mktemp("forms")
    changes = {name: formats for name, (_, formats) in advice.STORED.items()}
    changes["int4-b128"] = {"backbone": "int4-b32", "text_head": "int4-b32"}
    return {
        form: export_checkpoint(tiny_checkpoint, folder / form, precision=advice.STORED[form][0], formats=changes[form])  # type: ignore[arg-type]
        for form in FORMS
    }


@pytest.mark.parametrize("speeds", [AVX2, SLOW_INT8, FLOATS, None], ids=["avx2", "slow int8", "floats", "none"])
@pytest.mark.usefixtures("never_measured", "cache")
def test_loading_measures_nothing_and_warns_of_what_is_slower(
    stored: dict[str, Path], speeds: Speeds | None, caplog: pytest.LogCaptureFixture
) -> None:
    if speeds is not None:
        measured.keep(speeds)
    for form, path in stored.items():
        assert measured.form_of(Bundle.open(path)) == form
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            mmada_lite.load(path, device="cpu", threads=1)
        better = speeds.faster(form) if speeds is not None and form != "fp32" else None
        assert len(caplog.messages) == (better is not None)
        if better is not None:
            assert caplog.messages[0].endswith(f"export it with {measured.EXPORTS[better]}")


@pytest.mark.parametrize("speeds", [AVX2, SLOW_INT8, FLOATS], ids=["avx2", "slow int8", "floats"])
def test_the_doctor_advises_the_order_that_was_measured(
    speeds: Speeds, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([speeds, AMX])
    monkeypatch.setattr(measured, "measure", lambda: next(times))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["speed"]["order"] == list(report["speed"]["forms"]) == speeds.order
    assert report["speed"]["thread_order"] == speeds.thread_order
    assert report["speed"]["not_kept"] is None
    if report["best"]["device"] == "cpu":
        assert f"-o BUNDLE {measured.EXPORTS[speeds.best]}  (the fastest here" in report["best"]["settings"][0]
        assert f"--threads {speeds.thread_order[0]} " in report["best"]["settings"][-1]
    assert main(["doctor"]) == 0  # by what was kept
    out = capsys.readouterr().out
    names = [measured.form_in_words(form) for form in speeds.order]
    assert re.findall(rf"^  ({'|'.join(names)}) .* {max(COUNTS)} threads?$", out, re.MULTILINE)[: len(names)] == names
    assert main(["doctor", "--json", "--measure"]) == 0  # anew
    assert json.loads(capsys.readouterr().out)["speed"]["order"] == AMX.order
    assert measured.kept() == AMX


@pytest.mark.parametrize("written", [True, False])
def test_an_export_measures_once_and_names_the_faster_form(
    written: bool, tiny_checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(measured, "measure", lambda: replace(AVX2, quiet=written))
    words = ["export", str(tiny_checkpoint), "-o", str(tmp_path / "b"), "--precision", "int8", "--store", "backbone=int8-b32"]
    assert main(words) == 0
    assert ("export it with --precision int8-7bit\n" in capsys.readouterr().err) is written
    assert cache.exists() is written
    assert main(["export", str(tiny_checkpoint), "-o", str(tmp_path / "c"), "--precision", "int4", *NARROW]) == 0
    assert "export it with" not in capsys.readouterr().err


NARROW = ["--store", "backbone=int4-b32", "--store", "text_head=int4-b32"]


@pytest.mark.usefixtures("never_measured", "cache")
def test_an_export_for_the_web_takes_the_form_that_is_fast_there(tiny_checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["export", str(tiny_checkpoint), "--target", "web", "--json", "-o"]
    assert main([*words, str(tmp_path / "a")]) == 0
    printed = capsys.readouterr()
    result = {"result": str(tmp_path / "a"), "bytes": 0, "precision": "int8", "target": "cpu"}
    assert json.loads(printed.out) | {"bytes": 0} == result
    assert not printed.err
    assert Bundle.open(tmp_path / "a").quantization["backbone"].format == "int8"
    assert main([*words, str(tmp_path / "b"), "--precision", "int4", *NARROW]) == 0
    assert "--precision int8 is faster there" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "c"), "--engine", "rtx"]) == 2
    assert "--target web is for browsers" in capsys.readouterr().err
