"""What the verbs that answer in text share: showing an answer while it forms, and printing it when it is there."""

import argparse
from dataclasses import asdict

from mmada_lite.cli import terminal
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.errors import Error, printable
from mmada_lite.streams import Answer
from mmada_lite.vocabulary import CLOSE, split_thought


def not_empty(text: str, what: str) -> str:
    """The text. Raises Error when there is nothing in it."""
    if not text.strip():
        raise Error(f"the {what} is empty; write something")
    return text


def given_answer(arguments: argparse.Namespace) -> str | None:
    """What --answer gives of an answer."""
    return None if arguments.answer is None else terminal.text_of(arguments.answer, "given answer")


def print_answer(answer: Answer, settings: TextSettings, arguments: argparse.Namespace) -> str:
    """Decode the answer, showing its steps, and print it: as text, or with --json as one object. Returns the text."""
    with terminal.Progress(quiet=arguments.json) as progress:
        for step in answer:
            if arguments.json:
                terminal.print_json(terminal.step_json(step))
            elif progress.on:
                progress.show(f"{terminal.step_line(step, 'tokens')}  {answer.so_far()}")
    result = answer.result()
    if arguments.json:
        content = terminal.result_json(result.text, arguments.seed, settings, answer.last)
        parts = {"thought": result.thought, "answer": result.answer, "complete": result.complete}
        spans = {"spans": [asdict(span) for span in result.spans]} if result.spans else {}
        terminal.print_json({**content, **parts, **spans})
        return result.text
    if not result.complete:
        terminal.note(
            f"mmada-lite: the answer ends at its longest, {settings.answer_length} tokens; --answer-length gives more"
        )
    print(_dim_thought(printable(result.text) if terminal.is_terminal("stdout") else result.text))
    return result.text


def _dim_thought(text: str) -> str:
    """The whole text, the thought in it faint on a terminal."""
    if split_thought(text)[0] is None:
        return text
    end = text.index(CLOSE) + len(CLOSE)
    return terminal.dimmed(text[:end]) + text[end:]
