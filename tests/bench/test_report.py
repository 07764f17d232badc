"""Laws of `bench report`: every row and every target is on the page, what is missed says what is left, nothing is fetched from
anywhere, and what others named cannot become markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import benchmark_records as made
import pytest

from mmada_lite.bench import report
from mmada_lite.bench.charts import Bar, Point, bars, lines, scatter, show, stacked
from mmada_lite.bench.record import record
from mmada_lite.bench.report import page
from mmada_lite.bench.sections import section
from mmada_lite.bench.targets import FORWARDS, verdicts


class Balance(HTMLParser):
    """Whether every element that is opened is closed, in order; and the texts of cells and marks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_every_row_is_on_the_page() -> None:
    records = made.good()
    said = Balance(page(records)).said
    for each in records:
        assert each["command"] in said
        for row in each["rows"]:
            words = {
                "peers": "side",
                "frontier": "policy",
                "presets": "policy",
                "ceiling": "form",
                "latency": "task",
                "eight": "part",
            }
            name = row[words[each["bench"]]]
            assert any(name in text for text in said) or row.get("what") in ("attention", "elementwise", "node")


def test_tables_have_a_line_for_each_row() -> None:
    for each in (made.peers({}), made.frontier(), made.presets(50.0, 0.0)):
        assert section(each).count("<tr>") - section(each).count("<thead>") == len(each["rows"])


