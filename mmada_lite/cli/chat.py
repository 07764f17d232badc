"""The verb chat: answer one message, or hold a conversation when there is none and a person sits at the terminal."""

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from mmada_lite.cli import options, terminal
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
    print_answer(model.chat(message, settings, seed=arguments.seed, **given), settings, arguments)
    return 0


def _converse(arguments: argparse.Namespace) -> int:
    from mmada_lite.cli.model_options import open_for_text

    _line_editing()
    model, settings = open_for_text(arguments)
    terminal.note(f"Say something; {_ANEW} begins anew, {_LEAVE[0]} or Ctrl-D ends.")
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

    asked = [*before, {"role": "user", "content": terminal.text_of(line, "message")}]
    try:
        answer = print_answer(model.chat(asked, settings, seed=arguments.seed), settings, arguments)
    except Error as error:
        terminal.note(f"mmada-lite: {error} ({_ANEW} begins anew)")
        return before
    return [*asked, {"role": "assistant", "content": answer}] if answer else before


def _line_editing() -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  its import gives `input` a history and arrow keys
