"""Holes in texts and partial answers on the packaged model: the notation, what comes back, and what is refused."""

import json

import pytest

import mmada_lite
from mmada_lite import Error, Model
from mmada_lite.cli.main import main
from mmada_lite.forms.holes import Hole, read_partial
from mmada_lite.forms.rows import forms


@pytest.fixture(scope="module")
def shipped() -> Model:
    return mmada_lite.load(device="cpu", threads=1)


def test_the_notation_is_read_into_pieces_and_holes() -> None:
    partial = read_partial(r"a [mask:3]b\[mask:2] [c] \d[mask:*] x [mask:*5]")
    assert partial.pieces == ("a ", r"b[mask:2] [c] \d", " x ", "")
    assert partial.holes == (Hole(3, 3, True), Hole(None, 8, False), Hole(None, 5, True))
    assert read_partial("[1] [note: x] []").holes == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a [mask:0]", "a hole of 0 tokens"),
        ("a [mask]", "says no length"),
        ("a [mask:]", "says no length"),
        ("a [mask:x]", "no hole is written"),
        ("a [mask:-1]", "no hole is written"),
        ("a [mask:3", "no hole is written"),
        ("a [foo:3]", "no hole is written"),
        ("a [mask:1][mask:2]", "side by side"),
        ("a [mask:1] [mask:*]", "side by side"),
        ("a [mask:*] b [mask:*] c [mask:*]", "512 combinations"),
        ("<|eot[mask:1]_id|>", "stands inside <|eot_id|>"),
        ("a [mask:600] b", "shorten it"),
        ("a [mask:9999999999] b", "hole of 9999999999 tokens"),
        ("a b", "no hole"),
        (r"a \[mask:3]", "no hole"),
    ],
)
def test_a_hole_that_cannot_be_is_one_line_and_exit_code_2(
    shipped: Model, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    with pytest.raises(Error, match=said.replace("|", r"\|")):
        shipped.fill(text)
    assert main(["fill", text]) == 2
    seen = capsys.readouterr()
    assert (seen.out, seen.err.count("\n")) == ("", 1)
    assert said in seen.err


@pytest.mark.parametrize(
    ("answer", "said"),
    [("", "the given answer is empty"), ("the [mask:60]", "takes 61 tokens"), ("a " * 60, "shorten it")],
)
def test_a_partial_answer_that_cannot_be_is_refused(
    shipped: Model, capsys: pytest.CaptureFixture[str], answer: str, said: str
) -> None:
    with pytest.raises(Error, match=said):
        shipped.chat("what colour is the sky?", answer=answer)
    assert main(["chat", "what colour is the sky?", "--answer", answer]) == 2
    assert said in capsys.readouterr().err


def test_what_is_given_stands_in_the_text_and_spans_say_where_the_rest_is(shipped: Model) -> None:
    text = "a cat [mask:1] a [mask:1] background"
    answer = shipped.fill(text)
    steps = list(answer)
    result = answer.result()
    first, second = result.spans
    assert result.text == f"a cat {first.text} a {second.text} background"
    assert first.text == "on"
    assert [result.text[span.start : span.stop] for span in result.spans] == [first.text, second.text]
    assert [shipped.decode(span.ids) for span in result.spans] == [f" {first.text}", f" {second.text}"]
    for span in result.spans:
        assert span.mean == pytest.approx(span.log_probability / len(span.ids))
        assert span.log_probability <= 0  # 0 where the model is sure beyond float32
    assert result.steps == len(steps) == steps[-1].model_calls == result.model_calls
    assert result.complete
    assert result.text == shipped.fill(text, seed=1).text == shipped.fill(text).text


def test_a_beginning_is_continued_and_the_whole_is_the_answer(shipped: Model) -> None:
    result = shipped.chat("what colour is a penguin?", answer="black ").result()
    assert (result.text, result.answer) == ("black and white",) * 2
    assert [span.text for span in result.spans] == ["and white"]
    assert shipped.chat("what colour is a penguin?", answer="[mask:1] and white").text == "black and white"
    bracket = shipped.chat("what colour is a penguin?", answer=r"\[ [mask:1]").text
    assert bracket.startswith("[ ")


def test_lengths_are_tried_as_one_batch_that_costs_the_calls_of_the_longest(shipped: Model) -> None:
    tried = shipped.fill("a cat [mask:*4] red background")
    steps = list(tried)
    assert {int(row) for step in steps for row in step.rows} == {0, 1, 2, 3}
    assert steps[-1].model_calls <= 4
    alone = [shipped.fill(f"a cat [mask:{n}] red background").result() for n in (1, 2, 3, 4)]
    written = [result for result in alone if result.spans[0].ids]  # an empty hole loses
    assert tried.result().text == max(written, key=lambda result: result.spans[0].mean).text


def test_rows_are_filled_up_to_whole_blocks_of_the_longest() -> None:
    partial = read_partial("ab[mask:*3]c")
    rows = forms(partial, lambda text: [ord(letter) for letter in text], [7], 0, 4, 9)
    assert [row.ids for row in rows] == [
        (97, 98, 9, 99, 7, 0, 0, 0),
        (97, 98, 9, 9, 99, 7, 0, 0),
        (97, 98, 9, 9, 9, 99, 7, 0),
    ]


def test_ids_of_an_answer_are_completed(shipped: Model) -> None:
    special, prompt = shipped.vocabulary.special, [0, 9, 10]
    given = [*shipped.encode("a cat"), special.mask, *shipped.encode(" a red background")]
    result = shipped.complete(prompt, answer=given).result()
    assert [token for token, before in zip(result.ids, given, strict=True) if before != special.mask] == [
        token for token in given if token != special.mask
    ]
    assert len(result.spans) == 1
    with pytest.raises(Error, match="without a mask"):
        shipped.complete(prompt, answer=[5, 6])


def test_the_command_prints_the_text_alone_and_json_has_the_spans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill", "a cat on a red [mask:1]"]) == 0
    assert capsys.readouterr().out == "a cat on a red background\n"
    assert main(["chat", "what colour is a penguin?", "--answer", "[mask:1] and white", "--json"]) == 0
    *steps, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(steps) == last["steps"] == 1
    assert last["result"] == "black and white"
    assert last["spans"][0] | {"log_probability": 0, "mean": 0} == {
        "start": 0,
        "stop": 5,
        "text": "black",
        "ids": steps[0]["tokens"],
        "log_probability": 0,
        "mean": 0,
    }


def test_a_conversation_takes_no_partial_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mmada_lite.cli.terminal.is_terminal", lambda *streams: True)
    assert main(["chat", "--answer", "x"]) == 2
    assert "give the MESSAGE" in capsys.readouterr().err
