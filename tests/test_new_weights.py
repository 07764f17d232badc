"""What hangs on the packaged model's weights is listed whole, and a record takes a new run without touching the others."""

import json
import re
import shutil
from pathlib import Path

import new_weights
import notebook
import pytest
from import_graph import ROOT

from mmada_lite.bench import record
from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error

OF_THE_WEIGHTS = re.compile(r"shipped/emoji|models/emoji|\bint8 int4 --against\b|bench serve\b")


def test_every_record_of_the_packaged_model_is_listed() -> None:
    found = [
        (path.stem, number)
        for path in sorted((ROOT / "bench" / "results").glob("*.json"))
        for number, run in enumerate(record.runs_of(record.load(path)))
        if OF_THE_WEIGHTS.search(run["command"])
    ]
    assert sorted((each.file, each.run) for each in new_weights.RECORDS) == found


def test_a_run_is_filed_beside_the_others() -> None:
    kept = {"schema": 1, "bench": "b", "command": "one", "versions": {"x": "1"}, "complete": True, "command_then": "once"}
    kept |= {"runs": [{"command": "one", "note": "n"}, {"command": "two"}], "rows": [{"run": 0, "a": 1}, {"run": 1, "a": 2}]}
    new = {"schema": 1, "bench": "b", "command": "one -x -o work/new.json", "versions": {"x": "2"}, "complete": True}
    new |= {"when": "today", "rows": [{"a": 3}, {"a": 4}]}
    first, second = record.runs_of(new_weights.filed(kept, 0, new))
    assert (first["command"], first["versions"], first["when"]) == ("one -x", {"x": "2"}, "today")
    assert [row["a"] for row in first["rows"]] == [3, 4]
    assert not {"note", "command_then"} & set(first)
    assert (second["command"], [row["a"] for row in second["rows"]]) == ("two", [2])
    assert list(new_weights.filed(kept, 1, new)) == list(kept)
    other, changed = record.runs_of(new_weights.filed(kept, 1, new))
    assert (other["command"], other["versions"], other["rows"]) == ("one", {"x": "1"}, [{"run": 0, "a": 1}])
    assert [row["a"] for row in changed["rows"]] == [3, 4]
    alone = {key: value for key, value in kept.items() if key != "runs"}
    assert new_weights.filed(alone, 0, new) == new | {"command": "one -x"}


def test_a_benchmark_that_fails_is_one_line_and_files_nothing(tmp_path: Path) -> None:
    kept = {path: path.read_bytes() for path in new_weights.RESULTS.glob("*.json")}
    broken = new_weights.Record("quality", 0, 1, ("bench quality nowhere",))
    with pytest.raises(Error, match=r"quality-0: `mmada-lite bench quality nowhere` ended with 2; mend"):
        new_weights.measured(broken, tmp_path / "icons", tmp_path / "work")
    assert (tmp_path / "work" / "before" / "model.safetensors").is_file()
    assert {path: path.read_bytes() for path in new_weights.RESULTS.glob("*.json")} == kept


def test_sentences_have_their_place() -> None:
    for line in new_weights.sentences():
        page, number, text = line.split(":", 2)
        assert (ROOT / page).read_text(encoding="utf-8").splitlines()[int(number) - 1] == text.removeprefix(" ")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies of the checkpoint and the bundle that a swap replaces."""
    found = []
    for name in ("SHIPPED", "BUNDLE"):
        monkeypatch.setattr(new_weights, name, shutil.copytree(getattr(new_weights, name), tmp_path / name / "emoji"))
        found.append(getattr(new_weights, name))
    return found[0], found[1]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_that_is_no_checkpoint_changes_nothing(places: tuple[Path, Path], tmp_path: Path) -> None:
    before = [content(place) for place in places]
    (tmp_path / "config.json").touch()
    with pytest.raises(Error, match=r"lacks mmada_lite\.json, model\.safetensors, .*give what"):
        new_weights.swap(tmp_path)
    for name in new_weights.PARTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(Error):
        new_weights.swap(tmp_path)
    assert [content(place) for place in places] == before


def test_the_present_checkpoint_changes_nothing_and_another_both(places: tuple[Path, Path], tmp_path: Path) -> None:
    before, other = [content(place) for place in places], shutil.copytree(places[0], tmp_path / "other")
    new_weights.swap(places[0])
    assert [content(place) for place in places] == before
    told = json.loads((other / "mmada_lite.json").read_text(encoding="utf-8"))
    told["knows"]["turns"] = 7
    (other / "mmada_lite.json").write_text(json.dumps(told), encoding="utf-8")
    new_weights.swap(other)
    assert content(places[0]) == content(other)
    changed = content(places[1])
    assert {name for name, data in changed.items() if data != before[1].get(name)} == {"bundle.json"}
    assert json.loads(changed["bundle.json"])["knows"]["turns"] == 7
    assert Bundle.open(places[1]).provenance.source == "emoji"


def test_a_cell_shows_what_it_printed_and_its_last_value() -> None:
    names: dict[str, object] = {}
    (said,) = notebook.outputs("from PIL import Image\nprint('a')\nprint('b')", names, 1)
    assert said["text"] == ["a\n", "b\n"]
    (shown,) = notebook.outputs("Image.new('RGB', (2, 1))", names, 2)
    assert shown["data"]["text/plain"] == ["<PIL.Image.Image image mode=RGB size=2x1>"]
    assert list(notebook.outputs("x = 1", names, 3)) == []
