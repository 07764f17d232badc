"""Laws of thinking before drawing: the row that a picture is drawn on is the one that training uses, a thought that cannot be
drawn from is reported and never used, and both hold whether the tags are single tokens or pieces."""

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scripted import CAPTION, THOUGHT, WRITTEN, plant, script_answer

from mmada_lite import Error, ImageSettings, Model
from mmada_lite.decoding import generate
from mmada_lite.decoding.rows import unconditional_prompt
from mmada_lite.streams import Stream
from mmada_lite.train.data.thoughts import split_thought as split_in_training
from mmada_lite.train.data.thoughts import with_thought
from mmada_lite.train.rollouts import caption_to_thought_prompts, thought_to_image_prompts
from mmada_lite.vocabulary import CLOSE, OPEN, fault_of, split_thought, unfinished, with_tags

FEW = ImageSettings(steps=4, guidance=1.0)


def drawn_on(thinker: Model, prompt: list[int], seed: int) -> np.ndarray:
    """Codes drawn on a row of training's, as training and evaluation do it."""
    side = thinker.codec.grid
    blank = np.zeros(side**2)
    decoding = generate.draw(thinker.denoiser, prompt, blank, blank == 0, FEW, thinker.vocabulary, seed=seed)
    assert len(list(decoding.steps)) == FEW.steps
    return decoding.codes.reshape(side, side)


def test_a_picture_is_drawn_on_the_row_of_training(thinker: Model) -> None:
    seen = plant(thinker, with_tags(THOUGHT))
    drawing = thinker.paint(CAPTION, FEW, seed=3, think=True).result()
    rows = [window.tokens[0].tolist() for window in seen.windows]
    (plan,), (planned,) = (
        caption_to_thought_prompts(thinker, [CAPTION]),
        thought_to_image_prompts(thinker, [CAPTION], [with_tags(THOUGHT)]),
    )
    assert rows[0] == plan + [thinker.vocabulary.special.mask] * WRITTEN.answer_length
    assert rows[-2][: len(planned)] == planned
    assert rows[-1][:4] == unconditional_prompt(thinker.vocabulary)  # guidance: without the prompt, as paint's
    assert len(rows[-2]) == len(planned) + 16 + 1
    assert drawing.thought == THOUGHT
    assert drawing.thought_fault is None
    assert (drawing.codes == drawn_on(thinker, planned, seed=3)).all()
    assert (drawing.codes != thinker.paint(CAPTION, FEW, seed=3).result().codes).any()


def test_the_same_thought_given_draws_the_same(thinker: Model) -> None:
    given = thinker.paint(CAPTION, FEW, seed=3, think=f" {THOUGHT}\n")
    assert given.thought == THOUGHT
    assert [step.predicted_codes is None for step in given] == [False] * 4
    assert given.last is not None
    assert given.last.model_calls == 4
    plant(thinker, with_tags(THOUGHT))
    assert (thinker.paint(CAPTION, FEW, seed=3, think=True).result().codes == given.codes).all()


def test_steps_of_the_thought_come_first_and_are_told_apart(thinker: Model) -> None:
    plant(thinker, with_tags(THOUGHT))
    drawing = thinker.paint(CAPTION, FEW, think=True)
    with pytest.raises(Error, match="no picture to show yet"):
        drawing.preview()
    steps, shown = [], []
    for step in drawing:
        steps.append(step)
        shown.append(drawing.thought_so_far)
        if step.predicted_codes is None:
            with pytest.raises(Error, match="no picture to show yet"):
                drawing.preview()
        else:
            assert drawing.preview().size == (16, 16)
    written, drawn = [[s for s in steps if (s.predicted_codes is None) is text] for text in (True, False)]
    assert steps == [*written, *drawn]
    assert [s.index for s in written] == list(range(len(written)))
    assert [s.index for s in drawn] == [0, 1, 2, 3]
    assert [s.model_calls for s in steps] == list(range(1, len(steps) + 1))
    assert all(a.seconds <= b.seconds for a, b in pairwise(steps))
    assert "░" in str(shown[0])
    assert shown[-1] == drawing.thought == THOUGHT


def properties_of(stream: Stream) -> dict[str, object]:
    """Every public attribute of a stream, but those that wait: `text` and `picture` say so, `result` is a call."""
    names = [name for name in dir(stream) if not name.startswith("_") and name not in ("text", "picture")]
    return {name: value for name in names if not callable(value := getattr(stream, name))}


def test_properties_call_no_model(thinker: Model) -> None:
    """They say what stands now, at every step; `result`, `text` and `picture` run the rest."""
    seen = plant(thinker, with_tags(THOUGHT))
    decoded: list[int] = []
    decode = thinker.codec.decoder.run
    object.__setattr__(thinker.codec, "decoder", Counting(decode, decoded))
    answer, drawing = thinker.chat(CAPTION, WRITTEN), thinker.paint(CAPTION, FEW, think=True)
    assert set(properties_of(answer)) == {"done", "ids", "last", "prompt_length"}
    assert set(properties_of(drawing)) == {"codes", "done", "last", "thought", "thought_fault", "thought_so_far"}
    assert (drawing.thought, drawing.thought_fault, drawing.last, drawing.done) == (None, None, None, False)
    assert (answer.last, answer.so_far()) == (None, "░" * WRITTEN.answer_length)
    assert not seen.windows
    for step in drawing:
        calls = len(seen.windows)
        properties = properties_of(drawing)
        assert properties["thought"] == (None if step.predicted_codes is None else THOUGHT)
        assert (properties["last"], properties["done"], len(seen.windows)) == (step, False, calls)
    assert not decoded
    result = drawing.result()
    assert (result.thought, result.thought_fault, result.steps, decoded) == (THOUGHT, None, 4, [1])
    assert result.picture is drawing.picture
    assert result.model_calls == drawing.last.model_calls  # type: ignore[union-attr]
    assert drawing.done


