"""What a benchmark leaves behind: whole, readable again, of a known schema, the command in it; and a run that was stopped
goes on."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mmada_lite.arguments import Parser
from mmada_lite.bench import record
from mmada_lite.bench.record import Run
from mmada_lite.cli import bench as cli_bench
from mmada_lite.cli import main as cli_main
from mmada_lite.errors import Error

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_a_record_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    words = ["--threads", "2", "--work", "a folder"]
    run = Run("ceiling", words, tmp_path / "deep" / "file.json")
    content = run.finish([{"gops": 1.5}], note="said once")
    assert record.load(tmp_path / "deep" / "file.json") == content
    assert content["command"] == "mmada-lite bench ceiling --threads 2 --work 'a folder'"
    assert (content["schema"], content["complete"], content["rows"]) == (1, True, [{"gops": 1.5}])
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


def test_a_task_is_done_once_and_its_rows_are_kept_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, done = tmp_path / "file.json", list[str]()

    def work(name: str, count: int = 2) -> Iterator[record.Row]:
        done.append(name)
        yield from ({"name": name, "number": number} for number in range(count))

    first = Run("peers", ["--rounds", "2"], path)
    first.plan(3)
    rows = first.do("a", lambda: work("a")) + first.do("b", lambda: work("b", 0))
    assert not path.exists()
    left = record.load(record.unfinished(path))
    assert (left["complete"], left["tasks"]) == (False, {"a": rows, "b": []})
    again = Run("peers", ["--rounds", "2", "--force"], path)  # the word for beginning anew is no part of the command
    again.plan(3)
    assert again.do("a", lambda: work("a")) == rows
    assert again.do("c", lambda: work("c"))[1] == {"name": "c", "number": 1}
    assert again.do("b", lambda: work("b")) == []
    assert done == ["a", "b", "c"]
    again.finish([{"all": 1}])
    assert record.load(path)["rows"] == [{"all": 1}]
    assert "tasks" not in record.load(path)
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "1 of 3: a"
    assert said[1].startswith("2 of 3: b (0 s so far, about ")
    assert said[2].endswith("file.json: going on behind a, b; --force begins anew")
    assert said[3] == "3 of 3: c"


@pytest.mark.parametrize("change", ["words", "about", "force", "finished", "versions", "other"])
def test_only_the_same_unfinished_run_is_gone_on_with(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    first = Run("peers", ["--rounds", "2"], path, about="model")
    first.do("a", lambda: [{"n": 1}])
    if change == "finished":
        first.finish([{"n": 1}])
    if change == "versions":
        monkeypatch.setattr(record, "versions", lambda: {"mmada-lite": "99"})
    if change == "other":
        record.unfinished(path).write_text("not JSON")
    words = ["--rounds", "3" if change == "words" else "2"]
    again = Run("peers", words, path, force=change == "force", about="other" if change == "about" else "model")
    assert again.do("a", lambda: [{"n": 2}]) == [{"n": 2}]


KILLED = """
import os, signal, sys
from pathlib import Path
from mmada_lite.bench.record import Run
run = Run("peers", [], Path(sys.argv[1]))
run.do("a", lambda: [{"n": 1}])
run.do("b", lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True)
    assert done.returncode == -9
    again = Run("peers", [], path)
    assert again.do("a", lambda: pytest.fail("it was done before")) == [{"n": 1}]
    assert again.do("b", lambda: [{"n": 2}]) == [{"n": 2}]
    assert record.load(record.unfinished(path))["tasks"] == {"a": [{"n": 1}], "b": [{"n": 2}]}


def test_a_finished_record_is_replaced_by_a_finished_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    Run("peers", [], path).finish([{"n": 1}])
    before = path.read_bytes()
    again = Run("peers", ["--rounds", "9"], path)
    again.do("a", lambda: [{"n": 2}])
    with pytest.raises(KeyboardInterrupt):
        again.do("b", _interrupted)
    assert path.read_bytes() == before
    assert record.load(record.unfinished(path))["tasks"] == {"a": [{"n": 2}]}
    again.finish([{"n": 3}])
    assert record.load(path)["rows"] == [{"n": 3}]
    assert not record.unfinished(path).exists()


def _interrupted() -> list[record.Row]:
    raise KeyboardInterrupt


