"""The verbs that answer in text: chat and ask. They know settings and streams; they know nothing of tokens or graphs."""

import argparse
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace

from mmada_lite.cli import terminal
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error
from mmada_lite.model import Model, load
from mmada_lite.streams import Answer
from mmada_lite.vocabulary import CLOSE, split_thought

_LEAVE = ("/exit", "/quit")


def chat(arguments: argparse.Namespace) -> int:
    """Answer one message, or hold a conversation when there is none and a person sits at the terminal."""
    if arguments.message is None and not arguments.json and terminal.is_terminal("stdin", "stdout"):
        return _converse(arguments)
    message = terminal.text_of(arguments.message if arguments.message is not None else terminal.STDIN, "message")
    _not_empty(message, "message")
    model = _load(arguments)
    settings = settings_for(model.text_defaults, arguments)
    answer = _told(model.chat(message, settings, seed=arguments.seed), settings, arguments)
    print(answer if arguments.json else _shown(answer))
    return 0


def ask(arguments: argparse.Namespace) -> int:
    """Answer a question about a picture."""
    terminal.only_one_stdin({"PICTURE": arguments.picture, "QUESTION": arguments.question})
    question = terminal.text_of(arguments.question, "question")
    _not_empty(question, "question")
    picture = terminal.picture_of(arguments.picture)
    model = _load(arguments)
    settings = settings_for(model.text_defaults, arguments)
    answer = _told(model.ask(picture, question, settings, seed=arguments.seed, fit=arguments.fit), settings, arguments)
    print(answer if arguments.json else _shown(answer))
    return 0


def settings_for(defaults: TextSettings, arguments: argparse.Namespace) -> TextSettings:
    """The model's defaults with what was said on the command line. Steps that were not said follow the answer's length."""
    options = vars(arguments)
    given = {f.name: options[f.name] for f in fields(TextSettings) if options.get(f.name) is not None}
    if "entropy_bound" in given and "threshold" not in given:  # one rule takes the place of the other
        given["threshold"] = None
    elif "threshold" in given and "entropy_bound" not in given:
        given["entropy_bound"] = None
    if given.get("cache") == "none":  # what a speed would renew is not there
        given = {"refresh": None, "drift": None} | given
    if "steps" not in given:
        given["steps"] = _steps_for(defaults, given)
    return replace(defaults, **given)


def _steps_for(defaults: TextSettings, given: Mapping[str, int]) -> int:
    length = given.get("answer_length", defaults.answer_length)
    blocks = math.ceil(length / max(1, given.get("block_length", defaults.block_length)))
    return max(1, min(length, max(blocks, round(defaults.steps * length / defaults.answer_length))))


def _converse(arguments: argparse.Namespace) -> int:
    _line_editing()
    model = _load(arguments)
    settings = settings_for(model.text_defaults, arguments)
    terminal.note("Say something; /new begins anew, /exit or Ctrl-D ends.")
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            print()
            return 0
        if said in _LEAVE:
            return 0
        if said == "/new":
            messages = []
        elif said:
            messages = _turn(model, messages, said, settings, arguments)


def _turn(
    model: Model, before: list[dict[str, str]], said: str, settings: TextSettings, arguments: argparse.Namespace
) -> list[dict[str, str]]:
    """One exchange of a conversation; after an Error the conversation is what it was before."""
    asked = [*before, {"role": "user", "content": terminal.text_of(said, "message")}]
    try:
        answer = _told(model.chat(asked, settings, seed=arguments.seed), settings, arguments)
    except Error as error:
        terminal.note(f"mmada-lite: {error} (/new begins anew)")
        return before
    print(_shown(answer))
    return [*asked, {"role": "assistant", "content": answer}] if answer else before


def _told(answer: Answer, settings: TextSettings, arguments: argparse.Namespace) -> str:
    """Run the answer, showing it as it forms; returns what is to be printed: the text, or one JSON object."""
    with terminal.Progress(quiet=arguments.json) as progress:
        for step in answer:
            if arguments.json:
                terminal.print_json(terminal.step_json(step))
            elif progress.on:
                progress.show(f"{terminal.step_line(step, 'tokens')}  {answer.so_far()}")
    text = answer.text
    if arguments.json:
        found = terminal.result_json(text, arguments.seed, settings, answer.last)
        parts = {"thought": answer.thought, "answer": answer.answer}
        return terminal.json_line({**found, **parts, "complete": answer.complete})
    if not answer.complete:
        terminal.note(
            f"mmada-lite: the answer ends at its longest, {settings.answer_length} tokens; --answer-length gives more"
        )
    return text


def _shown(text: str) -> str:
    """An answer as it is printed: whole, the thought before it faint on a terminal."""
    if split_thought(text)[0] is None:
        return text
    end = text.index(CLOSE) + len(CLOSE)
    return terminal.dimmed(text[:end]) + text[end:]


def _load(arguments: argparse.Namespace) -> Model:
    with terminal.Progress(quiet=arguments.json) as progress:
        progress.show("loading the model")
        threads = terminal.threads_of(arguments.threads)
        model = load(arguments.model, device=arguments.device, threads=threads, speed=arguments.speed)
        progress.show(f"on {model.device.name}: {model.device.reason}")
        return model


def _not_empty(text: str, what: str) -> None:
    if not text.strip():
        raise Error(f"the {what} is empty; write something")


def _line_editing() -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  its import gives `input` a history and arrow keys
