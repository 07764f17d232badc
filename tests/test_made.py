"""Figures, tables and copies in the documents are those that the code and the records give."""

from pathlib import Path

import pytest
from house import drawing, layers, reduced
from import_graph import ROOT
from made import MACHINES, described, filled, machine_of, made, results


@pytest.mark.parametrize("path", sorted(made()), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_made_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == made()[path], f"{path} is not current; run `python tests/made.py`"


def test_a_page_that_was_changed_by_hand_is_found() -> None:
    page = "before\n<!-- made: exam -->\n| by hand |\n<!-- end -->\nafter\n"
    assert filled(page) == filled(filled(page)) != page
    assert filled(page).startswith("before\n")
    assert filled(page).endswith("\nafter\n")


def test_every_kind_of_machine_has_a_row_and_every_row_its_record() -> None:
    lines = [line for line in results().splitlines() if line.startswith("| ")][1:]
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines} - {"---"} == set(MACHINES)
    assert all("../bench/results/" in line or "no record" in line for line in lines if "---" not in line)


def test_a_machine_is_known_by_its_best_instructions() -> None:
    hardware = {"extensions": ["avx2", "avx512f"], "cards": []}
    assert machine_of({"hardware": hardware}) == "AVX2"
    assert machine_of({"hardware": hardware | {"extensions": ["avx2", "avx_vnni"]}}) == "VNNI"
    assert machine_of({"hardware": hardware | {"extensions": ["avx512_vnni", "amx_int8"]}}) == "AMX"
    assert machine_of({"hardware": hardware | {"cards": ["a card"]}}) == "GPU"


def test_the_card_changes_two_values_of_bundle_json() -> None:
    bundle = '{"files": {"model_card.md": {\n "size": 1,\n "sha256": "00"\n}, "other": {"size": 1, "sha256": "00"}}}'
    changed = described(bundle, "card")
    assert changed.replace('"size": 4', '"size": 1', 1).count('"sha256": "00"') == 1
    with pytest.raises(AssertionError, match="0 times"):
        described('{"files": {}}', "card")


def test_the_drawing_leaves_out_what_follows() -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}
    assert reduced(edges) == {("a", "b"), ("b", "c"), ("a", "d")}
    assert layers({"a", "b", "c", "d"}, edges) == {"a": 2, "b": 1, "c": 0, "d": 0}
    drawn = drawing({("a", "b"), ("b", "c")}, {("a", "d")})
    assert (drawn.count("<text"), drawn.count("marker-end"), drawn.count("dasharray")) == (4, 3, 1)
