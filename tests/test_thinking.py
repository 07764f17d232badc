"""Laws of thinking before drawing: the row that a picture is drawn on is the one that training uses, a thought that cannot be
drawn from is reported and never used, and both hold whether the tags are single tokens or pieces."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from conftest import MockDenoiser

import mmada_lite
from mmada_lite import Error, ImageSettings, TextSettings
from mmada_lite.canvas import image_canvas, paint_prompt
from mmada_lite.cli import main
from mmada_lite.decoding import decode_image, final_codes
from mmada_lite.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.sampling import PhiloxSampler
from mmada_lite.thoughts import CLOSE, OPEN, fault_of, split_thought, unfinished, with_tags
from mmada_lite.train.data.thoughts import split_thought as split_in_training
from mmada_lite.train.data.thoughts import with_thought
from mmada_lite.train.rollouts import plan_prompts, planned_prompts, question_prompts
from mmada_lite.vocabulary import Tokenizer

Run = Callable[..., tuple[int, str, str]]
CAPTION = "a cat"
THOUGHT = "left car, right cat"
FEW = ImageSettings(steps=4, guidance=1.0)
WRITTEN = TextSettings(answer_length=48, steps=24, block_length=16)


class Scripted(MockDenoiser):
    """Writes a text that was planted by position; draws as the model beneath it does."""

    def __init__(self, planted: dict[int, int], drawing: Denoiser) -> None:
        super().__init__(planted)
        self._drawing, self._asked = drawing, np.zeros((1, 1), dtype=np.int64)

    def forward(self, window: Window, *, keep: bool):  # type: ignore[no-untyped-def]
        self.windows.append(replace(window, tokens=window.tokens.copy()))  # it may be the canvas itself
        self._asked = window.positions[window.rows]
        return self._drawing.forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        if head == "image":
            return self._drawing.predict(head, hidden, mix, temperature, uniform)
        token = np.vectorize(lambda place: self.planted[int(place)])(self._asked).astype(np.int64)
        return Prediction(token, np.zeros(token.shape, dtype=np.float32))


@pytest.fixture(params=["pieces", "single tokens"])
def model(request: pytest.FixtureRequest, tiny_bundle: Path) -> mmada_lite.Model:
    """The tiny model with a tokenizer that spells the tags in bytes, and with one that has a token for each."""
    found = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    found.text_defaults = WRITTEN
    if request.param == "single tokens":
        inner = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
        inner.add_tokens([tokenizers.AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
        found._tokenizer = Tokenizer(inner)
    return found


def plant(model: mmada_lite.Model, text: str) -> Scripted:
    """Make the model think `text` about CAPTION, whatever comes after it."""
    (plan,) = plan_prompts(model, [CAPTION])
    ids = model.tokenizer.encode(text)
    ids += [model.vocabulary.special.eos] * (model.text_defaults.answer_length - len(ids))
    model.denoiser = Scripted({len(plan) + n: token for n, token in enumerate(ids)}, model.denoiser)  # type: ignore[assignment]
    return model.denoiser  # type: ignore[return-value]


def script_answer(model: mmada_lite.Model, text: str) -> None:
    """Make the model answer `text` to "hello"."""
    start = len(question_prompts(model, ["hello"])[0])
    ids = [*model.tokenizer.encode(text), *[model.vocabulary.special.eot] * model.text_defaults.answer_length]
    model.denoiser = Scripted({start + n: token for n, token in enumerate(ids)}, model.denoiser)  # type: ignore[assignment]


def drawn_on(model: mmada_lite.Model, prompt: list[int], seed: int) -> np.ndarray:
    """Codes drawn on a prompt with the project's own loop, as training and evaluation do it."""
    nothing = paint_prompt([], model.vocabulary.special)
    side = model.codec.grid
    canvas = image_canvas(prompt, np.zeros(side**2), np.ones(side**2), model.vocabulary, unconditional_prompt=nothing)
    sampler = PhiloxSampler(seed, FEW.sampling_temperature, canvas.start)
    return final_codes(list(decode_image(model.denoiser, canvas, FEW, sampler)))[0].reshape(side, side)


def test_a_picture_is_drawn_on_the_row_of_training(model: mmada_lite.Model) -> None:
    seen = plant(model, with_tags(THOUGHT))
    drawing = model.paint(CAPTION, FEW, seed=3, think=True).finish()
    rows = [window.tokens[0].tolist() for window in seen.windows]
    (plan,), (planned,) = plan_prompts(model, [CAPTION]), planned_prompts(model, [CAPTION], [with_tags(THOUGHT)])
    assert rows[0] == plan + [model.vocabulary.special.mask] * WRITTEN.answer_length
    end = [model.vocabulary.special.soi]
    assert rows[-2][: len(planned) + 1] == planned + end
    assert rows[-1][:4] == paint_prompt([], model.vocabulary.special) + end  # guidance: without the prompt, as paint's
    assert len(rows[-2]) == len(planned) + 16 + 2
    assert drawing.thought == THOUGHT
    assert drawing.thought_fault is None
    assert (drawing.codes == drawn_on(model, planned, seed=3)).all()
    assert (drawing.codes != model.paint(CAPTION, FEW, seed=3).finish().codes).any()


