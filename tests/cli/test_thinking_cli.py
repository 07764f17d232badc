"""The command line around a thought: what is shown, what the JSON says, what is refused."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import CAPTION, THOUGHT, WRITTEN, plant, script_answer

from mmada_lite import Model
from mmada_lite.cli.main import main
from mmada_lite.train.data.thoughts import with_thought
from mmada_lite.vocabulary import with_tags

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(thinker: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb on the model in an empty folder; returns the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmada_lite.model.load", lambda *_, **__: thinker)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        return code, *capsys.readouterr()

    return call


def test_paint_thinks_aloud_on_standard_error(run: Run, thinker: Model) -> None:
    plant(thinker, with_tags(THOUGHT))
    assert run("paint", CAPTION, "--think", "-o", "thought.png") == (0, "thought.png\n", f"thought: {THOUGHT}\n")
    assert run("paint", CAPTION, "--thought", THOUGHT, "-o", "given.png") == (0, "given.png\n", "")
    assert run("paint", CAPTION, "-o", "plain.png") == (0, "plain.png\n", "")
    assert Path("thought.png").read_bytes() == Path("given.png").read_bytes() != Path("plain.png").read_bytes()


def test_json_of_a_thought_and_its_picture(run: Run, thinker: Model) -> None:
    plant(thinker, with_tags(THOUGHT))
    code, out, error = run("paint", CAPTION, "--think", "--json", "--steps", "4", "--save-steps", "steps")
    *steps, last = [json.loads(line) for line in out.splitlines()]
    assert (code, error) == (0, "")
    written = [s for s in steps if s["part"] == "thought"]
    assert [s["part"] for s in steps] == ["thought"] * len(written) + ["picture"] * 4
    assert [s["step"] for s in steps] == [*range(1, len(written) + 1), 1, 2, 3, 4]
    assert [("thought" in s) for s in steps] == [True] * len(written) + [False] * 4
    assert written[-1]["thought"] == last["thought"] == THOUGHT
    assert "░" in written[0]["thought"]
    assert [s["model_calls"] for s in steps] == list(range(1, len(steps) + 1))
    assert (last["model_calls"], last["steps"], last["thought_fault"]) == (len(steps), 4, None)
    assert last["thought_settings"] == WRITTEN.flat()
    assert sorted(os.listdir("steps")) == [f"step-00{n}.png" for n in (1, 2, 3, 4)]


def test_a_given_thought_in_json(run: Run) -> None:
    code, out, _ = run("paint", CAPTION, "--thought", THOUGHT, "--json", "--steps", "4")
    *steps, last = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [s["part"] for s in steps] == ["picture"] * 4
    assert (last["thought"], last["thought_settings"]) == (THOUGHT, None)


def test_a_thought_that_cannot_be_drawn_from_is_a_note(run: Run, thinker: Model) -> None:
    plant(thinker, "no tags")
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
    run: Run, thinker: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = with_thought("3 + 4 = 7", "7")
    script_answer(thinker, text)
    assert run("chat", "hello") == (0, f"{text}\n", "")
    last = json.loads(run("chat", "hello", "--json")[1].splitlines()[-1])
    assert (last["result"], last["thought"], last["answer"], last["complete"]) == (text, "3 + 4 = 7", "7", True)
    monkeypatch.setattr("mmada_lite.cli.terminal.is_terminal", lambda *streams: True)
    assert run("chat", "hello")[1] == "\x1b[2m<think> 3 + 4 = 7 </think>\x1b[22m 7\n"
    script_answer(thinker, "7")
    assert run("chat", "hello")[1] == "7\n"
    last = json.loads(run("chat", "hello", "--json")[1].splitlines()[-1])
    assert (last["thought"], last["answer"]) == (None, "7")
