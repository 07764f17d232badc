"""What the model is asked while it is watched for calibration: prompts of the three tasks, and of drawing after a thought,
built in or from a file.

The built-in ones are short, of no particular model, and fixed: prompt n of a task is always the same sentence. A file
holds a JSON object a line: {"task": "chat", "ask", "paint" or "think", "text": ...}. It knows no tokens and no model.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mmada_lite.contracts import json_of
from mmada_lite.errors import Error
from mmada_lite.files import require_readable

Task = Literal["chat", "ask", "paint", "think"]  # think: a thought, then the picture that it describes
TASKS: tuple[Task, ...] = get_args(Task)
NEEDED: tuple[Task, ...] = ("chat", "ask", "paint")  # think: of models that do so
THINGS = (
    *("an apple", "a banana", "a cat", "a dog", "a house", "a tree", "a car", "a star", "the sun", "the moon", "a heart"),
    *("a fish", "a frog", "a cloud", "a flower", "a strawberry", "a penguin", "a cactus", "an umbrella", "a key", "a cup"),
)
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "purple", "orange", "pink", "grey")
RELATIONS = ("left of", "right of", "above", "below")
QUESTIONS = (
    *("what is this?", "what colour is the background?", "describe the picture", "what do you see?", "is this {thing}?"),
    *("what is in the picture?", "which colour is behind it?", "is the background {colour}?", "name the object"),
)
MESSAGES = (
    *("what is {a} + {b}?", "{a} + {b}", "what colour is {thing}?", "how much is {a} + {b}?", "hello", "what is {thing}?"),
    *("what can you do?", "how many days are in a week?", "thank you", "what is the opposite of big?", "who are you?"),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    task: Task
    text: str


def built_in(task: Task, count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts of a task, the same for the same seed."""
    rng = np.random.default_rng([seed, TASKS.index(task)])
    return [Prompt(task, _sentence(task, rng)) for _ in range(count)]


def from_file(path: Path) -> list[Prompt]:
    """The prompts of a file. Raises Error that names the line which is none."""
    try:
        require_readable(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as fault:
        raise Error(f"{path}: cannot be read ({fault}); give a UTF-8 file with a JSON object a line") from None
    prompts = [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise Error(f'{path} holds no prompts; write a line such as {{"task": "paint", "text": "a red apple"}}')
    return prompts


def first_prompts(prompts: list[Prompt], task: Task, count: int) -> list[Prompt]:
    """The first `count` prompts of a task."""
    return list(islice((prompt for prompt in prompts if prompt.task == task), count))


def _parsed(line: str, where: str) -> Prompt:
    try:
        content = json_of(line)
    except ValueError:
        content = None
    if not isinstance(content, dict) or set(content) != {"task", "text"} or not isinstance(content["text"], str):
        raise Error(f'{where}: is not of the form {{"task": "paint", "text": "a red apple"}}')
    if content["task"] not in TASKS or not content["text"].strip():
        raise Error(f"{where}: task must be one of {', '.join(TASKS)}, and the text may not be empty")
    return Prompt(content["task"], content["text"].strip())


def _sentence(task: Task, rng: np.random.Generator) -> str:
    thing, colour = THINGS[rng.integers(len(THINGS))], COLOURS[rng.integers(len(COLOURS))]
    a, b = rng.integers(0, 20, 2)
    if task == "think":
        article, other = "an" if colour[0] in "aeiou" else "a", THINGS[rng.integers(len(THINGS))]
        scene = f"{thing} {RELATIONS[rng.integers(len(RELATIONS))]} {other}"
        return f"{scene} on {article} {colour} background" if rng.random() < 0.5 else scene
    if task == "paint":
        article = "an" if colour[0] in "aeiou" else "a"
        return f"{thing} on {article} {colour} background" if rng.random() < 0.8 else thing
    templates = QUESTIONS if task == "ask" else MESSAGES
    return templates[rng.integers(len(templates))].format(thing=thing, colour=colour, a=a, b=b)