def test_the_same_thought_given_draws_the_same(model: mmada_lite.Model) -> None:
    given = model.paint(CAPTION, FEW, seed=3, think=f" {THOUGHT}\n")
    assert given.thought == THOUGHT
    assert [step.guess is None for step in given] == [False] * 4
    assert given.last is not None
    assert given.last.forwards == 4
    plant(model, with_tags(THOUGHT))
    assert (model.paint(CAPTION, FEW, seed=3, think=True).finish().codes == given.codes).all()


def test_steps_of_the_thought_come_first_and_are_told_apart(model: mmada_lite.Model) -> None:
    plant(model, with_tags(THOUGHT))
    drawing = model.paint(CAPTION, FEW, think=True)
    with pytest.raises(Error, match="no picture to show yet"):
        drawing.preview()
    steps, shown = [], []
    for step in drawing:
        steps.append(step)
        shown.append(drawing.thought_so_far)
        if step.guess is None:
            with pytest.raises(Error, match="no picture to show yet"):
                drawing.preview()
        else:
            assert drawing.preview().size == (16, 16)
    written, drawn = [[s for s in steps if (s.guess is None) is text] for text in (True, False)]
    assert steps == [*written, *drawn]
    assert [s.index for s in written] == list(range(len(written)))
    assert [s.index for s in drawn] == [0, 1, 2, 3]
    assert [s.forwards for s in steps] == list(range(1, len(steps) + 1))
    assert all(a.seconds <= b.seconds for a, b in pairwise(steps))
    assert "░" in str(shown[0])
    assert shown[-1] == drawing.thought == THOUGHT


def test_asking_for_the_thought_runs_it_and_draws_nothing(model: mmada_lite.Model) -> None:
    plant(model, with_tags(THOUGHT))
    drawing, whole = model.paint(CAPTION, FEW, think=True), model.paint(CAPTION, FEW, think=True).finish()
    next(drawing)
    assert drawing.thought == THOUGHT
    assert drawing.last is not None
    assert drawing.last.guess is None
    rest = list(drawing)
    assert len(rest) == 4
    assert rest[-1].forwards == whole.last.forwards  # type: ignore[union-attr]
    assert (drawing.codes == whole.codes).all()


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
def test_a_thought_that_cannot_be_drawn_from(
    model: mmada_lite.Model, caplog: pytest.LogCaptureFixture, text: str, fault: str
) -> None:
    plain = model.paint(CAPTION, FEW, seed=1).finish()
    plant(model, text)
    with caplog.at_level(logging.WARNING, "mmada_lite"):
        drawing = model.paint(CAPTION, FEW, seed=1, think=True).finish()
    assert str(drawing.thought_fault).startswith("the thought ")
    assert fault in str(drawing.thought_fault)
    assert drawing.thought is None
    (message,) = caplog.messages
    assert fault in message
    assert "drawn from the prompt alone" in message
    assert (drawing.codes == plain.codes).all()


def test_a_thought_without_room_for_the_picture(model: mmada_lite.Model, caplog: pytest.LogCaptureFixture) -> None:
    """It is written in most of 256 tokens: one token more, and 16 codes with their brackets do not fit beside it."""
    model.text_defaults = replace(WRITTEN, answer_length=248, steps=248)
    plain = model.paint(CAPTION, FEW).finish()
    (plan,) = plan_prompts(model, [CAPTION])
    tags = len(model.tokenizer.encode(with_tags("x"))) - 1
    for excess in (0, 1):
        words = "x" * (256 - len(plan) - 16 - 3 - tags + excess)
        plant(model, with_tags(words))
        drawing = model.paint(CAPTION, FEW, think=True).finish()
        assert drawing.thought == (None if excess else words)
        assert (drawing.codes == plain.codes).all() == bool(excess)
    (message,) = caplog.messages
    assert "where the picture leaves room for" in message
    with pytest.raises(Error, match="thought and picture takes 257 tokens"):
        model.paint(CAPTION, think=words)


def test_impossible_thoughts_are_refused_before_any_work(model: mmada_lite.Model) -> None:
    for think, message in ((" ", "thought is empty"), ("a </think>", "holds </think>"), (with_tags("a"), "holds <think>")):
        with pytest.raises(Error, match=message):
            model.paint(CAPTION, think=think)
    model.text_defaults = replace(WRITTEN, answer_length=252)
    with pytest.raises(Error, match="the prompt with its thought takes 259"):
        model.paint(CAPTION, think=True)
    with pytest.raises(Error, match="prompt is empty"):
        model.paint(" ", think=True)


def test_without_thinking_there_is_no_thought(model: mmada_lite.Model) -> None:
    drawing = model.paint(CAPTION, FEW)
    assert (drawing.thought, drawing.thought_so_far, drawing.thought_fault, drawing.last) == (None, None, None, None)


