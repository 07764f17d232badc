"""What a benchmark leaves behind: whole, readable again, and the command in it."""

import json
from pathlib import Path

import pytest

from mmada_lite.bench import record
from mmada_lite.errors import Error


def test_a_record_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    content = record.record("ceiling", ["--threads", "2", "--work", "a folder"], [{"gops": 1.5}], note="said once")
    path = record.save(content, tmp_path / "deep" / "file.json")
    assert path is not None
    assert record.load(path) == content
    assert content["command"] == "mmada-lite bench ceiling --threads 2 --work 'a folder'"
    assert content["rows"] == [{"gops": 1.5}]
    assert content["note"] == "said once"
    assert content["hardware"]["cores"] >= 1
    assert {"python", "numpy", "onnxruntime", "mmada-lite"} <= set(content["versions"])


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    record.save(record.record("ceiling", [], []), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        record.save(record.record("ceiling", [], [{"no": object()}]), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]
    with pytest.raises(Error, match="cannot be written"):
        record.save(record.record("ceiling", [], []), path / "below")


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"bench": "x"})])
def test_what_is_no_record_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(Error, match=r"x\.json") as said:
        record.load(path)
    assert "\n" not in str(said.value)


def test_results_go_into_the_checkout() -> None:
    path = record.default_output("ceiling")
    assert path is not None
    assert path.parts[-3:] == ("bench", "results", "ceiling.json")


def test_a_spread_is_ordered_and_one_measurement_is_its_own() -> None:
    found = record.spread([3.0, 1.0, 2.0, 10.0])
    assert found["min"] <= found["low"] <= found["median"] <= found["high"] <= found["max"]
    assert set(record.spread([4.0]).values()) == {4.0}
