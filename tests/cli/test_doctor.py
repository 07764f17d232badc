"""What the doctor finds on a machine, here and on planted ones."""

import json
import re

import pytest

from mmada_lite.cli import machine
from mmada_lite.cli.main import main
from mmada_lite.ort import devices, nvidia, session
from mmada_lite.ort.nvidia import Card

CARD = Card("a planted card", "8.9", 8 * 10**9, 7 * 10**9)


def examined(capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["doctor", "--json"]) == 0
    report: dict = json.loads(capsys.readouterr().out)
    return report


def test_the_doctor_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    report = examined(capsys)
    listed = {device["name"]: device for device in report["devices"]}
    assert set(listed) == set(session.PROVIDERS)
    assert listed["cpu"]["works"]
    for device in listed.values():
        assert device["works"] or "pip install" in device["why"] or "driver" in device["why"] or "doctor" in device["why"]
    libraries = {library["name"]: library for library in report["libraries"]}
    assert libraries["numpy"]["version"]
    assert all(library["version"] or 'pip install "mmada-lite[' in library["mend"] for library in libraries.values())
    assert all(library["found"] or library["mend"] for library in report["shared"])
    assert report["memory"]["total"] is None or report["memory"]["total"] >= report["memory"]["free"]
    assert report["best"]["device"] in listed


def test_a_person_reads_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("processor", "memory", "driver", "devices", "libraries", "best here", *session.PROVIDERS):
        assert re.search(rf"^\s*(?:ok|-)?\s*{word}\b", out, re.MULTILINE), word
    for name in machine._LIBRARIES:
        assert f" {name} " in out


@pytest.mark.parametrize(
    ("works", "settings"),
    [
        ("rtx", "mmada-lite export BUNDLE --engine rtx"),
        ("cuda", "--precision int4 --target cuda"),
        ("tensorrt", "--precision int4 --target tensorrt"),
    ],
)
def test_the_best_settings_follow_what_works(
    works: str, settings: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "fault", lambda device: None if device in ("cpu", works) else f"no {device}")
    monkeypatch.setattr(nvidia, "cards", lambda: (CARD,))
    monkeypatch.setattr(nvidia, "version", lambda: "13.0")
    report = examined(capsys)
    assert report["best"]["device"] == works
    assert any(settings in line for line in report["best"]["settings"])
    assert main(["doctor"]) == 0
    assert "CUDA 13.0: a planted card (compute capability 8.9, reads fp8, 8.0 GB, 7.0 GB free)" in capsys.readouterr().out


def test_without_onnxruntime_nothing_runs_and_the_mend_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = session.find_spec
    monkeypatch.setattr(session, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    assert main(["doctor"]) == 1
    assert 'onnxruntime is not installed; pip install "mmada-lite[cpu]"' in capsys.readouterr().out


def test_two_runtimes_in_each_others_way(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda name: "1.0")
    assert "overwrite each other" in examined(capsys)["conflicts"][0]