class Counting:
    """A session of which every run is written down."""

    def __init__(self, run: Callable[..., Any], runs: list[int]) -> None:
        self._run, self._runs = run, runs

    def run(self, *given: Any) -> Any:
        self._runs.append(1)
        return self._run(*given)


def test_a_stream_that_was_begun_is_joined_where_it_stands(thinker: Model) -> None:
    plant(thinker, with_tags(THOUGHT))
    drawing, joined = thinker.paint(CAPTION, FEW, think=True), thinker.paint(CAPTION, FEW, think=True).result()
    next(drawing)
    result = drawing.result()
    assert (result.thought, result.model_calls) == (THOUGHT, joined.model_calls)
    assert (result.codes == joined.codes).all()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        (f"{OPEN} {CLOSE}", "is empty"),
        ("left car", f"has no {OPEN}"),
        (f"{OPEN} left car", f"is not ended by {CLOSE}"),
        (f"car {OPEN} left car {CLOSE}", "does not read"),
        (f"{OPEN} a {CLOSE} b {CLOSE}", "does not read"),
    ],
)
def test_a_thought_that_cannot_be_drawn_from(thinker: Model, caplog: pytest.LogCaptureFixture, text: str, fault: str) -> None:
    plain = thinker.paint(CAPTION, FEW, seed=1).result()
    plant(thinker, text)
    with caplog.at_level(logging.WARNING, "mmada_lite"):
        drawing = thinker.paint(CAPTION, FEW, seed=1, think=True).result()
    assert str(drawing.thought_fault).startswith("the thought ")
    assert fault in str(drawing.thought_fault)
    assert drawing.thought is None
    (message,) = caplog.messages
    assert fault in message
    assert "drawn from the prompt alone" in message
    assert (drawing.codes == plain.codes).all()


def test_a_thought_without_room_for_the_picture(thinker: Model, caplog: pytest.LogCaptureFixture) -> None:
    """It is written in most of 256 tokens: one token more, and 16 codes with their brackets do not fit beside it."""
    thinker.text_defaults = WRITTEN.replace(answer_length=248, steps=248)
    plain = thinker.paint(CAPTION, FEW).result()
    (plan,) = caption_to_thought_prompts(thinker, [CAPTION])
    tags = len(thinker.tokenizer.encode(with_tags("x"))) - 1
    for excess in (0, 1):
        thought = "x" * (256 - len(plan) - 16 - 3 - tags + excess)
        plant(thinker, with_tags(thought))
        drawing = thinker.paint(CAPTION, FEW, think=True).result()
        assert drawing.thought == (None if excess else thought)
        assert (drawing.codes == plain.codes).all() == bool(excess)
    (message,) = caplog.messages
    assert "where the picture leaves room for" in message
    with pytest.raises(Error, match="thought and picture takes 257 tokens"):
        thinker.paint(CAPTION, think=thought)


def test_impossible_thoughts_are_refused_before_any_work(thinker: Model) -> None:
    for think, message in ((" ", "thought is empty"), ("a </think>", "holds </think>"), (with_tags("a"), "holds <think>")):
        with pytest.raises(Error, match=message):
            thinker.paint(CAPTION, think=think)
    thinker.text_defaults = WRITTEN.replace(answer_length=252)
    with pytest.raises(Error, match="the prompt with its thought takes 259"):
        thinker.paint(CAPTION, think=True)
    with pytest.raises(Error, match="prompt is empty"):
        thinker.paint(" ", think=True)


def test_without_thinking_there_is_no_thought(thinker: Model) -> None:
    drawing = thinker.paint(CAPTION, FEW)
    assert (drawing.thought, drawing.thought_so_far, drawing.thought_fault, drawing.last) == (None, None, None, None)


@pytest.mark.parametrize("text", [f"{OPEN} 3 + 4 = 7 {CLOSE} 7", "7", f"{OPEN} 3 + 4", f"{OPEN} 3 {CLOSE}"])
def test_answers_are_split(thinker: Model, text: str) -> None:
    script_answer(thinker, text)
    result = thinker.chat("hello", WRITTEN).result()
    assert (result.thought, result.answer) == split_thought(text)
    assert result.text == text


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think> a </think> b", "a", "b"),
        ("\n<think>a</think>b\n", "a", "b"),
        ("<think></think> b", "", "b"),
        ("<think> a </think>", "a", ""),
        (" b ", None, "b"),
        ("", None, ""),
        ("<think> a", None, "<think> a"),
        ("a </think> b", None, "a </think> b"),
        ("<think> <think> a </think> b", None, "<think> <think> a </think> b"),
        ("<think> a </think> b </think>", None, "<think> a </think> b </think>"),
    ],
)
def test_how_a_text_is_split(text: str, thought: str | None, answer: str) -> None:
    assert split_thought(text) == (thought, answer)
    assert (fault_of(text) is None) == bool(thought)
    trained = split_in_training(text)  # it also asks for an answer
    assert (trained is not None) == bool(thought and answer)
    assert trained is None or tuple(trained) == (thought, answer)


def test_what_is_put_together_comes_apart() -> None:
    assert split_thought(with_thought("a b", "c")) == ("a b", "c")
    assert split_thought(with_tags(" a b ")) == ("a b", "")
    text = with_tags("a b")
    assert [unfinished(text[:end]) for end in (0, 7, 9, 11, len(text))] == ["", "", "a", "a b", "a b"]
    assert unfinished("<th░nk> a") == "<th░nk> a"
