"""What the verbs that draw share: running a drawing, saving it and its steps, and saying so. Each verb only begins it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmada_lite.cli import output, outside, terminal
from mmada_lite.cli.model_options import image_settings, load_model
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.settings import ImageSettings
from mmada_lite.errors import Error
from mmada_lite.model import Model
from mmada_lite.streams import Drawing

Begin = Callable[[Model, ImageSettings | None], Drawing]


def prompt_of(arguments: argparse.Namespace) -> str:
    """The prompt, from the argument or from standard input. Raises Error when it is empty."""
    prompt = terminal.text_of(arguments.prompt, "prompt")
    if not prompt.strip():
        raise Error("the prompt is empty; say what is to be drawn")
    return prompt


def draw(arguments: argparse.Namespace, begin: Begin, default_name: str, *texts: str | bool) -> int:
    """Open the model, begin the drawing, show and save its steps, write the picture. texts: what is said to the model, of which
    words that it was not taught are noted. Returns the exit code."""
    if arguments.json and arguments.output == output.STDOUT:
        raise Error("standard output cannot carry both the picture and JSON; give -o a file")
    target = output.Target.check(default_name if arguments.output is None else arguments.output, force=arguments.force)
    with terminal.Progress(quiet=arguments.json) as progress:
        model = load_model(arguments, progress)
        drawing = begin(model, _settings(model, arguments))
        for line in outside.of_texts(model.bundle, *texts):
            progress.keep(line)
        folder = output.StepFolder(Path(arguments.save_steps), force=arguments.force) if arguments.save_steps else None
        thinking = False
        for step in drawing:  # those of a thought first
            if thinking and not _writes_thought(step) and drawing.thought and not arguments.json:
                progress.keep(f"thought: {' '.join(drawing.thought.split())}")
            thinking = _writes_thought(step)
            progress.show(_line(step, drawing))
            if folder and not thinking:
                folder.write(step.index + 1, drawing.preview())
            if arguments.json:
                terminal.print_json(_step_json(step, drawing))
        target.write(drawing.picture)
    if folder:
        folder.finish()
    _print_result(arguments, target, drawing, model)
    return 0


def _settings(model: Model, arguments: argparse.Namespace) -> ImageSettings | None:
    """What the options change becomes the model's default, so that steps that are not given may still be cut to what there is
    to draw."""
    model.image_defaults = image_settings(model.image_defaults, arguments)
    return model.image_defaults if "steps" in arguments else None


def _writes_thought(step: Step) -> bool:
    return step.predicted_codes is None


def _line(step: Step, drawing: Drawing) -> str:
    if _writes_thought(step):
        return f"{terminal.step_line(step, 'tokens')}  {drawing.thought_so_far}"
    return terminal.step_line(step, "codes")


def _step_json(step: Step, drawing: Drawing) -> dict[str, Any]:
    """A step; with thinking also which part it belongs to, and the thought as it is being written."""
    plain = terminal.step_json(step)
    if drawing.thought_so_far is None:
        return plain
    if _writes_thought(step):
        return {**plain, "part": "thought", "thought": drawing.thought_so_far}
    return {**plain, "part": "picture"}


def _print_result(arguments: argparse.Namespace, target: output.Target, drawing: Drawing, model: Model) -> None:
    if arguments.json:
        result = terminal.result_json(target.name, arguments.seed, model.image_defaults, drawing.last)
        if drawing.thought_so_far is not None:
            settings = model.text_defaults.flat() if arguments.think else None
            result |= {"thought": drawing.thought, "thought_fault": drawing.thought_fault, "thought_settings": settings}
        terminal.print_json(result)
    elif target.path is not None:
        print(target.path)