@pytest.mark.parametrize("text", [f"{OPEN} 3 + 4 = 7 {CLOSE} 7", "7", f"{OPEN} 3 + 4", f"{OPEN} 3 {CLOSE}"])
def test_answers_are_split(model: mmada_lite.Model, text: str) -> None:
    script_answer(model, text)
    answer = model.chat("hello", WRITTEN)
    assert (answer.thought, answer.answer) == split_thought(text)
    assert answer.text == text


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


@pytest.fixture
def run(model: mmada_lite.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb on the model in an empty folder; returns the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for verbs in ("pictures", "text"):
        monkeypatch.setattr(f"mmada_lite.verbs.{verbs}.load", lambda *_, **__: model)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        return code, *capsys.readouterr()

    return call


def test_paint_thinks_aloud_on_standard_error(run: Run, model: mmada_lite.Model) -> None:
    plant(model, with_tags(THOUGHT))
    assert run("paint", CAPTION, "--think", "-o", "thought.png") == (0, "thought.png\n", f"thought: {THOUGHT}\n")
    assert run("paint", CAPTION, "--thought", THOUGHT, "-o", "given.png") == (0, "given.png\n", "")
    assert run("paint", CAPTION, "-o", "plain.png") == (0, "plain.png\n", "")
    assert Path("thought.png").read_bytes() == Path("given.png").read_bytes() != Path("plain.png").read_bytes()


def test_json_of_a_thought_and_its_picture(run: Run, model: mmada_lite.Model) -> None:
    plant(model, with_tags(THOUGHT))
    code, out, error = run("paint", CAPTION, "--think", "--json", "--steps", "4", "--save-steps", "steps")
    *steps, last = [json.loads(line) for line in out.splitlines()]
    assert (code, error) == (0, "")
    written = [s for s in steps if s["part"] == "thought"]
    assert [s["part"] for s in steps] == ["thought"] * len(written) + ["picture"] * 4
    assert [s["step"] for s in steps] == [*range(1, len(written) + 1), 1, 2, 3, 4]
    assert [("thought" in s) for s in steps] == [True] * len(written) + [False] * 4
    assert written[-1]["thought"] == last["thought"] == THOUGHT
    assert "░" in written[0]["thought"]
    assert [s["forwards"] for s in steps] == list(range(1, len(steps) + 1))
    assert (last["forwards"], last["steps"], last["thought_fault"]) == (len(steps), 4, None)
    assert last["thought_settings"] == asdict(WRITTEN)
    assert sorted(os.listdir("steps")) == [f"step-00{n}.png" for n in (1, 2, 3, 4)]


def test_a_given_thought_in_json(run: Run) -> None:
    code, out, _ = run("paint", CAPTION, "--thought", THOUGHT, "--json", "--steps", "4")
    *steps, last = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [s["part"] for s in steps] == ["picture"] * 4
    assert (last["thought"], last["thought_settings"]) == (THOUGHT, None)


def test_a_thought_that_cannot_be_drawn_from_is_a_note(run: Run, model: mmada_lite.Model) -> None:
    plant(model, "no tags")
    note = "mmada-lite: the thought has no <think>, so the picture is drawn from the prompt alone\n"
    assert run("paint", CAPTION, "--think") == (0, "a-cat.png\n", note)
    code, out, error = run("paint", CAPTION, "--think", "--json", "--force")
    last = json.loads(out.splitlines()[-1])
    assert (code, error) == (0, note)
    assert (last["thought"], last["thought_fault"]) == (None, "the thought has no <think>")
    assert not logging.getLogger("mmada_lite").handlers


def test_what_is_refused(run: Run) -> None:
    for words, message in (
        (["--think", "--thought", "a"], "not allowed with"),
        (["--thought", " "], "the thought is empty"),
        (["--thought", "<think> a"], "holds <think>"),
        (["--thought", "x" * 300], "shorten it by"),
    ):
        code, out, error = run("paint", CAPTION, *words)
        assert (code, out) == (2, "")
        assert error.startswith("mmada-lite: ")
        assert message in error
    assert os.listdir() == []
    assert "cannot both be -" in run("paint", "-", "--thought", "-")[2]


def test_chat_prints_thought_and_answer_and_json_has_them_apart(
    run: Run, model: mmada_lite.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = with_thought("3 + 4 = 7", "7")
    script_answer(model, text)
    assert run("chat", "hello") == (0, f"{text}\n", "")
    last = json.loads(run("chat", "hello", "--json")[1].splitlines()[-1])
    assert (last["result"], last["thought"], last["answer"], last["complete"]) == (text, "3 + 4 = 7", "7", True)
    monkeypatch.setattr("mmada_lite.verbs.terminal.is_terminal", lambda *streams: True)
    assert run("chat", "hello")[1] == "\x1b[2m<think> 3 + 4 = 7 </think>\x1b[22m 7\n"
    script_answer(model, "7")
    assert run("chat", "hello")[1] == "7\n"
    last = json.loads(run("chat", "hello", "--json")[1].splitlines()[-1])
    assert (last["thought"], last["answer"]) == (None, "7")
