"""The verbs that draw: paint, inpaint and extend. One way of running and saving a drawing; each verb only begins it."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mmada_lite.cli import output, terminal
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.settings import ImageSettings
from mmada_lite.errors import Error
from mmada_lite.model import Model, load
from mmada_lite.streams import Drawing

Begin = Callable[[Model, ImageSettings | None], Drawing]


def paint(arguments: argparse.Namespace) -> int:
    """Draw a picture from a sentence."""
    terminal.only_one_stdin({"PROMPT": arguments.prompt, "--thought": arguments.thought})
    prompt = _prompt(arguments)
    think = arguments.think if arguments.thought is None else terminal.text_of(arguments.thought, "thought")
    return _draw(
        arguments,
        lambda model, settings: model.paint(prompt, settings, seed=arguments.seed, think=think),
        output.named_after(prompt),
    )


def inpaint(arguments: argparse.Namespace) -> int:
    """Draw anew the part of a picture that a mask covers."""
    terminal.only_one_stdin({"PICTURE": arguments.picture, "MASK": arguments.mask, "PROMPT": arguments.prompt})
    prompt, picture, mask = _prompt(arguments), terminal.picture_of(arguments.picture), terminal.picture_of(arguments.mask)
    return _draw(
        arguments,
        lambda model, settings: model.inpaint(picture, mask, prompt, settings, seed=arguments.seed),
        output.named_after(Path(arguments.picture).stem, "-inpainted"),
    )


def extend(arguments: argparse.Namespace) -> int:
    """Grow a picture beyond one border."""
    terminal.only_one_stdin({"PICTURE": arguments.picture, "PROMPT": arguments.prompt})
    prompt, picture = _prompt(arguments), terminal.picture_of(arguments.picture)
    return _draw(
        arguments,
        lambda model, settings: model.extend(
            picture, prompt, settings, side=arguments.side, amount=arguments.amount, seed=arguments.seed
        ),
        output.named_after(Path(arguments.picture).stem, "-extended"),
    )


def _prompt(arguments: argparse.Namespace) -> str:
    prompt = terminal.text_of(arguments.prompt, "prompt")
    if not prompt.strip():
        raise Error("the prompt is empty; say what is to be drawn")
    return prompt


def _draw(arguments: argparse.Namespace, begin: Begin, otherwise: str) -> int:
    if arguments.json and arguments.output == output.STDOUT:
        raise Error("standard output cannot carry both the picture and JSON; give -o a file")
    target = output.Target.check(otherwise if arguments.output is None else arguments.output, force=arguments.force)
    with terminal.Progress(quiet=arguments.json) as progress:
        progress.show("loading the model")
        threads = terminal.threads_of(arguments.threads)
        model = load(arguments.model, device=arguments.device, threads=threads, speed=arguments.speed)
        progress.show(f"on {model.device.name}: {model.device.reason}")
        drawing = begin(model, _settings(model, arguments))
        folder = output.StepFolder(Path(arguments.save_steps), force=arguments.force) if arguments.save_steps else None
        thinking = False
        for step in drawing:  # those of a thought first
            if thinking and step.predicted_codes is not None and drawing.thought and not arguments.json:
                progress.keep(f"thought: {' '.join(drawing.thought.split())}")
            thinking = step.predicted_codes is None
            progress.show(_line(step, drawing))
            if folder and not thinking:
                folder.write(step.index + 1, drawing.preview())
            if arguments.json:
                terminal.print_json(_step_json(step, drawing))
        target.write(drawing.picture)
    if folder:
        folder.finish()
    _tell(arguments, target, drawing, model)
    return 0


def _line(step: Step, drawing: Drawing) -> str:
    if step.predicted_codes is None:
        return f"{terminal.step_line(step, 'tokens')}  {drawing.thought_so_far}"
    return terminal.step_line(step, "codes")


def _step_json(step: Step, drawing: Drawing) -> dict[str, Any]:
    """A step; with thinking also which part it belongs to, and the thought as it is being written."""
    plain = terminal.step_json(step)
    if drawing.thought_so_far is None:
        return plain
    if step.predicted_codes is None:
        return {**plain, "part": "thought", "thought": drawing.thought_so_far}
    return {**plain, "part": "picture"}


def _settings(model: Model, arguments: argparse.Namespace) -> ImageSettings | None:
    """What was said becomes the model's default, so that steps that were not said may still be cut to what there is to draw."""
    options = vars(arguments)
    given = {f.name: options[f.name] for f in fields(ImageSettings) if options.get(f.name) is not None}
    model.image_defaults = replace(model.image_defaults, **given)
    return model.image_defaults if "steps" in given else None


def _tell(arguments: argparse.Namespace, target: output.Target, drawing: Drawing, model: Model) -> None:
    if arguments.json:
        found = terminal.result_json(target.name, arguments.seed, model.image_defaults, drawing.last)
        if drawing.thought_so_far is not None:
            settings = asdict(model.text_defaults) if arguments.think else None
            found |= {"thought": drawing.thought, "thought_fault": drawing.thought_fault, "thought_settings": settings}
        print(terminal.json_line(found))
    elif target.path is not None:
        print(target.path)
