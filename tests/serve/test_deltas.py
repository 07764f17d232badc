"""What a stream says of a text is never unsaid, and joined it is the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmada_lite.serve.deltas import Deltas, said

PIECES = ["<think>", "</think>", "<", "</", "think", " ", "\n", "ab", "b", "é", "stop"]


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.sampled_from(["stop", "ab", "bb"]), max_size=2), st.data())
def test_joined_pieces_are_the_whole(pieces: list[str], stops: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    deltas, thought, answer = Deltas(stops), "", ""
    for cut in cuts:
        more = deltas.read(text[:cut])
        thought, answer = thought + more[0], answer + more[1]
        if deltas.said.stopped:
            text = text[:cut]
            break
    more = deltas.read(text, ended=True)
    whole = said(text, stops, ended=True)
    assert (thought + more[0], answer + more[1]) == (whole.thought, whole.answer)


@pytest.mark.parametrize(
    ("text", "thought", "answer", "stopped"),
    [
        ("<think> 1+1 </think> 2", "1+1", "2", False),
        ("  <think>on and on", "on and on", "", False),
        ("plain words ", "", "plain words", False),
        ("one stop two", "", "one ", True),
        ("<think> stop </think> go", "stop", "go", False),
    ],
)
def test_parts(text: str, thought: str, answer: str, stopped: bool) -> None:
    whole = said(text, ["stop"], ended=True)
    assert (whole.thought, whole.answer, whole.stopped) == (thought, answer, stopped)


def test_half_a_character_and_half_a_tag_are_held_back() -> None:
    deltas = Deltas(["stop"])
    assert deltas.read("<thi") == ("", "")
    assert deltas.read("<think>a\ufffd") == ("a", "")
    assert deltas.read("<think>aé</thi") == ("é", "")
    assert deltas.read("<think>aé</think>b st") == ("", "b")
    assert deltas.read("<think>aé</think>b stop") == ("", " ")
    assert deltas.said.stopped