@pytest.mark.parametrize("schema", [2, "2", None, True, 0, 1.5, []])
@pytest.mark.parametrize("force", [False, True])
def test_a_record_that_this_version_cannot_read_is_not_written_over(tmp_path: Path, schema: object, force: bool) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record.record("peers", [], []) | {"schema": schema}))
    before = path.read_bytes()
    with pytest.raises(Error, match=r"x\.json: is of schema ") as refusal:
        Run("peers", [], path, force=force)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before
    with pytest.raises(Error, match=r"x\.json: is of schema "):
        record.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": "2"}, 'is of schema "2"'),
        ({"schema": None}, "is of schema null"),
        ({"schema": 2}, "is of schema 2"),
        ({"tasks": ["a"]}, "does not say which rows"),
        ({"tasks": None}, "does not say which rows"),
        ({"tasks": {"a": 1}}, "does not say which rows"),
        ({"tasks": {"a": [1]}}, "does not say which rows"),
        ({"rows": [1]}, "are no list of rows"),
        ({"rows": {"a": 1}}, "are no list of rows"),
    ],
)
def test_what_cannot_be_gone_on_from_is_said(
    tmp_path: Path, changes: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.json"
    Run("peers", [], path).do("a", lambda: [{"n": 1}])
    left = json.loads(record.unfinished(path).read_text())
    record.unfinished(path).write_text(json.dumps(left | changes))
    capsys.readouterr()
    again = Run("peers", [], path)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("begun anew, since what was left cannot be gone on with: ")
    assert reason in note
    assert again.do("a", lambda: [{"n": 2}]) == [{"n": 2}]
    assert record.load(record.unfinished(path))["tasks"] == {"a": [{"n": 2}]}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", json.dumps({"bench": "x"}), json.dumps({"schema": 1, "bench": "x"}), "[" * 100_000]
)
def test_what_is_no_record_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(Error, match=r"x\.json") as said:
        record.load(path)
    assert "\n" not in str(said.value)


def test_a_later_schema_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record.record("peers", [], []) | {"schema": 2}))
    with pytest.raises(Error, match="is of schema 2, and this version reads 1; use a later mmada-lite"):
        record.load(path)


def test_a_folder_has_another_fingerprint_when_a_file_of_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"1")
    first = record.fingerprint(tmp_path)
    assert first == record.fingerprint(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"12")
    assert record.fingerprint(tmp_path) != first


def test_results_go_into_the_checkout() -> None:
    path = record.default_output("ceiling")
    assert path is not None
    assert path.parts[-3:] == ("bench", "results", "ceiling.json")


def test_a_spread_is_ordered_and_one_measurement_is_its_own() -> None:
    found = record.spread([3.0, 1.0, 2.0, 10.0])
    assert found["min"] <= found["low"] <= found["median"] <= found["high"] <= found["max"]
    assert set(record.spread([4.0]).values()) == {4.0}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_kept_records_are_whole_and_quoted(path: Path) -> None:
    content = record.load(path)
    assert content["complete"] is True
    assert content["rows"]
    documents = [*(RESULTS.parents[1] / "docs").rglob("*.md"), RESULTS.parents[1] / "README.md"]
    assert any(f"bench/results/{path.name}" in document.read_text(encoding="utf-8") for document in documents)


def parser_of(words: list[str]) -> tuple[Parser, list[str]]:
    """What reads a command, and the arguments that it reads."""
    if words[:2] == ["mmada-lite", "bench"]:
        module, rest = cli_bench.BENCHES[words[2]][0], words[3:]
    elif words[:3] == ["mmada-lite", "train", "synergy"]:
        module, rest = "train.synergy", words[3:]
    elif words[:2] == ["mmada-lite", "train"]:
        module, rest = "train.__main__", words[2:]
    elif words[:2] == ["python", "-m"]:
        module, rest = words[2].removeprefix("mmada_lite."), words[3:]
    else:
        return cli_main.build_parser()[0], words[1:]
    parser: Parser = import_module(f"mmada_lite.{module}").build_parser()
    return parser, rest


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys_of(each)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_kept_records_speak_the_words_of_today(path: Path) -> None:
    """Their command can be given as it is written, and their rows have the keys that a benchmark writes now."""
    for content in record.runs_of(record.load(path)):
        parser, rest = parser_of(shlex.split(content["command"]))
        parser.parse_args(rest)
        assert content.get("command_then") != content["command"]
        assert content["rows"]
        assert not {"forwards", "side", "of"} & set(keys_of(content["rows"]))


def test_there_are_a_dozen_records_and_each_row_is_of_one_command() -> None:
    paths = sorted(RESULTS.glob("*.json"))
    assert len(paths) <= 13
    for content in map(record.load, paths):
        assert sum(len(run["rows"]) for run in record.runs_of(content)) == len(content["rows"])


def test_every_record_that_is_quoted_is_there() -> None:
    documents = [*(RESULTS.parents[1] / "docs").rglob("*.md"), RESULTS.parents[1] / "README.md"]
    quoted = {name for each in documents for name in re.findall(r"\]\((?:\.\./)*bench/results/([^)]+)\)", each.read_text())}
    assert quoted
    assert quoted <= {path.name for path in RESULTS.glob("*.json")}
