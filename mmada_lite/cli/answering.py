"""What the verbs that answer in text share: showing an answer while it forms, and printing it when it is there."""

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def form_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --choices, --pattern and --schema ask for, as a model takes it."""
    choices = None
    if arguments.choices is not None:
        parts = re.split(r"(?<!\\),", arguments.choices)
        choices = [part.replace("\\,", ",").strip() for part in parts]
    return {"choices": choices, "pattern": arguments.pattern, "schema": _schema_in(arguments.schema)}


def _schema_in(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        said = fault.strerror if isinstance(fault, OSError) and fault.strerror else "it is no text in UTF-8"
        raise Error(f"--schema {file} cannot be read: {said}") from fault


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
        chosen: dict[str, Any] = {}
        if result.choices:
            best = max(result.choices, key=lambda each: each.log_likelihood)
            listed = [{name: value for name, value in asdict(each).items() if name != "ids"} for each in result.choices]
            chosen = {"choice": best.text, "choices": listed}
        terminal.print_json({**content, **parts, **spans, **chosen})
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
