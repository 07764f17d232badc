"""The verb chat: answer one message, or hold a conversation when there is none and a person sits at the terminal."""

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from mmada_lite.cli import options, outside, terminal
from mmada_lite.errors import Error

if TYPE_CHECKING:
    from mmada_lite.decoding.settings import TextSettings
    from mmada_lite.model import Model

Messages = list[dict[str, str]]
_LEAVE = ("/exit", "/quit")
_ANEW = "/new"
_OF_ONE = ("answer", "choices", "pattern", "schema")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [MESSAGE] [options]"
    parser.add_argument(
        "message", nargs="?", metavar="MESSAGE", help="what to say; - or a pipe: standard input; absent: a conversation"
    )
    options.add_answer(parser)
    options.add_text_options(parser)
    options.add_form(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, or converse."""
    if arguments.message is None and not arguments.json and terminal.is_terminal("stdin", "stdout"):
        if option := next((name for name in _OF_ONE if getattr(arguments, name) is not None), None):
            raise Error(f"--{option} is about one answer; give the MESSAGE that it answers, too")
        return _converse(arguments)
    from mmada_lite.cli.answering import form_of, given_answer, not_empty, print_answer
    from mmada_lite.cli.model_options import open_for_text

    text = terminal.text_of(arguments.message if arguments.message is not None else terminal.STDIN, "message")
    message = not_empty(text, "message")
    given = {"answer": given_answer(arguments), **form_of(arguments)}
    model, settings = open_for_text(arguments)
    answer = model.chat(message, settings, seed=arguments.seed, **given)
    for line in outside.of_texts(model.bundle, message):
        terminal.note(line)
    print_answer(answer, settings, arguments)
    return 0


def _converse(arguments: argparse.Namespace) -> int:
    from mmada_lite.cli.model_options import open_for_text

    _line_editing()
    model, settings = open_for_text(arguments)
    terminal.note(_greeting(model.bundle.knowledge.turns))
    conversation: Messages = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if line in _LEAVE:
            return 0
        if line == _ANEW:
            conversation = []
        elif line:
            conversation = _turn(model, conversation, line, settings, arguments)


def _turn(model: "Model", before: Messages, line: str, settings: "TextSettings", arguments: argparse.Namespace) -> Messages:
    """One exchange of a conversation; after an Error the conversation is what it was before."""
    from mmada_lite.cli.answering import print_answer

    asked = [*_remembered(before, model.bundle.knowledge.turns), {"role": "user", "content": terminal.text_of(line, "message")}]
    try:
        begun = model.chat(asked, settings, seed=arguments.seed)
        for note in outside.of_texts(model.bundle, line):
            terminal.note(note)
        answer = print_answer(begun, settings, arguments)
    except Error as error:
        terminal.note(f"mmada-lite: {error} ({_ANEW} begins anew)")
        return before
    return [*asked, {"role": "assistant", "content": answer}] if answer else before


def _greeting(turns: int | None) -> str:
    """How to go on; of a model that was taught so many turns, what it remembers."""
    if turns == 1:
        return f"Say something; this model knows single turns, so each line begins anew. {_LEAVE[0]} or Ctrl-D ends."
    minds = f" this model minds the last {turns} lines," if turns else ""
    return f"Say something;{minds} {_ANEW} begins anew, {_LEAVE[0]} or Ctrl-D ends."


def _remembered(before: Messages, turns: int | None) -> Messages:
    """The exchanges that still count beside the next one."""
    return before if turns is None else before[max(0, len(before) - 2 * (turns - 1)) :]


def _line_editing() -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  its import gives `input` a history and arrow keys