def test_pages_are_sound_and_fetch_nothing() -> None:
    text = page(made.good())
    assert Balance(text).open == []
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\(|src=", text)
    assert "prefers-color-scheme: dark" in text
    assert "NaN" not in text
    assert re.search(r"[^\w]nan[^\w]|\binf\b", text) is None


def test_targets_that_are_met_say_so() -> None:
    found = verdicts(made.good())
    assert [each.what for each in found if each.met is not True] == []
    assert all(not each.left for each in found)
    assert "0 missed, 0 not measured" in page(made.good())


def test_what_is_missed_says_what_is_left() -> None:
    found = verdicts(made.bad())
    missed = [each for each in found if each.met is False]
    assert {each.what for each in found if each.met is not False} == {
        f"an answer about a picture at 8B shapes in {precision}, end to end" for precision in ("int4", "int8")
    }
    assert all(each.left for each in missed)
    forwards = [each for each in missed if each.what.startswith("full forward")]
    assert len(forwards) == len(FORWARDS)
    assert all("at the ceiling it would be" in each.left for each in forwards)
    assert sum("matrix 67%, rounding 10%" in each.left for each in missed) == 5  # three forwards and two shares of the ceiling
    assert any("backbone 71%" in each.left and "50% of the ceiling" in each.left for each in missed)
    said = Balance(page(made.bad())).said
    assert all(each.left in said for each in missed)


def test_without_records_nothing_is_claimed() -> None:
    assert {each.met for each in verdicts([])} == {None}
    assert all(each.left == "" for each in verdicts([]))
    assert Balance(page([])).open == []


def test_answers_of_the_whole_model_are_told_by_either_record() -> None:
    found = [each for each in verdicts([made.eight()]) if each.met is not None]
    assert [each.met for each in found] == [True, True]
    assert "128 tokens in 16 steps, dual: 150.0 s, 7.90 GB at most; picture 5%, backbone 93%, head 1%" in found[0].found
    assert all(each.met is None for each in verdicts([made.eight(layers=2)]))
    text = section(made.eight())
    assert "bundle_gb &lt; 4.7: met, peak_gb &lt; 3: missed" in text
    assert "150 s" in text
    assert "svg" not in section({**made.eight(), "rows": made.eight()["rows"][2:]})


def test_fp32_in_place_of_bf16_is_said() -> None:
    found = verdicts([made.peers({}, reference="torch fp32")])
    ratios = [each for each in found if each.met is not None and "times" in each.wanted]
    assert ratios
    assert all("bf16 was not run" in each.found for each in ratios)


def test_the_faster_form_of_the_reference_is_what_counts() -> None:
    """Where bf16 is slow, a ratio to it says little."""
    both = made.peers({}, reference="torch fp32")
    for row in both["rows"]:
        if "torch fp32" in row["times"]:
            row["times"]["torch bf16"] = {"median": 3 * row["times"]["torch fp32"]["median"]}
    alone, found = verdicts([made.peers({}, reference="torch fp32")]), verdicts([both])
    assert any("bf16 is slower here" in each.found for each in found)
    assert [each.met for each in found] == [each.met for each in alone]
    assert [each.found for each in found] == [each.found.replace("was not run", "is slower here") for each in alone]


def test_missing_records_are_named_where_time_is_left() -> None:
    left = [each.left for each in verdicts([made.bad()[0]]) if each.met is False]
    assert any("no record of `bench ceiling`" in text for text in left)
    assert any("no record of `bench latency`" in text for text in left)


def test_an_unknown_benchmark_is_a_table_and_no_markup() -> None:
    row = {"name": "<b>bold & brave</b>", "seconds": {"median": 0.125}, "list": [1], "share": {"share": 0.5}, "empty": None}
    text = page([record("other", ["<i>"], [row])])
    assert "&lt;b&gt;bold &amp; brave&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "<i>" not in text.replace("<i class", "")
    assert "0.125" in text
    assert "<th>empty</th>" not in text


def test_marks_stay_inside_their_plots() -> None:
    plots = [
        bars([Bar("a", 1.0, 0.5, 3.0, 0, "a long note about it"), Bar("b", 0.0, 0.0, 0.0)]),
        stacked({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 0.0}}, "s", {"a": "3 s"}),
        lines({"one": {1.0: 5.0, 1056.0: 900.0}, "two": {32.0: 1.0}}, "tokens", "rate"),
        scatter([Point(5.0, 90.0, "a", 1), Point(500.0, 91.0, "b", 2), Point(50.0, 20.0, "c")], "ms", "%"),
        scatter([Point(5.0, 90.0, "alone", 1)], "ms", "%"),
    ]
    for plot in plots:
        assert Balance(plot).open == []
        found = re.search(r'viewBox="0 0 (\d+) (\d+)"', plot)
        assert found is not None
        width, height = float(found[1]), float(found[2])
        for x, y in re.findall(r'<(?:text|rect)[^>]*? x="(-?[\d.]+)" y="(-?[\d.]+)"', plot):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
        for x, y in re.findall(r'cx="(-?[\d.]+)" cy="(-?[\d.]+)"', plot):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_numbers_keep_three_digits() -> None:
    assert [show(v) for v in (0.0, 1234.5, 12.345, 0.00012345, 1.0)] == ["0", "1,234", "12.3", "0.000123", "1.00"]


def test_the_command_writes_the_page_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, records = [], made.good()
    for number, each in enumerate(records):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(each))
    assert report.main([*map(str, files), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(records)
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    (tmp_path / "no.json").write_text("{}")
    for fault, message in ((["no.json"], "no record of a benchmark"), (["nowhere.json"], "cannot be read")):
        assert report.main([str(tmp_path / fault[0]), "-o", str(tmp_path / "other.html")]) == 2
        assert message in capsys.readouterr().err
    assert report.main([str(tmp_path / "no.json"), *map(str, files), "-o", str(tmp_path / "report.html")]) == 0
    assert "passed over: " in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(records)
    assert report.main([str(files[0]), "-o", str(tmp_path / "no" / "report.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".html"}
    assert not (tmp_path / "other.html").exists()


def test_a_record_without_what_its_benchmark_writes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    for each in (record("eight", [], [{}]), record("latency", [], [{"parts": {}}], shape="s")):
        file.write_text(json.dumps(each))
        assert report.main([str(file), "-o", str(tmp_path / "r.html")]) == 2
        assert f"r.json: its rows are not those of bench {each['bench']}" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
